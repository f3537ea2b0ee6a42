"""How fast a run is, how long it takes, and how long it would take elsewhere.

    Pace.read(record.pace).on("1 x A10G").hours        what `recipe train` prints, and `jobs/launch.py --pace-from`

Standard library only, so that the launcher answers at once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Milliseconds of one training image, ViT-L in batches of 2, on a mix of shapes that fit 960x1536: 6.26 TFLOP and the
# memory traffic that `benchmarks/step_budget.py` counts, at the rates that each card is assumed to sustain (TFLOP/s of
# linear layers / of attention, and GB/s). Not measured. A card with less than 20 GB is not in it.
MS_PER_IMAGE = {
    "RTX 4000 SFF Ada": 183,  # 45 / 38, 375; 70 W
    "L4": 173,  # 48 / 40, 400; 72 W
    "A10G": 153,  # 50 / 45, 600
    "L40S": 56,  # 190 / 130, 864
    "A100": 44,  # 230 / 160, 1,935
    "H100": 22,  # 600 / 350, 3,350
    "H200": 21,  # as H100, with 4,800
}


@dataclass(frozen=True)
class Pace:
    """Training images per second on a device, and the work that is to be done at that pace.

    Evaluation is counted at the training pace: it is a little faster, as the frozen backbone is 88 % of both.
    """

    images_per_second: float
    device: str
    train_images: int
    validation_images: int
    epochs: float

    @property
    def hours(self) -> float:
        """All epochs, training and evaluation."""
        return (self.train_images + self.validation_images) * self.epochs / self.images_per_second / 3600

    def on(self, gpu: str) -> Pace | None:
        """The same work on one of another GPU, by the ratio of `MS_PER_IMAGE`; None where one of them is unknown."""
        here, there = computed_rate(self.device), computed_rate(gpu)
        if here is None or there is None:
            return None
        return dataclasses.replace(self, images_per_second=self.images_per_second * there / here, device=gpu)

    @classmethod
    def computed(cls, device: str, train_images: int, validation_images: int, epochs: float) -> Pace | None:
        """What arithmetic says of a device; None for one that is not in `MS_PER_IMAGE`."""
        rate = computed_rate(device)
        return cls(rate, device, train_images, validation_images, epochs) if rate else None

    @classmethod
    def read(cls, found: Mapping[str, Any] | None) -> Pace | None:
        """The pace that run.json keeps, the fields by their names; None where there is none."""
        return cls(**{field.name: found[field.name] for field in dataclasses.fields(cls)}) if found else None


def computed_rate(device: str) -> float | None:
    """Images per second, computed, of GPUs such as "2 x NVIDIA A10G, 22 GiB"; None for one not in `MS_PER_IMAGE`."""
    count = re.match(r"(\d+) x ", device)
    for name, milliseconds in MS_PER_IMAGE.items():
        if re.search(rf"\b{re.escape(name)}\b", device):
            return 1000 / milliseconds * (int(count[1]) if count else 1)
    return None


def pace_in_words(pace: Pace, command: str) -> str:
    """The lines that `recipe train` prints: the pace here, and when it is worth leaving for another machine."""
    words = f"pace: {pace.images_per_second:.2f} images/s on {pace.device}, "
    words += f"{pace.hours:.1f} h for all {pace.epochs:g} epochs with their evaluations"
    there = pace.on("1 x A10G")
    if there is None or "A10G" in pace.device:
        return words
    return f"{words}\n      about {there.hours:.1f} h on a10g-large, by the arithmetic for both GPUs: {command}"
