"""The second detector: Deformable DETR (Zhu et al. 2021) over four layers of the frozen DINOv3, with box refinement.

    recipe train --detector deformable --data DIR_OR_REPO

Saved as a plain `DeformableDetrForObjectDetection` checkpoint, with the processor that DETR has too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrObjectDetectionOutput

from recipe.model.backbone import FrozenBackbone, shallow
from recipe.model.loss import Labels, detection_loss
from recipe.schema import CLASS_NAMES


class Linear(nn.Linear):
    """Out of autocast: boxes, and the reference points that the decoder refines, would be rounded to bf16."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


class DeformableDetr(DeformableDetrForObjectDetection):
    """Same tensors, names and outputs as the stock class.

    The classes are a softmax with "no object" as a third label, trained by DETR's loss, and not sigmoids by the focal
    loss. No image processor of transformers makes complete patches of 16 and reads sigmoids; and with a softmax an
    unlabelled class has its place in the loss. Heads are per layer: `tie_word_embeddings` would make them one.
    """

    LABELS = (*CLASS_NAMES, "no object")
    LEVELS = 4
    FFN = 4  # times d_model: 1024 at its width of 256
    SETTINGS = {"with_box_refine": True, "tie_word_embeddings": False}  # noqa: RUF012

    def __init__(self, config: DeformableDetrConfig, backbone: FrozenBackbone | None = None) -> None:
        frozen, config.backbone_config = config.backbone_config, shallow(config.backbone_config)
        super().__init__(config)
        config.backbone_config, width = frozen, config.d_model
        self.model.backbone.model = backbone or FrozenBackbone(frozen)
        self.model.reference_points = Linear(width, 2)
        for layer in range(config.decoder_layers):
            self.class_embed[layer] = Linear(width, len(self.LABELS))
            self.bbox_embed[layer].layers = nn.ModuleList(
                [Linear(width, width), Linear(width, width), Linear(width, 4)]
            )
        # One module for both, else the decoder's copies, whose outputs are detached, would never learn.
        self.model.decoder.bbox_embed = self.bbox_embed
        # 23,040 tokens of four maps: 1 GB of sampled values a layer and image, which are computed again in backward.
        self.model.encoder.activation_checkpointing_enable()

    def forward(
        self, pixel_values: Tensor, labels: Labels | None = None, num_items_in_batch: Tensor | None = None, **_: Any
    ) -> DeformableDetrObjectDetectionOutput:
        """As `Detr.forward`."""

        def loss_function(_: Tensor, labels: Labels, *outputs: Any) -> tuple[Tensor, dict[str, Tensor], None]:
            """What the stock forward calls, last with the outputs of all layers."""
            logits, pred_boxes = outputs[-2:]  # [layers, batch, queries, classes + 1 or 4]
            return *detection_loss(logits, pred_boxes, labels, self.config, num_items_in_batch), None

        self.loss_function = loss_function
        return super().forward(pixel_values, labels=labels)
