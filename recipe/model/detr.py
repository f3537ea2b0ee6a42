"""DETR (Carion et al. 2020) over a frozen DINOv3, for images of one size without padding.

Saved as a plain `DetrForObjectDetection` checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers import DetrConfig, DetrForObjectDetection
from transformers.models.detr.modeling_detr import DetrEncoderLayer, DetrObjectDetectionOutput

from recipe.model.backbone import FrozenBackbone, shallow
from recipe.model.loss import Labels, detection_loss
from recipe.schema import CLASS_NAMES


class EncoderLayer(DetrEncoderLayer):
    """DETR's encoder layer without its `isfinite().all()`: a host read each, against overflows that only fp16 has."""

    def forward(self, hidden_states: Tensor, mask: None, spatial_position_embeddings: Any = None, **_: Any) -> Tensor:
        attended, _ = self.self_attn(hidden_states, mask, spatial_position_embeddings)
        hidden_states = hidden_states + dropout(attended, self.dropout, self.training)
        hidden_states = self.self_attn_layer_norm(hidden_states)
        return self.final_layer_norm(hidden_states + self.mlp(hidden_states))


class Detr(DetrForObjectDetection):
    """Same tensors, names and outputs as the stock class.

    Different: the backbone is a fixed function, the heads stay out of autocast (boxes rounded to bf16 cap mAP at 0.48
    for heads of 8 to 16 pixels), there is no mask, and every decoder layer has its loss although `auxiliary_loss` is
    false. That flag would change the decoder: each layer would read normed states and the last be normed twice.
    """

    LABELS = CLASS_NAMES
    LEVELS = 1
    FFN = 8  # times d_model: DETR's 2048 at its width of 256
    SETTINGS = {"auxiliary_loss": False}  # noqa: RUF012

    def __init__(self, config: DetrConfig, backbone: FrozenBackbone | None = None) -> None:
        frozen, config.backbone_config = config.backbone_config, shallow(config.backbone_config)
        super().__init__(config)
        config.backbone_config = frozen
        self.model.backbone.model = backbone or FrozenBackbone(frozen)
        self.model.encoder.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def initialise_heads(self, class_prior: Sequence[float]) -> None:
        """The classifier starts at the prior as the loss weighs it: the first steps need not learn it."""
        prior = torch.tensor(class_prior).clamp(min=1e-3)
        prior[-1] *= self.config.eos_coefficient
        self.class_labels_classifier.bias.copy_((prior / prior.sum()).log())

    def forward(
        self, pixel_values: Tensor, labels: Labels | None = None, num_items_in_batch: Tensor | None = None, **_: Any
    ) -> DetrObjectDetectionOutput:
        """Detect, and with `labels` compute the loss.

        Args:
            pixel_values: [batch, 3, height, width], normalised; both sides are multiples of 16.
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
            output_hidden_states=True,
        )
        earlier = [detr.decoder.layernorm(state) for state in decoded.hidden_states[1:-1]]
        if self.config.auxiliary_loss:  # a checkpoint of before 0.2.0: trained along the changed decoder, and kept so
            earlier = decoded.intermediate_hidden_states[:-1]
        states = torch.stack([*earlier, decoded.last_hidden_state])  # [layers, batch, queries, d_model]
        with torch.autocast(states.device.type, enabled=False):
            logits = self.class_labels_classifier(states.float())  # [layers, batch, queries, classes + 1]
            pred_boxes = self.bbox_predictor(states.float()).sigmoid()  # [layers, batch, queries, 4]
        output = DetrObjectDetectionOutput(logits=logits[-1], pred_boxes=pred_boxes[-1])
        if labels is not None:
            output.loss, output.loss_dict = detection_loss(logits, pred_boxes, labels, self.config, num_items_in_batch)
        return output
