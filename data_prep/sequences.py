"""Frames of one film are no independent photographs: `sequence_of(name)`, and a split that keeps them together."""

from __future__ import annotations

import logging
import os
import random
from collections import defaultdict

from data_prep.entries import Split
from recipe.schema import UserError

log = logging.getLogger(__name__)


def sequence_of(name: str) -> str:
    """`film/frame_` of `film/frame_0012.jpg`: frames differ only in trailing digits. A numbered image stands alone."""
    return os.path.splitext(name)[0].rstrip("0123456789") or name


def hold_out(split: Split, fraction: float, seed: int) -> Split:
    """Move about `fraction` of a split's images to a new one, complete sequences at random.

    Where every sequence is longer than that, it is the end of the longest one.

    Raises:
        UserError: nothing would be left in one of the two.
    """
    sequences = defaultdict(list)
    for entry in split.entries:
        sequences[sequence_of(entry.name)].append(entry)
    wanted = round(fraction * len(split.entries))
    held: set[str] = set()
    for sequence in random.Random(seed).sample(sorted(sequences), len(sequences)):
        if len(held) + len(sequences[sequence]) <= wanted:
            held |= {entry.image for entry in sequences[sequence]}
    if not held and wanted:
        longest = max(sequences.values(), key=len)
        held = {entry.image for entry in longest[-wanted:]}
        log.info(
            "every sequence is longer than --val-fraction: its images are the last frames of %s*", longest[0].name
        )
    kept = [entry for entry in split.entries if entry.image not in held]
    if not held or not kept:
        raise UserError(f"--val-fraction {fraction}: of {len(split.entries)} images none would be left in one split")
    held_out = Split([entry for entry in split.entries if entry.image in held])
    split.entries = kept
    return held_out
