"""The detector: a frozen DINOv3 inside transformers' own `DetrForObjectDetection`.

    model = freeze(build_model(config, class_prior), torch.bfloat16)

`recipe.model.checkpoint` saves and restores it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, DINOv3ViTBackbone, DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTBackboneOutput

from recipe.config import PATCH, Config
from recipe.hub import in_a_line
from recipe.model.loss import detection_loss
from recipe.schema import CLASS_NAMES, UserError

logger = logging.getLogger(__name__)

BACKBONE_PREFIX = "model.backbone."
# What from_pretrained raises: nothing there, refused, out of reach, or a damaged file (a git-lfs pointer).
UNREADABLE = (OSError, ValueError, httpx2.HTTPError, SafetensorError)


class FrozenBackbone(DINOv3ViTBackbone):
    """DINOv3 as a fixed function: always in eval mode, without gradients, keeping only the map that DETR reads.

    Closes two traps: in train mode DINOv3 rescales its RoPE coordinates at random, and Trainer calls `model.train()`
    at every step; and the stock forward keeps one hidden state per layer and normalises each.
    """

    def train(self, mode: bool = True) -> FrozenBackbone:
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, **_: Any) -> DINOv3ViTBackboneOutput:
        """pixel_values [batch, 3, height, width], normalised -> one map [batch, channels, height / 16, width / 16]."""
        height, width = pixel_values.shape[-2:]
        with torch.autocast(pixel_values.device.type, enabled=False):  # autocast would cast every weight at every step
            pixel_values = pixel_values.to(self.dtype)
            hidden = self.embeddings(pixel_values)  # [batch, 1 + registers + patches, channels]
            position = self.rope_embeddings(pixel_values)
            for layer in self.model.layer:
                hidden = layer(hidden, position_embeddings=position)
            patches = self.norm(hidden)[:, 1 + self.config.num_register_tokens :]
        grid = (height // self.config.patch_size, width // self.config.patch_size)
        feature_map = patches.transpose(1, 2).reshape(len(patches), -1, *grid).contiguous()
        return DINOv3ViTBackboneOutput(feature_maps=(feature_map,))


def build_model(config: Config, class_prior: Sequence[float] | None = None) -> DetrForObjectDetection:
    """A DETR with the pretrained backbone inside and DETR's own initialisation, all in fp32.

    Args:
        class_prior: expected share of person, head and "no object" among the queries, which becomes the classifier's
            bias; even shares when left out.

    Raises:
        UserError: the backbone cannot be had.
    """
    backbone = load_backbone(config)
    # transformers only ever builds a random backbone here: of one layer, as 300 M random weights would take 8 seconds.
    width, heads = backbone.config.hidden_size, backbone.config.num_attention_heads
    thin = DINOv3ViTConfig(hidden_size=width, num_attention_heads=heads, num_hidden_layers=1)
    model = DetrForObjectDetection(detr_config(config, thin))
    model.model.backbone.model, model.config.backbone_config = backbone, backbone.config
    initialise(model, class_prior)
    if config.detr_init != "none":
        start_from_coco(model, config.detr_init)
    return model.float()


def detr_config(config: Config, backbone: DINOv3ViTConfig) -> DetrConfig:
    return DetrConfig(
        backbone_config=backbone,
        num_queries=config.num_queries,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        d_model=config.d_model,
        encoder_ffn_dim=config.d_model * 8,  # DETR's 2048 at its width of 256
        decoder_ffn_dim=config.d_model * 8,
        dropout=config.dropout,
        auxiliary_loss=True,  # off by default, and it changes the decoder: never to be flipped after training
        id2label=dict(enumerate(CLASS_NAMES)),
        label2id={name: index for index, name in enumerate(CLASS_NAMES)},
        dtype="float32",  # else a reload takes the dtype of whatever parameter comes first
    )


def load_backbone(config: Config) -> DINOv3ViTBackbone:
    """The DINOv3 named by `--backbone`: a repo id, a folder, or `tiny` for a small random one."""
    if config.backbone == "tiny":
        return DINOv3ViTBackbone(tiny_backbone())
    name = config.backbone
    local = Path(name).is_dir()
    if not local and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise UserError(f"--backbone {name}: no such folder, and not a repo id of the form USER/NAME")
    try:
        # Not AutoBackbone: it takes a folder's name for a repo id.
        backbone, report = DINOv3ViTBackbone.from_pretrained(
            name, revision=config.backbone_revision or "main", output_loading_info=True, dtype=torch.float32
        )
    except UNREADABLE as error:
        if local:
            raise UserError(f"--backbone {name}: cannot be read as DINOv3 ({in_a_line(error)})") from error
        raise UserError(
            f"The backbone {name} cannot be fetched ({in_a_line(error)}). It is gated: accept its licence on the "
            f"page of {name} and run `hf auth login`, or give a folder that holds it with `--backbone DIR`."
        ) from error
    if report["missing_keys"] or report["mismatched_keys"]:
        lost = sorted(report["missing_keys"])[:3]
        raise UserError(f"--backbone {name}: not a DINOv3 ViT, {len(report['missing_keys'])} tensors missing {lost}")
    backbone.config.pos_embed_rescale = None  # the random rescaling of train mode, also for those who fine-tune ours
    return backbone


def tiny_backbone() -> DINOv3ViTConfig:
    """A random DINOv3 for the pilot and the tests: the real architecture, a few thousand times smaller."""
    return DINOv3ViTConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_register_tokens=4,
        patch_size=PATCH,
        pos_embed_rescale=None,
        layerscale_value=1.0,
    )


def large_backbone() -> DINOv3ViTConfig:
    """The shape of DINOv3 ViT-L/16, to measure with random weights."""
    return DINOv3ViTConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, num_register_tokens=4
    )


@torch.no_grad()
def initialise(model: DetrForObjectDetection, class_prior: Sequence[float] | None = None) -> None:
    """DETR's own initialisation (Carion et al. 2020, their code): xavier in the transformer, N(0, 1) queries.

    transformers draws everything from N(0, 0.02), queries too: all 300 first boxes then agree to 6e-6. The
    classifier's bias starts at the log of the prior, weighted as in the loss: the first steps need not learn it.
    """
    detr = model.model
    for part in (detr.encoder, detr.decoder):
        for parameter in part.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
    nn.init.normal_(detr.query_position_embeddings.weight)
    for module in (detr.input_projection, model.class_labels_classifier, *model.bbox_predictor.layers):
        module.reset_parameters()
    prior = torch.tensor(class_prior if class_prior is not None else [1.0] * (len(CLASS_NAMES) + 1))
    prior = prior.clamp(min=1e-3)
    prior[-1] *= model.config.eos_coefficient
    model.class_labels_classifier.bias.copy_((prior / prior.sum()).log())


@torch.no_grad()
def start_from_coco(model: DetrForObjectDetection, name: str) -> bool:
    """Copy encoder, decoder, box head, first queries and COCO's `person` from a COCO DETR; scratch if unreachable.

    transformers renames the legacy keys; the donor's backbone is left behind. Queries beyond the donor's keep their
    N(0, 1) start, the `head` class its own.
    """
    try:
        config = DetrConfig.from_pretrained(name)
        if (config.d_model, config.encoder_layers, config.decoder_layers) != (
            model.config.d_model,
            model.config.encoder_layers,
            model.config.decoder_layers,
        ):
            logger.warning("detr_init: %s has another shape than this detector; starting from scratch.", name)
            return False
        config.backbone_config = tiny_backbone()
        donor, report = DetrForObjectDetection.from_pretrained(
            name, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except UNREADABLE as error:
        logger.warning("detr_init: %s cannot be fetched (%s); starting from scratch.", name, in_a_line(error))
        return False
    lost = [key for key in report["missing_keys"] if not key.startswith((BACKBONE_PREFIX, "model.input_projection"))]
    if lost:
        raise UserError(f"--detr_init {name}: not a DETR checkpoint, missing {lost[:3]}; use `--detr_init none`")
    for part in ("encoder", "decoder"):
        getattr(model.model, part).load_state_dict(getattr(donor.model, part).state_dict())
    model.bbox_predictor.load_state_dict(donor.bbox_predictor.state_dict())
    queries = donor.model.query_position_embeddings.weight[: model.config.num_queries]
    model.model.query_position_embeddings.weight[: len(queries)] = queries
    person = next((index for index, label in config.id2label.items() if label.lower() == "person"), 1)
    model.class_labels_classifier.weight[0] = donor.class_labels_classifier.weight[person]
    model.class_labels_classifier.weight[-1] = donor.class_labels_classifier.weight[-1]
    logger.info("detr_init: encoder, decoder and %d queries from %s", len(queries), name)
    return True


def freeze(model: DetrForObjectDetection, dtype: torch.dtype = torch.float32) -> DetrForObjectDetection:
    """Make the backbone a fixed function in `dtype`, the heads and the loss fp32; the saved format is untouched."""
    backbone = model.model.backbone.model
    backbone.__class__ = FrozenBackbone  # in place: keys and the saved class names stay those of plain transformers
    backbone.to(dtype).requires_grad_(False).eval()
    for head in (model.class_labels_classifier, model.bbox_predictor):
        _run_in_fp32(head)
    model.loss_function = detection_loss
    return model


def compile_backbone(model: DetrForObjectDetection) -> None:
    """Compile the frozen layers, 88 % of a step's arithmetic, once for each shape of a batch; keys stay as they are.

    The rest stays plain: the loss waits for the matcher on the CPU, and compiling around it takes minutes.

    Raises:
        UserError: no C compiler, without which neither Triton nor inductor works.
    """
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        raise UserError(
            "--torch_compile true needs a C compiler and there is none here: install gcc, leave the flag out, or "
            "build the image on a base that has one: `docker build --build-arg BASE=python:3.11 -t recipe .`"
        )
    for layer in model.model.backbone.model.model.layer:
        layer.compile(dynamic=False)


def _run_in_fp32(head: nn.Module) -> None:
    """Keep a head out of autocast: boxes rounded to bf16 cap mAP at 0.48 for heads of 8 to 16 pixels."""
    forward = partial(type(head).forward, head)  # the library's own, also where freeze() was here before

    def forward_in_fp32(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return forward(hidden.float())

    head.forward = forward_in_fp32


def build_processor(shortest_edge: int, longest_edge: int) -> DetrImageProcessor:
    """The stock processor with the training geometry; pad_size stays unset: a fixed one breaks on portrait images."""
    return DetrImageProcessor(size={"shortest_edge": shortest_edge, "longest_edge": longest_edge})
