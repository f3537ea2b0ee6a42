"""How fast a run is, how long it takes, and how long it would take elsewhere.

    Pace.read(Path("outputs/run")).on("A10G").hours        what `recipe train` prints, and `jobs/launch.py --pace-from`

Standard library only, so that the launcher answers at once.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

# Peak dense bf16 tensor TFLOPS, from NVIDIA's datasheets (which print twice as much, "with sparsity", for most).
# What a card sustains is less, the more so the less power it may draw: a ratio of two of them is an estimate.
PEAK_TFLOPS = {
    "RTX 4000 SFF Ada": 76.7,  # a quarter of the 306.8 that the datasheet gives for FP8 with sparsity; 70 W
    "L4": 121.0,
    "A10G": 70.0,  # no datasheet of its own (made for AWS): baseten.co/blog/nvidia-a10-vs-a10g-for-ml-model-inference
    "L40S": 362.0,
    "A100": 312.0,
    "H100": 989.0,
    "H200": 989.0,
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
    def hours_per_epoch(self) -> float:
        """Training and evaluation."""
        return (self.train_images + self.validation_images) / self.images_per_second / 3600

    @property
    def hours_of_evaluation(self) -> float:
        """One evaluation."""
        return self.validation_images / self.images_per_second / 3600

    @property
    def hours(self) -> float:
        """The whole run."""
        return self.hours_per_epoch * self.epochs

    def on(self, gpu: str) -> Pace | None:
        """The same work on one of another GPU, by the ratio of peak bf16 TFLOPS; None where one of them is unknown."""
        here, there = peak_tflops(self.device), peak_tflops(gpu)
        if here is None or there is None:
            return None
        return dataclasses.replace(self, images_per_second=self.images_per_second * there / here, device=gpu)

    def record(self) -> dict[str, object]:
        """What run.json keeps under "pace"."""
        return {**dataclasses.asdict(self), "hours_total": round(self.hours, 2)}

    @classmethod
    def read(cls, folder: Path) -> Pace:
        """The pace that a run measured.

        Raises:
            ValueError: no run, or one that measured none.
        """
        try:
            return cls.of(json.loads((folder / "run.json").read_text()))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder}: holds no pace; `recipe train` writes one after its first 50 steps") from error

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Pace:
        """The pace in the contents of run.json. Raises ValueError where there is none."""
        if "pace" not in record:
            raise ValueError("no pace")
        return cls(**{field.name: record["pace"][field.name] for field in dataclasses.fields(cls)})


def peak_tflops(device: str) -> float | None:
    """Of the GPUs in words such as "2 x NVIDIA A10G, 22 GiB"; None for one that is not in the table."""
    count = re.match(r"(\d+) x ", device)
    for name, peak in PEAK_TFLOPS.items():
        if re.search(rf"\b{re.escape(name)}\b", device):
            return peak * (int(count[1]) if count else 1)
    return None


def for_a_job(command: str) -> str:
    """A job sees no folder of this machine: where the command names one, USER/NAME is to be filled in."""
    words = [part for word in shlex.split(command) for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    for index, (flag, value) in enumerate(pairwise(words), 1):
        if flag.replace("-", "_") in ("__data", "__backbone", "__detr_init") and Path(value).exists():
            words[index] = "USER/NAME"
    return shlex.join(words)


def describe(pace: Pace, command: str) -> str:
    """The lines that `recipe train` prints: the pace here, and when it is worth leaving for another machine."""
    lines = [
        f"pace: {pace.images_per_second:.2f} images/s on {pace.device}",
        f"      {pace.hours:.1f} h for all {pace.epochs:g} epochs with their evaluations",
    ]
    there = pace.on("A10G")
    if there is not None and "A10G" not in pace.device:
        ratio = f"{peak_tflops('A10G'):g} / {peak_tflops(pace.device):g}"
        lines += [
            f"      about {there.hours:.1f} h on a10g-large, estimated by the peak bf16 TFLOPS of both ({ratio}):",
            f"      {for_a_job(command)}",
        ]
    return "\n".join(lines)
