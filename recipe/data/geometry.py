"""The one rule for sizes: how large an image becomes, and on which canvas it lies.

    Geometry(960, 1536).resized(1080, 1920)  # (864, 1536), on the canvas (960, 1536)

Training, evaluation, the saved processor and the reports all ask here. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipe.config import PATCH


def is_portrait(height: int, width: int) -> bool:
    """Higher than wide; a square lies on the landscape canvas."""
    return height > width


@dataclass(frozen=True)
class Geometry:
    """Resize so that the shortest side is `shortest_edge` unless the longest would pass `longest_edge` (pixels)."""

    shortest_edge: int = 960
    longest_edge: int = 1536

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that an image of this size is resized to, both at least 1.

        Equal to what the stock `DetrImageProcessor` computes for the same two edges, its order of rounding included,
        but for two corners in which the stock rule leaves its own limits: a side that it rounds to 0 is 1 here, and a
        panorama that it keeps a few pixels beyond `longest_edge` (1537x300) ends at that edge, as the canvas does.
        """
        short, long = min(height, width), max(height, width)
        edge: float = self.shortest_edge
        if long / short * edge > self.longest_edge:
            edge = self.longest_edge * short / long
        new_short = round(edge)
        new_long = long if new_short == short else int(edge * long / short)
        new_short, new_long = max(new_short, 1), min(max(new_long, 1), self.longest_edge)
        return (new_long, new_short) if is_portrait(height, width) else (new_short, new_long)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """The static (height, width), in whole patches, on which an image of this size lies at the top left."""
        short, long = (-(-edge // PATCH) * PATCH for edge in (self.shortest_edge, self.longest_edge))
        return (long, short) if is_portrait(height, width) else (short, long)
