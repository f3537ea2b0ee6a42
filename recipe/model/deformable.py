"""The second detector: Deformable DETR (Zhu et al. 2021) over four layers of the frozen DINOv3, with box refinement.

    recipe train --detector deformable --data DIR_OR_REPO

Saved as a plain `DeformableDetrForObjectDetection` checkpoint, with the processor that DETR has too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

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

    The classes are sigmoids, learnt by the focal loss. No image processor of transformers makes complete patches of 16
    and reads sigmoids, so a third label, "no object", has the logit 0 for ever: the saved processor's softmax over
    (person, head, 0) ranks as the sigmoids do. Heads are per layer: `tie_word_embeddings` would make them one.
    """

    LABELS = (*CLASS_NAMES, "no object")
    LEVELS = 4
    FFN = 4  # times d_model: 1024 at its width of 256
    SETTINGS = {"with_box_refine": True, "tie_word_embeddings": False, "class_cost": 2, "eos_coefficient": 1.0}  # noqa: RUF012

    def __init__(self, config: DeformableDetrConfig, backbone: FrozenBackbone | None = None) -> None:
        frozen, config.backbone_config = config.backbone_config, shallow(config.backbone_config)
        config.num_feature_levels = len(frozen.out_indices)
        super().__init__(config)
        config.backbone_config, width = frozen, config.d_model
        self.model.backbone.model = backbone or FrozenBackbone(frozen)
        self.model.reference_points = Linear(width, 2)
        for layer in range(config.decoder_layers):
            self.class_embed[layer] = Linear(width, len(self.LABELS))
            self.bbox_embed[layer].layers = nn.ModuleList(Linear(width, size) for size in (width, width, 4))
        # One module for both, else the decoder's copies, whose outputs are detached, would never learn.
        self.model.decoder.bbox_embed = self.bbox_embed
        # 23,040 tokens of four maps: 1 GB of sampled values a layer and image, which are computed again in backward.
        self.model.encoder.activation_checkpointing_enable()

    def initialise_heads(self, _: Any) -> None:
        """Each class at a sigmoid of 0.01, "no object" at 0; boxes of an eighth of the image at their points."""
        for classes, boxes in zip(self.class_embed, self.bbox_embed, strict=True):
            for parameter in (classes.weight[-1], *boxes.layers[-1].parameters()):
                nn.init.zeros_(parameter)
            classes.bias.copy_(torch.tensor([-4.6] * len(CLASS_NAMES) + [0.0]))
        self.bbox_embed[0].layers[-1].bias[2:] = -2.0

    def forward(
        self, pixel_values: Tensor, labels: Labels | None = None, num_items_in_batch: Tensor | None = None, **_: Any
    ) -> Any:
        """As `Detr.forward`."""

        def loss_function(_: Tensor, labels: Labels, *outputs: Any) -> tuple[Tensor, dict[str, Tensor], None]:
            """What the stock forward calls, last with the outputs of all layers."""
            logits, pred_boxes = outputs[-2:]  # [layers, batch, queries, classes + 1 or 4]
            return *detection_loss(logits, pred_boxes, labels, self.config, num_items_in_batch), None

        self.loss_function = loss_function
        return super().forward(pixel_values, labels=labels)
