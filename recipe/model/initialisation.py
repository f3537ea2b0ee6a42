"""What a new detector starts from: DETR's own initialisation, and then the weights of a COCO DETR.

initialise(model, class_prior=[0.05, 0.05, 0.9])
start_from_coco(model, "facebook/detr-resnet-50")
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn
from transformers import DetrConfig, DetrForObjectDetection, DINOv3ViTConfig

from recipe.hub import first_line
from recipe.model.backbone import BACKBONE_PREFIX, UNREADABLE, tiny_backbone
from recipe.schema import CLASS_NAMES, UserError

logger = logging.getLogger(__name__)


@torch.no_grad()
def initialise(model: DetrForObjectDetection, class_prior: Sequence[float] | None = None) -> None:
    """DETR's own initialisation (Carion et al. 2020, their code): xavier in the transformer, N(0, 1) queries.

    transformers draws everything from N(0, 0.02), queries too: all 300 first boxes then agree to 6e-6. The
    classifier's bias starts at the log of the prior, weighted as in the loss: the first steps need not learn it.
    """
    detr = model.model
    for module in (*detr.encoder.modules(), *detr.decoder.modules()):
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
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

    transformers renames the legacy keys; the donor's backbone and input_projection are left behind. Queries beyond the
    donor's keep their N(0, 1) start. The rows of `person` and "no object" come with their biases; `head`, which COCO
    has not, keeps its own row and the prior that it had relative to "no object".

    Raises:
        UserError: not a DETR, or one of this recipe.
    """
    try:
        config = DetrConfig.from_pretrained(name)
        if config.backbone_config.model_type == DINOv3ViTConfig.model_type:
            raise UserError(
                f"--detr_init {name}: is a detector of this recipe. Start from all of it by `--init_from {name}`"
            )
        shapes = [(it.d_model, it.encoder_layers, it.decoder_layers) for it in (config, model.config)]
        if shapes[0] != shapes[1]:
            logger.warning("detr_init: %s has another shape than this detector; starting from scratch.", name)
            return False
        config.backbone_config = tiny_backbone()
        donor, report = DetrForObjectDetection.from_pretrained(
            name, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except UNREADABLE as error:
        logger.warning("detr_init: %s cannot be fetched (%s); starting from scratch.", name, first_line(error))
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
    mine, theirs = model.class_labels_classifier, donor.class_labels_classifier
    mine.bias += theirs.bias[-1] - mine.bias[-1]  # changes no share: a softmax knows differences only
    for here, there in ((0, person), (-1, -1)):
        mine.weight[here], mine.bias[here] = theirs.weight[there], theirs.bias[there]
    logger.info("detr_init: encoder, decoder and %d queries from %s", len(queries), name)
    return True
