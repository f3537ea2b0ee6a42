"""The detector: one of two over a frozen DINOv3, built from the settings, with the processor that is saved beside it.

model = freeze(build_detector(config, class_prior), torch.bfloat16)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import DetrConfig, DetrForObjectDetection, DINOv3ViTConfig, YolosImageProcessor

from recipe.config import Config
from recipe.hub import as_user_errors
from recipe.model.backbone import BACKBONE_PREFIX, load_backbone, load_complete, tiny_backbone
from recipe.model.deformable import DeformableDetr
from recipe.model.detr import Detr
from recipe.schema import CLASS_NAMES, UserError

logger = logging.getLogger(__name__)

Detector = Detr | DeformableDetr
EVEN = (1.0,) * (len(CLASS_NAMES) + 1)
DETECTORS: dict[str, type[Detector]] = {"detr": Detr, "deformable": DeformableDetr}  # --detector
WEIGHTED: Any = (nn.Linear, nn.Conv2d)
# By the names of the modules; all others are reset to torch's own start.
XAVIER = ("model.encoder", "model.decoder.layers", "model.reference_points")


def build_detector(config: Config, class_prior: Sequence[float] = EVEN) -> Detector:
    """The `--detector` with the pretrained backbone inside and its own or COCO's start, all in fp32.

    Args:
        class_prior: expected share of person, head and "no object" among the queries.

    Raises:
        UserError: the backbone cannot be had, or `--detr_init` names no COCO DETR.
    """
    backbone = load_backbone(config)
    model = DETECTORS[config.detector](detector_config(config, backbone.config), backbone)
    ratio = sum(class_prior[:-1]) / (model.config.eos_coefficient * class_prior[-1])  # as the loss weighs them
    logger.info('%d queries, dropout %g, boxes to "no object" %.2f : 1', config.num_queries, config.dropout, ratio)
    initialise(model, class_prior)
    if config.detr_init != "none":
        start_from_coco(model, config.detr_init)
    return model


def detector_config(config: Config, backbone: DINOv3ViTConfig) -> Any:
    """Its own config, from the settings; `backbone` is made to give the maps that it reads."""
    kind = DETECTORS[config.detector]
    depths = [backbone.num_hidden_layers * (level + 1) / kind.LEVELS for level in range(kind.LEVELS)]
    backbone.out_indices = sorted({max(1, round(depth)) for depth in depths})
    return kind.config_class(
        backbone_config=backbone,
        num_queries=config.num_queries,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        d_model=config.d_model,
        encoder_ffn_dim=config.d_model * kind.FFN,
        decoder_ffn_dim=config.d_model * kind.FFN,
        dropout=config.dropout,
        id2label=dict(enumerate(kind.LABELS)),
        label2id={name: label for label, name in enumerate(kind.LABELS)},  # not derived: it would be saved as null
        **kind.SETTINGS,
    )


@torch.no_grad()
def initialise(model: Detector, class_prior: Sequence[float]) -> None:
    """As in the code of Carion et al. 2020 and Zhu et al. 2021: xavier in the transformer, N(0, 1) queries."""
    # transformers draws everything from N(0, 0.02), queries too: all 300 first boxes then agree to 6e-6.
    nn.init.normal_(model.model.query_position_embeddings.weight)
    modules: Any = model.named_modules()
    for name, module in modules:
        if not isinstance(module, WEIGHTED) or name.startswith(BACKBONE_PREFIX):
            continue
        if not name.startswith(XAVIER):
            module.reset_parameters()
        elif not name.endswith(("sampling_offsets", "attention_weights")):  # a ring around the point, even weights
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    model.initialise_heads(class_prior)


@torch.no_grad()
def start_from_coco(model: Any, name: str) -> None:
    """Copy encoder, decoder, box head, first queries and COCO's `person` from a COCO DETR; scratch if unreachable.

    Its backbone and input_projection are left behind; queries beyond its own keep their N(0, 1) start. `person` and
    "no object" come with their biases; `head`, which COCO has not, keeps its prior relative to "no object".

    Raises:
        UserError: one of this recipe's own detectors, or its weights cannot be read completely.
    """
    try:
        with as_user_errors(f"--detr_init {name}"):
            config = DetrConfig.from_pretrained(name)
    except UserError as error:
        logger.warning("%s; starting from scratch", error)
        return
    if config.backbone_config.model_type == DINOv3ViTConfig.model_type:
        raise UserError(f"--detr_init {name}: is a detector of this recipe. Start from it by `--init_from {name}`")
    shape = ("model_type", "d_model", "encoder_layers", "decoder_layers")
    if any(getattr(config, key) != getattr(model.config, key) for key in shape):
        logger.warning("--detr_init %s: has another shape than this detector; starting from scratch", name)
        return
    config.backbone_config = tiny_backbone()
    options = {"config": config, "ignore_mismatched_sizes": True}
    options["left_out"] = (BACKBONE_PREFIX, "model.input_projection")
    donor = load_complete(DetrForObjectDetection, name, f"--detr_init {name}, or none for scratch", **options)
    for part in ("encoder", "decoder"):
        getattr(model.model, part).load_state_dict(getattr(donor.model, part).state_dict())
    model.bbox_predictor.load_state_dict(donor.bbox_predictor.state_dict())
    queries = donor.model.query_position_embeddings.weight[: model.config.num_queries]
    model.model.query_position_embeddings.weight[: len(queries)] = queries
    person = next((index for index, label in config.id2label.items() if label.lower() == "person"), 1)
    mine, theirs = model.class_labels_classifier, donor.class_labels_classifier
    mine.bias += theirs.bias[-1] - mine.bias[-1]  # changes no share: a softmax knows differences only
    for here, there in ((0, person), (-1, -1)):
        mine.weight[here], mine.bias[here] = theirs.weight[there], theirs.bias[there]
    logger.info("detr_init: encoder, decoder and %d queries from %s", len(queries), name)


def freeze(model: Detector, dtype: torch.dtype = torch.float32) -> Detector:
    """The backbone in `dtype` and without gradients, which loading weights gives it back; the rest stays as it is."""
    backbone = model.model.backbone.model
    for part in (backbone.embeddings, backbone.model, backbone.norm):  # not RoPE, whose frequencies stay fp32
        part.to(dtype).requires_grad_(False)
    return model


def build_processor(config: Config, backbone: DINOv3ViTConfig) -> YolosImageProcessor:
    """What resizes an image to complete patches of 16 and normalises it as this backbone was trained.

    YOLOS' processor, made for a ViT of patch 16, and not DETR's: that one's sizes are no multiples of 16, and the
    patch embedding cuts the rest off. A backbone whose config names no mean had ImageNet's.
    """
    known = {key: value for key, value in backbone.to_dict().items() if key in ("image_mean", "image_std")}
    size = {"shortest_edge": config.shortest_edge, "longest_edge": config.longest_edge}
    return YolosImageProcessor(size=size, **known)
