"""The one rule for sizes: how large an image is when the detector sees it.

Geometry(960, 1536).resized(1080, 1920)  # (864, 1536)
"""

from __future__ import annotations

from dataclasses import dataclass

from recipe.config import PATCH


@dataclass(frozen=True)
class Geometry:
    """Resize so that the shortest side is `shortest_edge` unless the longest would pass `longest_edge` (pixels)."""

    shortest_edge: int = 960
    longest_edge: int = 1536

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that an image of this size is resized to: multiples of the patch of 16 pixels.

        Equal to what `YolosImageProcessor`, the processor that is saved, computes for the same two edges
        (transformers' `get_size_with_aspect_ratio_yolos`, its order of rounding included), wherever that is not 0. As
        there, a landscape image whose height already fits keeps its width: 1580x16 becomes 1568x16.
        """
        short, long = min(height, width), max(height, width)
        exact: float = self.shortest_edge  # the new short side, before it is rounded
        if long / short * exact > self.longest_edge:
            exact = self.longest_edge * short / long
        new_short = round(exact)
        kept = height <= width and height == new_short
        new_long = long if kept else int(exact * long / short)
        new_short, new_long = (max(side - side % PATCH, PATCH) for side in (new_short, new_long))
        return (new_long, new_short) if height > width else (new_short, new_long)
