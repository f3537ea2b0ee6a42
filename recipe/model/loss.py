"""Hungarian matching and the DETR losses, per image instead of across the batch, and in fp32.

    model.loss_function = detection_loss

transformers' own matcher builds one cost matrix over every pair of images in the batch (it grows with the square of
the batch), once per decoder layer, in whatever dtype autocast left behind. Here all layers are stacked, each image is
matched with its own boxes alone, one copy goes to the CPU and one comes back. Same assignments, same losses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import cross_entropy, l1_loss
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert, generalized_box_iou_loss
from transformers import DetrConfig

Labels = list[dict[str, Tensor]]


def detection_loss(
    logits: Tensor,
    labels: Labels,
    device: torch.device,
    pred_boxes: Tensor,
    config: DetrConfig,
    outputs_class: Tensor | None = None,
    outputs_coord: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, dict[str, Tensor], list[dict[str, Tensor]] | None]:
    """The set prediction loss of DETR (Carion et al. 2020), with transformers' signature for `model.loss_function`.

    Args:
        logits: [batch, queries, classes + 1], the last class is "no object".
        labels: per image `class_labels` [n] and `boxes` [n, 4] cxcywh, normalised by the image's own resized size.
        pred_boxes: [batch, queries, 4] cxcywh in [0, 1].
        outputs_class, outputs_coord: the same for every decoder layer, [layers, batch, queries, ...]; the last entry
            is replaced by `logits` and `pred_boxes`, as in transformers.

    Returns:
        The weighted sum over layers; `loss_ce`, `loss_bbox`, `loss_giou` of the last layer, and with the suffix `_0`,
        `_1` ... those of the layers before it; the auxiliary outputs.
    """
    all_logits, all_boxes = logits[None], pred_boxes[None]
    if outputs_class is not None and outputs_coord is not None:
        all_logits = torch.cat([outputs_class[:-1], all_logits])  # [layers, batch, queries, classes + 1]
        all_boxes = torch.cat([outputs_coord[:-1], all_boxes])  # [layers, batch, queries, 4]
    all_logits, all_boxes = all_logits.float(), all_boxes.float()  # bf16 boxes are 3 px off at a width of 1536
    query, target = match(all_logits, all_boxes, labels, config)
    losses = _losses(all_logits, all_boxes, labels, query, target, config)  # each [layers]
    weights = {"loss_ce": 1, "loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
    loss = torch.stack([weights[name] * value.sum() for name, value in losses.items()]).sum()
    layers = len(all_logits)
    names = [f"_{layer}" for layer in range(layers - 1)] + [""]
    loss_dict = {name + names[layer]: value[layer] for name, value in losses.items() for layer in range(layers)}
    auxiliary = [{"logits": a, "pred_boxes": b} for a, b in zip(all_logits[:-1], all_boxes[:-1], strict=True)]
    return loss, loss_dict, auxiliary or None


@torch.no_grad()
def match(all_logits: Tensor, all_boxes: Tensor, labels: Labels, config: DetrConfig) -> tuple[Tensor, Tensor]:
    """Assign to every target box its own query, per image and per decoder layer, at the least total cost.

    Returns:
        Two index tensors [layers, matched]: into the flattened [batch * queries] predictions, and into the
        concatenated targets. An image with more boxes than queries matches as many as there are queries.
    """
    layers, _, queries, _ = all_logits.shape
    sizes = [len(label["boxes"]) for label in labels]
    starts = np.cumsum([0, *sizes])
    cost = _cost(all_logits, all_boxes, labels, config).cpu().numpy()  # [layers, batch, queries, most boxes]
    picked_queries: list[list[np.ndarray]] = [[] for _ in range(layers)]
    picked_targets: list[list[np.ndarray]] = [[] for _ in range(layers)]
    for layer in range(layers):
        for image, size in enumerate(sizes):
            query, target = linear_sum_assignment(cost[layer, image, :, :size])
            picked_queries[layer].append(query + image * queries)
            picked_targets[layer].append(target + starts[image])
    pairs = np.stack([[np.concatenate(row) for row in picked] for picked in (picked_queries, picked_targets)])
    query, target = torch.from_numpy(pairs.astype(np.int64)).to(all_logits.device)
    return query, target


def _cost(all_logits: Tensor, all_boxes: Tensor, labels: Labels, config: DetrConfig) -> Tensor:
    """Cost of every query for every box of its own image, [layers, batch, queries, most boxes]."""
    boxes = pad_sequence([label["boxes"] for label in labels], batch_first=True, padding_value=0.5)  # [batch, most, 4]
    classes = pad_sequence([label["class_labels"] for label in labels], batch_first=True)  # [batch, most]
    chosen = classes[:, None].expand(-1, all_logits.shape[2], -1)  # [batch, queries, most]
    sides = box_convert(boxes, "cxcywh", "xyxy")[:, None].unbind(-1)  # four of [batch, 1, most]
    costs = []
    for logits, pred_boxes in zip(all_logits, all_boxes, strict=True):  # layer by layer: it stays in the cache
        cost = logits.softmax(-1).gather(-1, chosen).mul_(-config.class_cost)
        cost += torch.cdist(pred_boxes, boxes, p=1).mul_(config.bbox_cost)
        pred_sides = box_convert(pred_boxes, "cxcywh", "xyxy")[:, :, None].unbind(-1)  # four of [batch, queries, 1]
        costs.append(cost.sub_(_pairwise_giou(pred_sides, sides).mul_(config.giou_cost)))
    # A broken prediction must not break the solver: the loss turns non-finite by itself, and training stops on that.
    return torch.stack(costs).nan_to_num_(nan=1e6, posinf=1e6, neginf=1e6)


def _pairwise_giou(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) of boxes given as x0, y0, x1, y1, broadcast against each other."""
    ax0, ay0, ax1, ay1 = a
    bx0, by0, bx1, by1 = b
    overlap = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp_(min=0)
    overlap *= (torch.minimum(ay1, by1) - torch.maximum(ay0, by0)).clamp_(min=0)
    union = ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0)).sub_(overlap)
    hull = (torch.maximum(ax1, bx1) - torch.minimum(ax0, bx0)).mul_(torch.maximum(ay1, by1) - torch.minimum(ay0, by0))
    return overlap.div_(union).add_(union.div_(hull)).sub_(1)


def _losses(
    all_logits: Tensor, all_boxes: Tensor, labels: Labels, query: Tensor, target: Tensor, config: DetrConfig
) -> dict[str, Tensor]:
    layers, batch, queries, classes = all_logits.shape
    wanted = torch.full((layers, batch * queries), classes - 1, device=all_logits.device)  # "no object"
    wanted.scatter_(1, query, torch.cat([label["class_labels"] for label in labels])[target])
    weight = torch.ones(classes, device=all_logits.device)
    weight[-1] = config.eos_coefficient
    ce = cross_entropy(all_logits.reshape(-1, classes), wanted.reshape(-1), weight, reduction="none")
    loss_ce = ce.view(layers, -1).sum(1) / weight[wanted].sum(1)

    boxes = torch.cat([label["boxes"] for label in labels])[target]  # [layers, matched, 4]
    matched = all_boxes.reshape(layers, -1, 4).gather(1, query[..., None].expand(-1, -1, 4))
    giou = generalized_box_iou_loss(box_convert(matched, "cxcywh", "xyxy"), box_convert(boxes, "cxcywh", "xyxy"))
    # The matched boxes, not all boxes: those beyond the queries carry no loss and must not dilute the others.
    count = torch.tensor(float(query.shape[1]), device=all_logits.device)
    if PartialState._shared_state:  # as DETR does: the mean over processes, so that a crowd on one GPU counts fully
        count = reduce(count, reduction="mean")
    count = count.clamp(min=1)
    return {
        "loss_ce": loss_ce,
        "loss_bbox": l1_loss(matched, boxes, reduction="none").sum((1, 2)) / count,
        "loss_giou": giou.sum(1) / count,
    }
