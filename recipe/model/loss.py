"""Hungarian matching and the losses of both detectors, per image instead of across the batch, and in fp32.

    loss, loss_dict = detection_loss(logits, pred_boxes, labels, model.config, num_items_in_batch)

Assignments and losses are those of transformers, whose matcher builds one cost matrix over every pair of images, once
per decoder layer, in the dtype of autocast. Here each image has its own, and one copy of all goes to the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import l1_loss
from torchvision.ops import box_area, box_convert, box_iou, generalized_box_iou, generalized_box_iou_loss
from torchvision.ops import sigmoid_focal_loss as focal_loss  # by default alpha 0.25 and gamma 2, as in the paper
from transformers import DeformableDetrConfig, DetrConfig

LOSSES = ("loss_ce", "loss_bbox", "loss_giou")
Labels = list[dict[str, Tensor]]
AnyConfig: TypeAlias = DetrConfig | DeformableDetrConfig


def count_items(batches: Sequence[dict[str, Any]], num_queries: int) -> Tensor:
    """The matched boxes and the images of `batches`, float [2]: boxes beyond the queries would dilute the others."""
    sizes = [len(label["boxes"]) for batch in batches for label in batch["labels"]]
    return torch.tensor([sum(min(size, num_queries) for size in sizes), len(sizes)], dtype=torch.float32)


def loss_weights(config: AnyConfig) -> dict[str, float]:
    """What each part counts: 1, 5, 2 in DETR and 2, 5, 2 in Deformable DETR, as in their matching."""
    weights = (config.class_cost, config.bbox_loss_coefficient, config.giou_loss_coefficient)
    return dict(zip(LOSSES, weights, strict=True))


def detection_loss(
    logits: Tensor, pred_boxes: Tensor, labels: Labels, config: AnyConfig, num_items_in_batch: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The set prediction loss, summed over the decoder layers.

    Args:
        logits: [layers, batch, queries, classes + 1], the last class is "no object".
        pred_boxes: [layers, batch, queries, 4] cxcywh in [0, 1].
        labels: per image `class_labels` [n] and `boxes` [n, 4] cxcywh, normalised by the image's own resized size;
            `labelled` bool [classes], the classes that were annotated in this image; and `ignored` [k, 4] cxcywh,
            regions whose contents were not.
        num_items_in_batch: [2], matched boxes and images of the optimizer step over all processes (`count_items`):
            gradients of micro-batches and processes then add up to those of one batch. Left out: those of this batch.

    Returns:
        The weighted sum over layers; `loss_ce`, `loss_bbox`, `loss_giou`, each [layers].
    """
    logits, pred_boxes = logits.float(), pred_boxes.float()  # bf16 boxes are 3 px off at a width of 1536
    layers, _, queries, _ = logits.shape
    query, target = match(logits, pred_boxes, labels, config)  # each [layers, matched]
    items = count_items([{"labels": labels}], queries) if num_items_in_batch is None else num_items_in_batch
    items = items.to(logits.device)
    count = items[0].clamp(min=1)
    target_boxes = torch.cat([label["boxes"] for label in labels])[target]  # [layers, matched, 4]
    matched = pred_boxes.reshape(layers, -1, 4).gather(1, query[..., None].expand(-1, -1, 4))
    giou = generalized_box_iou_loss(*(box_convert(boxes, "cxcywh", "xyxy") for boxes in (matched, target_boxes)))
    losses = {
        "loss_ce": _class_loss(logits, pred_boxes, labels, query, target, config, items),
        "loss_bbox": l1_loss(matched, target_boxes, reduction="none").sum((1, 2)) / count,
        "loss_giou": giou.sum(1) / count,
    }
    return torch.stack([weight * losses[name].sum() for name, weight in loss_weights(config).items()]).sum(), losses


@torch.no_grad()
def match(logits: Tensor, pred_boxes: Tensor, labels: Labels, config: AnyConfig) -> tuple[Tensor, Tensor]:
    """Give every target box its own query, per image and decoder layer, at the least total cost; queries may run out.

    Returns two index tensors [layers, matched]: into the flattened predictions, and into the concatenated targets.
    """
    layers, _, queries, _ = logits.shape
    pred_xyxy = box_convert(pred_boxes, "cxcywh", "xyxy")
    if isinstance(config, DeformableDetrConfig):  # what a match adds to the focal loss
        class_costs = focal_loss(logits, torch.ones_like(logits)) - focal_loss(logits, torch.zeros_like(logits))
    else:
        class_costs = -logits.softmax(-1)
    costs = []  # for each image [layers, queries, n]
    for image, label in enumerate(labels):
        giou = generalized_box_iou(pred_xyxy[:, image].flatten(0, 1), box_convert(label["boxes"], "cxcywh", "xyxy"))
        cost = config.bbox_cost * torch.cdist(pred_boxes[:, image], label["boxes"], p=1)
        cost -= config.giou_cost * giou.view(layers, queries, len(label["boxes"]))
        costs.append(cost + config.class_cost * class_costs[:, image][..., label["class_labels"]])
    # A broken prediction must not break the solver: the loss turns non-finite by itself, and training stops on that.
    together = torch.cat(costs, dim=-1).nan_to_num(nan=1e6, posinf=1e6, neginf=1e6)
    columns = np.cumsum([0, *(len(label["boxes"]) for label in labels)])  # where each image's begin
    pairs = []
    for layer in together.cpu().numpy():  # the one host read
        for image, (first, last) in enumerate(pairwise(columns)):
            query, target = linear_sum_assignment(layer[:, first:last])
            pairs.append(np.stack([query + image * queries, target + first]))
    query, target = torch.from_numpy(np.concatenate(pairs, axis=1).reshape(2, layers, -1)).to(logits.device)
    return query, target


def _class_loss(
    logits: Tensor, pred_boxes: Tensor, labels: Labels, query: Tensor, target: Tensor, config: AnyConfig, items: Tensor
) -> Tensor:
    """DETR's cross entropy (Carion et al. 2020), or Deformable DETR's focal loss (Lin et al. 2017): [layers]."""
    (layers, _, queries, classes), (count, images) = logits.shape, items  # "no object" is the last class
    logits = logits.flatten(1, 2)  # [layers, batch * queries, classes]
    # What a query may see where no box is: "no object", or a class that nobody annotated in this image.
    possible = torch.stack([torch.cat([~label["labelled"], label["labelled"].new_ones(1)]) for label in labels])
    possible = possible.repeat_interleave(queries, 0).expand(layers, -1, -1)  # [layers, batch * queries, classes]
    wanted = torch.cat([label["class_labels"] for label in labels])[target]  # [layers, matched]
    wanted = wanted[..., None] == torch.arange(classes, device=logits.device)  # [layers, matched, classes]
    truth = possible.scatter(1, query[..., None].expand_as(wanted), wanted)
    matched = torch.zeros_like(truth[..., 0]).scatter(1, query, True)  # [layers, batch * queries]
    ignored = torch.cat([_ignored(pred_boxes[:, image], label) for image, label in enumerate(labels)], dim=1)
    learnt = matched | ~ignored
    if isinstance(config, DeformableDetrConfig):  # "no object" is no sigmoid: its logit stays 0
        learnt = learnt[..., None] & (matched[..., None] | ~possible)
        return (learnt * focal_loss(logits, truth.float()))[..., :-1].sum((1, 2)) / count.clamp(min=1)
    weight = learnt * torch.where(matched, 1.0, config.eos_coefficient)
    shares = logits.log_softmax(-1).masked_fill(~truth, -torch.inf).logsumexp(-1)  # [layers, batch * queries]
    return -(weight * shares).sum(1) / (count + config.eos_coefficient * (images * queries - count))


def _ignored(pred_boxes: Tensor, label: dict[str, Tensor]) -> Tensor:
    """Which of one image's boxes [layers, queries, 4] lie by more than half in a region that is ignored."""
    boxes_xyxy = box_convert(pred_boxes.detach().flatten(0, 1), "cxcywh", "xyxy")
    regions_xyxy = box_convert(label["ignored"], "cxcywh", "xyxy")
    iou = box_iou(boxes_xyxy, regions_xyxy)
    share = iou / (1 + iou) * (1 + box_area(regions_xyxy) / box_area(boxes_xyxy)[:, None])
    return (share > 0.5).any(-1).view(pred_boxes.shape[:2])
