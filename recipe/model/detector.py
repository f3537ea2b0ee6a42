"""The detector: transformers' own DETR that builds itself over a frozen DINOv3, with fp32 heads and its own loss.

    model = freeze(build_detector(config, class_prior), torch.bfloat16)

`recipe.model.checkpoint` saves it as a plain `DetrForObjectDetection` checkpoint and restores it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DINOv3ViTConfig,
    PretrainedConfig,
    PreTrainedModel,
    YolosImageProcessor,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.detr.modeling_detr import DetrDecoderOutput, DetrEncoderLayer, DetrObjectDetectionOutput

from recipe.config import Config
from recipe.model.backbone import FrozenBackbone, load_backbone
from recipe.model.initialisation import initialise, start_from_coco
from recipe.model.loss import Labels, detection_loss
from recipe.schema import CLASS_NAMES, UserError


class FrozenDetector(PreTrainedModel):
    """What the detectors share: they build themselves over a `FrozenBackbone`, and load every tensor or none."""

    accepts_loss_kwargs = True  # Trainer then hands over num_items_in_batch

    def __init__(self, config: PretrainedConfig, backbone: FrozenBackbone | None = None) -> None:
        frozen: DINOv3ViTConfig = config.backbone_config
        # transformers draws a random backbone: a layer a map here, as the 300 M weights of ViT-L would take 8 seconds.
        maps = len(frozen.out_indices)
        config.backbone_config = DINOv3ViTConfig(
            hidden_size=frozen.hidden_size,
            num_attention_heads=frozen.num_attention_heads,
            num_hidden_layers=maps,
            out_indices=list(range(1, maps + 1)),
        )
        super().__init__(config)
        config.backbone_config = frozen
        self.model.backbone.model = backbone or FrozenBackbone(frozen)

    @classmethod
    def from_pretrained(cls, *where: Any, **options: Any) -> FrozenDetector:
        """As in transformers, but frozen, and every tensor or an error.

        Raises:
            UserError: a tensor is missing from the checkpoint or has another shape.
        """
        model, report = super().from_pretrained(*where, **options, output_loading_info=True)
        lost = sorted(set(report["missing_keys"]) | {str(key) for key in report["mismatched_keys"]})
        if lost:
            raise UserError(f"{where[0]}: {len(lost)} tensors are missing from the checkpoint, the first {lost[:3]}")
        return freeze(model)


class EncoderLayer(DetrEncoderLayer):
    """DETR's encoder layer without its `isfinite().all()`: a host read each, against overflows that only fp16 has."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        spatial_position_embeddings: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        attended, _ = self.self_attn(hidden_states, attention_mask, spatial_position_embeddings)
        hidden_states = hidden_states + dropout(attended, self.dropout, self.training)
        hidden_states = self.self_attn_layer_norm(hidden_states)
        return self.final_layer_norm(hidden_states + self.mlp(hidden_states))


class Detector(FrozenDetector, DetrForObjectDetection):
    """DETR (Carion et al. 2020) over a frozen DINOv3, for images of one size without padding.

    Same tensors, names and outputs as `DetrForObjectDetection`. Different: the backbone is a fixed function, the heads
    stay out of autocast (boxes rounded to bf16 cap mAP at 0.48 for heads of 8 to 16 pixels), there is no mask, and
    every decoder layer has its loss although `auxiliary_loss` is false. That flag would change the decoder: each layer
    would read normed states and the last be normed twice, where DETR norms copies.
    """

    def __init__(self, config: DetrConfig, backbone: FrozenBackbone | None = None) -> None:
        super().__init__(config, backbone)
        self.model.encoder.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Labels | None = None,
        num_items_in_batch: Tensor | None = None,
        **_: Any,
    ) -> DetrObjectDetectionOutput:
        """Detect, and with `labels` compute the loss.

        Args:
            pixel_values: [batch, 3, height, width], normalised; both sides are multiples of 16.
            pixel_mask: not read, as images of one size have no padding; it may be given as to the stock class.
            labels: per image, as `detection_loss` takes them.
            num_items_in_batch: [2], the matched boxes and images of the optimizer step, from `count_items`.

        Returns:
            logits [batch, queries, classes + 1] and pred_boxes [batch, queries, 4] cxcywh in [0, 1], both fp32; with
            labels also loss and loss_dict.
        """
        detr = self.model
        features = detr.backbone.model(pixel_values).feature_maps[-1]  # [batch, channels, height / 16, width / 16]
        positions = detr.position_embedding(features.shape, features.device, pixel_values.dtype)
        positions = positions.flatten(2).transpose(1, 2)  # [batch, tokens, d_model]
        projected = detr.input_projection(features).flatten(2).transpose(1, 2)  # [batch, tokens, d_model]
        encoded = detr.encoder(inputs_embeds=projected, spatial_position_embeddings=positions).last_hidden_state
        queries = detr.query_position_embeddings.weight.expand(len(features), -1, -1)  # [batch, queries, d_model]
        decoded = detr.decoder(
            inputs_embeds=torch.zeros_like(queries),
            encoder_hidden_states=encoded,
            spatial_position_embeddings=positions,
            object_queries_position_embeddings=queries,
            output_hidden_states=labels is not None,
        )
        states = decoded.last_hidden_state[None] if labels is None else self._states_of_all_layers(decoded)
        with torch.autocast(states.device.type, enabled=False):
            logits = self.class_labels_classifier(states.float())  # [layers, batch, queries, classes + 1]
            pred_boxes = self.bbox_predictor(states.float()).sigmoid()  # [layers, batch, queries, 4]
        output = DetrObjectDetectionOutput(logits=logits[-1], pred_boxes=pred_boxes[-1])
        if labels is not None:
            output.loss, output.loss_dict = detection_loss(logits, pred_boxes, labels, self.config, num_items_in_batch)
        return output

    def _states_of_all_layers(self, decoded: DetrDecoderOutput) -> Tensor:
        """The decoder's states, each normed, [layers, batch, queries, d_model]."""
        if self.config.auxiliary_loss:  # checkpoints of before 0.2.0: trained along the changed decoder, and kept so
            earlier = decoded.intermediate_hidden_states[:-1]
        else:
            earlier = [self.model.decoder.layernorm(state) for state in decoded.hidden_states[1:-1]]
        return torch.stack([*earlier, decoded.last_hidden_state])


def build_detector(config: Config, class_prior: Sequence[float] | None = None) -> Detector:
    """A detector with the pretrained backbone inside and DETR's own or COCO's start, all in fp32.

    Args:
        class_prior: expected share of person, head and "no object" among the queries, which becomes the classifier's
            bias; even shares when left out.

    Raises:
        UserError: the backbone cannot be had, or `--detr_init` names no COCO DETR.
    """
    backbone = load_backbone(config)
    model = Detector(detr_config(config, backbone.config), backbone)
    initialise(model, class_prior)
    if config.detr_init != "none":
        start_from_coco(model, config.detr_init)
    return model


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
        auxiliary_loss=False,  # see Detector
        id2label=dict(enumerate(CLASS_NAMES)),
        label2id={name: index for index, name in enumerate(CLASS_NAMES)},
    )


def freeze(model: FrozenDetector, dtype: torch.dtype = torch.float32) -> FrozenDetector:
    """The backbone in `dtype` and without gradients, which loading weights gives it back; the rest stays as it is."""
    backbone = model.model.backbone.model
    for part in (backbone.embeddings, backbone.model, backbone.norm):  # not RoPE, whose frequencies stay fp32
        part.to(dtype).requires_grad_(False)
    return model


def compile_backbone(model: FrozenDetector) -> None:
    """Compile the frozen layers, 88 % of a step's arithmetic; the loss waits for the matcher on the CPU anyway.

    Raises:
        UserError: no C compiler, without which neither Triton nor inductor works.
    """
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        raise UserError(
            "--torch_compile true needs a C compiler and there is none here: install gcc, leave the flag out, or "
            "build the image on a base that has one: `docker build --build-arg BASE=python:3.11 -t recipe .`"
        )
    model.model.backbone.model.compile_layers()


def build_processor(config: Config, backbone: DINOv3ViTConfig) -> YolosImageProcessor:
    """What resizes an image to whole patches of 16 and normalises it as this backbone was trained.

    YOLOS' processor, made for a ViT of patch 16, and not DETR's: that one's sizes are no multiples of 16, and the
    patch embedding cuts the rest off. Older saved configs name no mean: theirs was ImageNet's.
    """
    known = backbone.to_dict()
    return YolosImageProcessor(
        size={"shortest_edge": config.shortest_edge, "longest_edge": config.longest_edge},
        image_mean=known.get("image_mean", IMAGENET_DEFAULT_MEAN),
        image_std=known.get("image_std", IMAGENET_DEFAULT_STD),
    )
