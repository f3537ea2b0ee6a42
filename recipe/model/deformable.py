"""The second detector: Deformable DETR (Zhu et al. 2021) over four layers of the frozen DINOv3, with box refinement.

    model = build_deformable(config, class_prior)          # as build_detector: same Trainer, loss, checkpoints

Saved as a plain `DeformableDetrForObjectDetection` checkpoint, with the processor that DETR has too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrMLPPredictionHead,
    DeformableDetrObjectDetectionOutput,
    inverse_sigmoid,
)

from recipe.config import Config
from recipe.model.backbone import FrozenBackbone, load_backbone
from recipe.model.detector import FrozenDetector
from recipe.model.loss import Labels, detection_loss
from recipe.schema import CLASS_NAMES

LEVELS = 4
NO_OBJECT = "no object"


class BoxHead(DeformableDetrMLPPredictionHead):
    """The library's head out of autocast: the decoder refines its reference points by it, which bf16 would round."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class DeformableDetector(FrozenDetector, DeformableDetrForObjectDetection):
    """Deformable DETR over a frozen DINOv3: same tensors, names and outputs as the stock class.

    The classes are a softmax with "no object" as a third label, trained by DETR's loss, and not sigmoids by the focal
    loss. No image processor of transformers makes complete patches of 16 and reads sigmoids; and with a softmax an
    unlabelled class has its place in the loss. Heads are per layer: `tie_word_embeddings` would make them one.
    """

    def __init__(self, config: DeformableDetrConfig, backbone: FrozenBackbone | None = None) -> None:
        super().__init__(config, backbone)
        heads = nn.ModuleList(BoxHead(config.d_model, config.d_model, 4, 3) for _ in range(config.decoder_layers))
        # One module for both, else the decoder's copies, whose outputs are detached, would never learn.
        self.bbox_embed = self.model.decoder.bbox_embed = heads
        # 23,040 tokens of four maps: 1 GB of sampled values a layer and image, which are computed again in backward.
        self.model.encoder.activation_checkpointing_enable()

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Labels | None = None,
        num_items_in_batch: Tensor | None = None,
        **_: Any,
    ) -> DeformableDetrObjectDetectionOutput:
        """As `Detector.forward`."""
        outputs = self.model(pixel_values)
        references = [outputs.init_reference_points, *outputs.intermediate_reference_points.unbind(1)]  # [..., 2 or 4]
        logits, pred_boxes = [], []
        with torch.autocast(pixel_values.device.type, enabled=False):
            for layer, states in enumerate(outputs.intermediate_hidden_states.float().unbind(1)):
                start = inverse_sigmoid(references[layer].float())
                logits.append(self.class_embed[layer](states))  # [batch, queries, classes + 1]
                shift = self.bbox_embed[layer](states)  # [batch, queries, 4]
                pred_boxes.append((shift + pad(start, (0, 4 - start.shape[-1]))).sigmoid())
        output = DeformableDetrObjectDetectionOutput(logits=logits[-1], pred_boxes=pred_boxes[-1])
        if labels is not None:
            output.loss, output.loss_dict = detection_loss(
                torch.stack(logits), torch.stack(pred_boxes), labels, self.config, num_items_in_batch
            )
        return output


def build_deformable(config: Config, class_prior: Sequence[float] | None = None) -> DeformableDetector:
    """A detector with the pretrained backbone inside and the original's initialisation, all in fp32.

    Raises:
        UserError: the backbone cannot be had.
    """
    backbone = load_backbone(config)
    depth = backbone.config.num_hidden_layers
    backbone.config.out_indices = sorted({max(1, round(depth * level / LEVELS)) for level in range(1, LEVELS + 1)})
    names = (*CLASS_NAMES, NO_OBJECT)
    model = DeformableDetector(
        DeformableDetrConfig(
            backbone_config=backbone.config,
            num_feature_levels=len(backbone.config.out_indices),
            num_queries=config.num_queries,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            d_model=config.d_model,
            encoder_ffn_dim=config.d_model * 4,
            decoder_ffn_dim=config.d_model * 4,
            dropout=config.dropout,
            with_box_refine=True,
            tie_word_embeddings=False,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        ),
        backbone,
    )
    _initialise(model, class_prior)
    return model


@torch.no_grad()
def _initialise(model: DeformableDetector, class_prior: Sequence[float] | None) -> None:
    """The original's: xavier, boxes unshifted, sides of an eighth; sampling offsets are the library's."""
    detr: Any = model.model
    for part in (detr.encoder, detr.decoder, detr.input_proj):
        for name, module in part.named_modules():
            kept = name.endswith(("sampling_offsets", "attention_weights"))
            for parameter in module.parameters() if isinstance(module, nn.Linear | nn.Conv2d) and not kept else ():
                (nn.init.xavier_uniform_ if parameter.dim() > 1 else nn.init.zeros_)(parameter)
    nn.init.normal_(detr.query_position_embeddings.weight)
    boxes: Any = model.bbox_embed
    for head in boxes:
        for layer in head.layers[:-1]:
            layer.reset_parameters()
        for parameter in head.layers[-1].parameters():
            nn.init.zeros_(parameter)
    boxes[0].layers[-1].bias[2:] = -2.0
    prior = torch.tensor(class_prior if class_prior is not None else [1.0] * (len(CLASS_NAMES) + 1)).clamp(min=1e-3)
    prior[-1] *= model.config.eos_coefficient
    for head in model.class_embed:
        head.reset_parameters()
        head.bias.copy_((prior / prior.sum()).log())
