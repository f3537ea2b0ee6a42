"""A large image in tiles that overlap, and one list of boxes from what was found in each.

    tiles = tile_image(3000, 4000, (960, 1536), overlap=0.2)
    keep = merge(views_xyxy, view, boxes_xyxy, scores, labels)

A detector gives no box twice, so boxes are compared between views only: within one, two people may well overlap.
"""

from __future__ import annotations

import numpy as np

SAME = 0.5  # IoU from which boxes of two views are one object
INSIDE = 0.7  # share of a cut box that lies in the box of another view which shows more of the object
NEAR = 0.01  # of the view's side: so near to its border a box is taken to be cut


def tile_image(height: int, width: int, tile: tuple[int, int], overlap: float) -> np.ndarray:
    """Tiles of one size, at most `tile` (height, width), that overlap by `overlap` of their side or more.

    Returns:
        int64 [n, 4] xyxy; the image itself if it is not larger than a tile.
    """
    sides = min(height, tile[0]), min(width, tile[1])
    rows, columns = (_starts(length, side, overlap) for length, side in zip((height, width), sides, strict=True))
    return np.array([(x, y, x + sides[1], y + sides[0]) for y in rows for x in columns])


def _starts(length: int, side: int, overlap: float) -> list[int]:
    count = 1 + int(np.ceil((length - side) / max(side * (1 - overlap), 1)))
    return np.linspace(0, length - side, count).round().astype(int).tolist()


def merge(
    views_xyxy: np.ndarray, view: np.ndarray, boxes_xyxy: np.ndarray, scores: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """The rows that stay when boxes of overlapping views become one list.

    First come the boxes that no view's border cuts, by score, then the others, by area. Each takes away, of its class:
    in each other view the box most like it (IoU from `SAME`), and the cut boxes that lie in it. An object cut in every
    view stays in parts, which the complete image as one of the views prevents.

    Args:
        views_xyxy: [v, 4] in pixels of the image; together they cover it.
        view: [n], in which view each box was found.
        boxes_xyxy: [n, 4] in pixels of the image; scores, labels: [n].
    """
    # Cut is a box that ends at a border of its view which is not the image's own.
    image_xyxy = np.concatenate([views_xyxy[:, :2].min(0), views_xyxy[:, 2:].max(0)])
    sides = np.tile(views_xyxy[:, 2:] - views_xyxy[:, :2], 2)  # [v, 4]
    inwards = (boxes_xyxy - views_xyxy[view]) * [1, 1, -1, -1]  # [n, 4], how far from each border
    cut = ((inwards < NEAR * sides[view]) & (views_xyxy != image_xyxy)[view]).any(1)  # [n]
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clip(0).prod(1)  # [n]
    waits, stays = np.ones(len(scores), bool), np.ones(len(scores), bool)
    order = np.lexsort((-scores, -area * cut, cut))
    for row in order:
        if not stays[row]:
            continue
        waits[row] = False
        others = np.flatnonzero(stays & (labels == labels[row]) & (view != view[row]))
        corner = np.maximum(boxes_xyxy[others, :2], boxes_xyxy[row, :2])
        shared = (np.minimum(boxes_xyxy[others, 2:], boxes_xyxy[row, 2:]) - corner).clip(0).prod(1)
        iou = shared / np.maximum(area[others] + area[row] - shared, 1e-9)
        stays[others[cut[others] & (shared >= INSIDE * area[others])]] = False
        alike = np.flatnonzero((iou >= SAME) & waits[others])
        alike = alike[np.argsort(-iou[alike], kind="stable")]
        _, best = np.unique(view[others[alike]], return_index=True)  # the first, so the most alike, of each view
        stays[others[alike[best]]] = False
    return order[stays[order]]
