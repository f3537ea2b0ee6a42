"""The input pipeline beside others, in one run: `python benchmarks/loader.py [--images 12] [--rounds 5]`.

JPEG bytes to a batch of 2 at the training size, one process, one thread, flip and affine on:
- PIL, albumentations on the full image, the stock image processor (float32): what the libraries' guides put together;
- cv2 or simplejpeg, cv2's resize, then albumentations, uint8: the strongest that a user would write;
- ours: CrowdDataset and collate, uint8.
Then through a DataLoader: what the main process spends on an image, and the memory of a worker over three epochs.
Photographs are smooth noise of about 3 megapixels and 0.34 MB with 84 boxes each; ours reads a Parquet shard.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"NO_ALBUMENTATIONS_UPDATE": "1", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import albumentations as A
import cv2
import numpy as np
import packed
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import YolosImageProcessor

from recipe.config import Config
from recipe.data.augment import FILL, build_augmentation
from recipe.data.batches import SizeBatchSampler, collate, worker_init
from recipe.data.dataset import CrowdDataset, load_split
from recipe.data.geometry import Geometry

SIZES = [(1080, 1920), (1500, 2000), (1414, 2121), (1365, 2048), (1728, 2304), (1080, 1920)]  # mean 2.75 Mpx
BOXES = 84
RULE = Geometry()


def photograph(height: int, width: int, seed: int) -> bytes:
    """Smooth noise over five scales, as a JPEG."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 120, np.float32)
    for cells, strength in ((8, 60), (32, 40), (128, 25), (512, 12), (2048, 3)):
        shape = (height * cells // 2048 + 2, width * cells // 2048 + 2, 3)
        noise = rng.normal(size=shape).astype(np.float32)
        image += strength * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return simplejpeg.encode_jpeg(image.clip(0, 255).astype(np.uint8), quality=70, colorsubsampling="420")


def crowd(folder: Path, count: int) -> CrowdDataset:
    """A packed split of photographs and their boxes, as a run reads it."""
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        height, width = SIZES[number % len(SIZES)]
        corner = rng.uniform(0, [width * 0.8, height * 0.8], (BOXES, 2))
        boxes = np.hstack([corner, rng.uniform(8, [width * 0.2, height * 0.2], (BOXES, 2))])
        data = photograph(height, width, number)
        rows.append(packed.row(number, height, width, boxes, rng.integers(0, 2, BOXES), data))
    source, annotations, _ = load_split(str(packed.write(folder, rows)), "train")
    return CrowdDataset(source, annotations, RULE, build_augmentation(Config(data="-")), seed=1)


def stock_pipeline(dataset: CrowdDataset, files: Sequence[bytes]) -> Callable[[int], Any]:
    """What the libraries' guides put together."""
    notes, transform = dataset.annotations, pipeline("coco")
    processor = YolosImageProcessor(size={"shortest_edge": RULE.shortest_edge, "longest_edge": RULE.longest_edge})

    def run(index: int) -> torch.Tensor:
        image = np.asarray(Image.open(io.BytesIO(files[index])).convert("RGB"))
        rows = notes.rows(index)
        out = transform(image=image, bboxes=notes.boxes_xywh[rows], category=notes.labels[rows])
        objects = [
            {"bbox": box, "category_id": int(label), "area": box[2] * box[3], "iscrowd": 0}
            for box, label in zip(out["bboxes"].tolist(), out["category"], strict=True)
        ]
        inputs = processor(out["image"], {"image_id": index, "annotations": objects}, return_tensors="pt")
        return inputs["pixel_values"][0]

    return run


def resize_first(
    dataset: CrowdDataset, files: Sequence[bytes], decode: Callable[[bytes], Any]
) -> Callable[[int], Any]:
    """A fast decoder, cv2's resize, then albumentations."""
    notes, transform = dataset.annotations, pipeline("albumentations")

    def run(index: int) -> torch.Tensor:
        height, width = int(notes.height[index]), int(notes.width[index])
        h, w = RULE.resized(height, width)
        image = cv2.resize(decode(files[index]), (w, h), interpolation=cv2.INTER_LINEAR)
        boxes = notes.targets(index)["target_xyxy"] / np.array([width, height] * 2)
        out = transform(image=image, bboxes=boxes, category=notes.labels[notes.rows(index)])
        return torch.from_numpy(out["image"])

    return run


def pipeline(boxes: str) -> A.Compose:
    affine = A.Affine(
        rotate=(-5, 5),
        shear=(-3, 3),
        translate_percent=(-0.03, 0.03),
        scale=(0.9, 1.1),
        keep_ratio=True,
        rotate_method="ellipse",
        fill=FILL,
        p=0.4,
    )
    params = A.BboxParams(format=boxes, label_fields=["category"], clip=True, filter_invalid_bboxes=True)
    return A.Compose([A.HorizontalFlip(p=0.5), affine], bbox_params=params)


def with_cv2(data: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def compare(dataset: CrowdDataset, rounds: int) -> None:
    """CPU time of each pipeline: the median of interleaved rounds, since other work disturbs each alike."""
    files = [dataset.source[index]["image"]["bytes"] for index in range(len(dataset))]
    batches = list(SizeBatchSampler(dataset, 2, shuffle=False))

    def stack(run: Callable[[int], Any], epoch: int) -> None:
        for batch in batches:
            torch.stack([run(index) for _, index in batch])

    def ours(epoch: int) -> None:
        for batch in batches:
            collate([dataset[(epoch, index)] for _, index in batch])

    sides: dict[str, Callable[[int], None]] = {
        "PIL, albumentations, stock processor": partial(stack, stock_pipeline(dataset, files)),
        "cv2, resize, albumentations": partial(stack, resize_first(dataset, files, with_cv2)),
        "simplejpeg, resize, albumentations": partial(stack, resize_first(dataset, files, simplejpeg.decode_jpeg)),
        "ours, from the shard": ours,
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for epoch in range(rounds + 1):
        for name, side in sides.items():
            start = time.process_time()
            side(epoch)
            times[name].append((time.process_time() - start) / len(dataset))
    medians = {name: float(np.median(values[1:])) for name, values in times.items()}
    print("| JPEG to batch, one core | CPU ms an image | images/s | against ours |\n|---|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value * 1e3:.1f} | {1 / value:.0f} | {value / medians['ours, from the shard']:.2f} |")


def through_workers(dataset: CrowdDataset) -> None:
    """What is left to the process that feeds the device, and whether a worker grows."""
    print(
        "\n| two workers, batch | main process, CPU ms an image | a worker's own MB after each epoch |\n|---|---|---|"
    )
    for size in (2, 8):
        sampler = SizeBatchSampler(dataset, size, seed=1)
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            worker_init_fn=worker_init,
            num_workers=2,
            persistent_workers=True,
        )
        spent, grown = [], []
        for _ in range(3):
            start = time.process_time()
            for batch in loader:
                batch["pixel_values"][:, 0, 0].sum()
            spent.append((time.process_time() - start) / len(dataset) * 1e3)
            grown.append(max(private_bytes(child.pid) for child in multiprocessing.active_children()) / 1e6)
        print(f"| {size} | {min(spent):.2f} | {', '.join(f'{value:.0f}' for value in grown)} |")
        del loader


def private_bytes(pid: int | None) -> int:
    """What a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        dataset = crowd(Path(folder), args.images)
        compare(dataset, args.rounds)
        through_workers(dataset)


if __name__ == "__main__":
    main()
