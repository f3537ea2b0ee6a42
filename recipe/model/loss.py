"""Hungarian matching and the DETR losses, per image instead of across the batch, and in fp32.

    loss, loss_dict = detection_loss(logits, pred_boxes, labels, model.config, num_items_in_batch)

Assignments and losses are those of transformers, whose matcher builds one cost matrix over every pair of images, once
per decoder layer, in the dtype of autocast. Here each image has its own, and one copy of all goes to the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import l1_loss
from torchvision.ops import box_area, box_convert, box_iou, generalized_box_iou, generalized_box_iou_loss
from transformers import DetrConfig

LOSSES = ("loss_ce", "loss_bbox", "loss_giou")
Labels = list[dict[str, Tensor]]


def count_items(batches: Sequence[dict[str, Any]], num_queries: int) -> Tensor:
    """What `detection_loss` divides by: the matched boxes and the images of `batches`, float [2].

    Boxes beyond the queries carry no loss and must not dilute that of the others.
    """
    sizes = [len(label["boxes"]) for batch in batches for label in batch["labels"]]
    return torch.tensor([sum(min(size, num_queries) for size in sizes), len(sizes)], dtype=torch.float32)


def detection_loss(
    logits: Tensor, pred_boxes: Tensor, labels: Labels, config: DetrConfig, num_items_in_batch: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The set prediction loss of DETR (Carion et al. 2020), summed over the decoder layers.

    Args:
        logits: [layers, batch, queries, classes + 1], the last class is "no object".
        pred_boxes: [layers, batch, queries, 4] cxcywh in [0, 1].
        labels: per image `class_labels` [n] and `boxes` [n, 4] cxcywh, normalised by the image's own resized size;
            also, where there are any, `labelled` bool [classes], the classes that were annotated in this image, and
            `ignored` [k, 4] cxcywh, regions whose contents were not.
        num_items_in_batch: [2], matched boxes and images of the optimizer step over all processes (`count_items`):
            gradients of micro-batches and processes then add up to those of one batch. Left out: those of this batch.

    Returns:
        The weighted sum over layers; `loss_ce`, `loss_bbox`, `loss_giou` of the last layer, and with the suffix `_0`,
        `_1` ... those of the layers before it.
    """
    logits, pred_boxes = logits.float(), pred_boxes.float()  # bf16 boxes are 3 px off at a width of 1536
    layers, _, queries, _ = logits.shape
    query, target = match(logits, pred_boxes, labels, config)  # each [layers, matched]
    items = count_items([{"labels": labels}], queries) if num_items_in_batch is None else num_items_in_batch
    count, images = items.to(logits.device)  # of boxes and images
    class_loss = _class_loss(logits, pred_boxes, labels, query, target, config.eos_coefficient)  # [layers]

    target_boxes = torch.cat([label["boxes"] for label in labels])[target]  # [layers, matched, 4]
    matched = pred_boxes.reshape(layers, -1, 4).gather(1, query[..., None].expand(-1, -1, 4))
    giou = generalized_box_iou_loss(*(box_convert(boxes, "cxcywh", "xyxy") for boxes in (matched, target_boxes)))
    losses = {
        "loss_ce": class_loss / (count + config.eos_coefficient * (images * queries - count)),
        "loss_bbox": l1_loss(matched, target_boxes, reduction="none").sum((1, 2)) / count.clamp(min=1),
        "loss_giou": giou.sum(1) / count.clamp(min=1),
    }
    weights = dict(zip(LOSSES, (1, config.bbox_loss_coefficient, config.giou_loss_coefficient), strict=True))
    loss = torch.stack([weights[name] * value.sum() for name, value in losses.items()]).sum()
    suffixes = [f"_{layer}" for layer in range(layers - 1)] + [""]
    return loss, {name + suffixes[layer]: value[layer] for name, value in losses.items() for layer in range(layers)}


@torch.no_grad()
def match(logits: Tensor, pred_boxes: Tensor, labels: Labels, config: DetrConfig) -> tuple[Tensor, Tensor]:
    """Assign to every target box its own query, per image and per decoder layer, at the least total cost.

    Returns:
        Two index tensors [layers, matched]: into the flattened [batch * queries] predictions, and into the
        concatenated targets. An image with more boxes than queries matches as many as there are queries.
    """
    layers, _, queries, _ = logits.shape
    shares, pred_xyxy = logits.softmax(-1), box_convert(pred_boxes, "cxcywh", "xyxy")
    costs = []  # for each image [layers, queries, n]
    for image, label in enumerate(labels):
        giou = generalized_box_iou(pred_xyxy[:, image].flatten(0, 1), box_convert(label["boxes"], "cxcywh", "xyxy"))
        cost = config.bbox_cost * torch.cdist(pred_boxes[:, image], label["boxes"], p=1)
        cost -= config.giou_cost * giou.view(layers, queries, len(label["boxes"]))
        costs.append(cost - config.class_cost * shares[:, image][..., label["class_labels"]])
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
    logits: Tensor, pred_boxes: Tensor, labels: Labels, query: Tensor, target: Tensor, eos_coefficient: float
) -> Tensor:
    """Cross entropy summed over queries, "no object" weighted by `eos_coefficient`, [layers]."""
    log_shares = logits.log_softmax(-1)  # [layers, batch, queries, classes + 1]
    background = log_shares[..., -1]
    if "labelled" in labels[0]:  # what nobody annotated may be there: "no object" or one of the unlabelled classes
        allowed = torch.stack([torch.cat([~label["labelled"], label["labelled"].new_ones(1)]) for label in labels])
        background = log_shares.masked_fill(~allowed[:, None], -torch.inf).logsumexp(-1)
    weight = torch.full_like(background, eos_coefficient)
    for image, label in enumerate(labels):
        if len(label.get("ignored", ())):
            inside = _share_inside(pred_boxes[:, image].detach(), label["ignored"]) > 0.5  # [layers, queries, k]
            weight[:, image].masked_fill_(inside.any(-1), 0)
    wanted = torch.cat([label["class_labels"] for label in labels])[target]  # [layers, matched]
    matched = log_shares.flatten(1, 2).gather(1, query[..., None].expand(-1, -1, logits.shape[-1]))
    matched = matched.gather(-1, wanted[..., None])[..., 0]  # [layers, matched]
    weight = weight.flatten(1).scatter(1, query, 1.0)
    return -(weight * background.flatten(1).scatter(1, query, matched)).sum(1)


def _share_inside(boxes: Tensor, regions: Tensor) -> Tensor:
    """Share of each box's area that lies in each region, both cxcywh: [layers, queries, 4], [k, 4] -> [..., k]."""
    xyxy, regions_xyxy = box_convert(boxes.flatten(0, 1), "cxcywh", "xyxy"), box_convert(regions, "cxcywh", "xyxy")
    iou = box_iou(xyxy, regions_xyxy)
    share = iou / (1 + iou) * (1 + box_area(regions_xyxy) / box_area(xyxy)[:, None])
    return share.view(*boxes.shape[:2], len(regions))
