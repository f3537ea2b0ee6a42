"""The input pipeline side by side, in one run: `python benchmarks/loader.py [--images 12] [--rounds 5]`.

JPEG bytes to a batch of 2 on the 960x1536 canvas, one process, one thread, augmentation on:
- reference: PIL, albumentations on the full image, DetrImageProcessor (torchvision), float32;
- Ultralytics' transforms (where it can be imported: `PYTHONPATH=FOLDER`), uint8;
- the limit: simplejpeg and one warp into a buffer that is kept, nothing else;
- ours: CrowdDataset and collate, uint8.
Then what the main process spends on an image, the memory of a worker, and the quality against the reference pipeline.
Photographs are smooth noise of about 3 megapixels and 0.34 MB with 84 boxes each. The quality is also measured on a
drawn street, and beside a supersampled ideal: the reference resamples twice, so what differs from it may be nearer.
Goals: 4x the reference, 1.5x Ultralytics, 85 % of the limit; below 3 ms; 43 dB at 1080p and 44 dB from 3072 px.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"NO_ALBUMENTATIONS_UPDATE": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader

from recipe.config import Config
from recipe.data.annotations import Annotations
from recipe.data.augment import Transform, draw, generator
from recipe.data.batches import OrientationBatchSampler, collate
from recipe.data.dataset import CrowdDataset
from recipe.data.geometry import Geometry
from recipe.data.images import decode, render, resize

SIZES = [(1080, 1920), (1500, 2000), (1414, 2121), (1365, 2048), (1728, 2304), (1080, 1920)]  # mean 2.75 Mpx
BOXES = 84
CONFIG = Config(data="-")
RULE = Geometry()


def photograph(height: int, width: int, seed: int, quality: int = 70) -> bytes:
    """Smooth noise over five scales, as a JPEG."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 120, np.float32)
    for cells, strength in ((8, 60), (32, 40), (128, 25), (512, 12), (2048, 3)):
        shape = (height * cells // 2048 + 2, width * cells // 2048 + 2, 3)
        noise = rng.normal(size=shape).astype(np.float32)
        image += strength * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels = image.clip(0, 255).astype(np.uint8)
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")


def crowd(count: int) -> tuple[list[bytes], Annotations]:
    """Photographs and their boxes, in memory."""
    rng = np.random.default_rng(0)
    sizes = [SIZES[number % len(SIZES)] for number in range(count)]
    boxes = []
    for height, width in sizes:
        corner = rng.uniform(0, [width * 0.8, height * 0.8], (BOXES, 2))
        boxes.append(np.hstack([corner, rng.uniform(8, [width * 0.2, height * 0.2], (BOXES, 2))]))
    flat = np.concatenate(boxes).astype(np.float32)
    return [photograph(*size, seed) for seed, size in enumerate(sizes)], Annotations(
        boxes_xywh=flat,
        labels=rng.integers(0, 2, len(flat)).astype(np.int8),
        area=flat[:, 2] * flat[:, 3],
        iscrowd=np.zeros(len(flat), np.int8),
        offsets=np.arange(count + 1) * BOXES,
        image_id=np.arange(count),
        width=np.array([width for _, width in sizes], np.int32),
        height=np.array([height for height, _ in sizes], np.int32),
    )


def reference_pipeline(photos: Sequence[bytes], notes: Annotations) -> Callable[[int], Any]:
    """What the libraries' guides put together."""
    import albumentations as A
    from transformers import DetrImageProcessor

    affine = A.Affine(rotate=(-5, 5), shear=(-3, 3), translate_percent=(-0.03, 0.03), scale=(0.9, 1.1), p=0.4)
    params = A.BboxParams(format="coco", label_fields=["category"], clip=True, filter_invalid_bboxes=True)
    transform = A.Compose([A.HorizontalFlip(p=0.5), affine], bbox_params=params)
    processor = DetrImageProcessor(
        size={"shortest_edge": RULE.shortest_edge, "longest_edge": RULE.longest_edge},
        pad_size={"height": 960, "width": 1536},
    )

    def run(index: int) -> Any:
        image = np.asarray(Image.open(io.BytesIO(photos[index])).convert("RGB"))
        rows = notes.rows(index)
        out = transform(image=image, bboxes=notes.boxes_xywh[rows], category=notes.labels[rows])
        objects = [
            {"bbox": box, "category_id": int(label), "area": box[2] * box[3], "iscrowd": 0}
            for box, label in zip(out["bboxes"].tolist(), out["category"], strict=True)
        ]
        inputs = processor(out["image"], {"image_id": index, "annotations": objects}, return_tensors="pt")
        return {key: inputs[key][0] for key in ("pixel_values", "pixel_mask", "labels")}

    return run


def ultralytics_pipeline(photos: Sequence[bytes], notes: Annotations) -> Callable[[int], Any]:
    """Its reader, resize, affine with letterbox, flip and formatting, without mosaic and colours."""
    from ultralytics.data import augment as U
    from ultralytics.utils.instance import Instances

    affine = U.RandomPerspective(degrees=5, translate=0.03, scale=0.1, shear=3, size=(1536, 960))
    steps = U.Compose([affine, U.RandomFlip(p=0.5), U.Format(bbox_format="xywh", normalize=True)])

    def run(index: int) -> Any:
        image = cv2.imdecode(np.frombuffer(photos[index], np.uint8), cv2.IMREAD_COLOR)
        height, width = image.shape[:2]
        h, w = RULE.resized(height, width)
        image = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
        rows = notes.rows(index)
        boxes = notes.boxes_xywh[rows] * np.float32([w / width, h / height] * 2)
        boxes[:, :2] += boxes[:, 2:] / 2
        return steps(
            {
                "img": image,
                "cls": notes.labels[rows, None].astype(np.float32),
                "instances": Instances(
                    boxes, np.zeros((0, 1000, 2), np.float32), bbox_format="xywh", normalized=False
                ),
                "ori_shape": (height, width),
                "resized_shape": (h, w),
                "ratio_pad": (h / height, w / width),
            }
        )

    return run


def limit_pipeline(photos: Sequence[bytes]) -> Callable[[int], Any]:
    """Decoding and one warp: no loader that augments can be faster without drawing fewer affines."""
    out = np.empty((960, 1536, 3), np.uint8)
    buffer = np.empty(max(h * w for h, w in SIZES) * 3, np.uint8)
    matrix = np.array([[1.3, 0.05, 3.0], [-0.05, 1.3, 2.0]])

    def run(index: int) -> Any:
        pixels = simplejpeg.decode_jpeg(photos[index], buffer=buffer)
        return cv2.warpAffine(pixels, matrix, (1536, 960), dst=out, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)

    return run


def dataset_of(photos: Sequence[bytes], notes: Annotations) -> CrowdDataset:
    source = [{"image": {"bytes": data, "path": None}} for data in photos]
    return CrowdDataset(source, notes, RULE, CONFIG, seed=1)  # type: ignore[arg-type]


def speed(photos: Sequence[bytes], notes: Annotations, rounds: int) -> None:
    """Images per second of each pipeline: the median of interleaved rounds, since other work disturbs each alike."""
    dataset, epochs = dataset_of(photos, notes), iter(range(10_000))
    count = len(photos)

    def ours() -> None:
        epoch = next(epochs)
        for start in range(0, count, 2):
            collate([dataset[(epoch, index)] for index in range(start, min(start + 2, count))])

    def in_batches(run: Callable[[int], Any]) -> None:
        for start in range(0, count, 2):
            samples = [run(index) for index in range(start, min(start + 2, count))]
            for key in ("pixel_values", "pixel_mask", "img"):
                if isinstance(samples[0], dict) and key in samples[0]:
                    torch.stack([sample[key] for sample in samples])

    makers: dict[str, Callable[[], Callable[[int], Any]]] = {
        "reference": lambda: reference_pipeline(photos, notes),
        "Ultralytics": lambda: ultralytics_pipeline(photos, notes),
        "decode + one warp": lambda: limit_pipeline(photos),
    }
    sides: dict[str, Callable[[], Any]] = {"ours": ours}
    for name, maker in makers.items():
        try:
            run = maker()
        except ImportError as error:
            print(f"{name}: not installed ({error})")
            continue
        sides[name] = partial(in_batches, run)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            start = time.process_time()
            side()
            times[name].append((time.process_time() - start) / count)
    best = {name: float(np.median(values[1:])) for name, values in times.items()}
    print("\n| JPEG to batch, one core | ms an image | images/s | ours is |\n|---|---|---|---|")
    for name, value in sorted(best.items(), key=lambda item: -item[1]):
        print(f"| {name} | {value * 1e3:.1f} | {1 / value:.1f} | {value / best['ours']:.2f}x |")


def main_process(photos: Sequence[bytes], notes: Annotations) -> None:
    """What is left to the process that feeds the device, per image, its pixels touched once."""
    head = "| through a DataLoader | batch | wall ms an image | main process ms an image | a worker's own memory, MB |"
    print(f"\n{head}\n|---|---|---|---|---|")
    for workers, size in ((1, 2), (2, 2), (2, 8)):
        dataset = dataset_of(photos * 3, notes_times(notes, 3))
        sampler = OrientationBatchSampler(dataset, size, seed=1)
        loader = DataLoader(
            dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers, persistent_workers=True
        )
        best, private = (np.inf, np.inf), []
        for _ in range(3):
            start, cpu = time.perf_counter(), time.process_time()
            for batch in loader:
                batch["pixel_values"][:, 0, 0].sum()
            best = min(best, (time.process_time() - cpu, time.perf_counter() - start))
            private.append(max(private_bytes(child.pid) for child in multiprocessing.active_children()))
        cpu, wall = (value / len(dataset) * 1e3 for value in best)
        grown = " -> ".join(f"{value / 1e6:.0f}" for value in private)
        print(f"| {workers} workers | {size} | {wall:.1f} | {cpu:.2f} | {grown} after 3 epochs |")
        del loader


def private_bytes(pid: int | None) -> int:
    """What a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024


def notes_times(notes: Annotations, times: int) -> Annotations:
    """The same images several times over."""
    values = {name: np.concatenate([array] * times) for name, array in vars(notes).items() if name != "offsets"}
    return Annotations(**values, offsets=np.concatenate([[0], np.cumsum(np.tile(notes.counts, times))]))


def quality() -> None:
    """Resize and affine: decibels against the reference's pixels, and of both against a supersampled ideal."""
    head = "| source | no affine: off by | to the reference, dB (goal) | to the ideal: ours | and the reference |"
    print(f"\n{head}\n|---|---|---|---|---|")
    smooth = {size: photograph(*size, seed=3, quality=90) for size in ((1080, 1920), (2048, 3072), (4000, 6000))}
    for (height, width), data, kind in [*((size, data, "smooth") for size, data in smooth.items()), drawn()]:
        size = RULE.resized(height, width)
        full = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        plain = int(np.abs(render(decode(data, spare=True), size, Transform()).astype(int) - resize(full, size)).max())
        errors = []
        for epoch in range(3):
            transform = draw(Config(data="-", affine=1.0), generator(0, epoch, 0), *size)
            assert transform.matrix is not None
            scale = np.diag([width / size[1], height / size[0], 1.0])
            matrix = (scale @ np.vstack([transform.matrix, [0, 0, 1]]) @ np.linalg.inv(scale))[:2]
            matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
            reference = resize(cv2.warpAffine(full, matrix, (width, height)), size).astype(float)
            inside = resize(cv2.warpAffine(np.full_like(full, 255), matrix, (width, height)), size) == 255
            ideal = supersampled(full, size, transform.matrix)
            ours = render(decode(data, spare=True), size, transform).astype(float)
            pairs = ((ours, reference), (ours, ideal), (reference, ideal))
            errors.append([np.mean((one[inside] - other[inside]) ** 2) for one, other in pairs])
        near, found, stock = 10 * np.log10(255**2 / np.mean(errors, axis=0))
        goal = 43 if max(size) * 2 > width else 44
        print(f"| {kind} {width}x{height} | {plain} | {near:.1f} ({goal}) | {found:.1f} | {stock:.1f} |")


def drawn() -> tuple[tuple[int, int], bytes, str]:
    """A street with hard edges: the worst case for any warp."""
    from data_prep.street import draw_street

    pixels, _ = draw_street(np.random.default_rng(0), 1920, 1080, 60)
    return (1080, 1920), simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=90), "hard edges"


def supersampled(full: np.ndarray, size: tuple[int, int], matrix: np.ndarray, times: int = 6) -> np.ndarray:
    """The affine and the resize as the mean of 6 x 6 cubic samples in each target pixel, float32 [h, w, 3]."""
    height, width = size
    linear = np.diag([full.shape[1] / width, full.shape[0] / height]) @ np.linalg.inv(matrix[:, :2])
    shift = linear @ (0.5 / times - matrix[:, 2]) - 0.5
    strips = []
    for row in range(0, height, 96):
        count = min(96, height - row)
        placed = np.column_stack([linear / times, shift + linear[:, 1] * row])
        fine = cv2.warpAffine(
            full, placed, (width * times, count * times), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        )
        strips.append(fine.reshape(count, times, width, times, 3).mean(axis=(1, 3), dtype=np.float32))
    return np.concatenate(strips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    photos, notes = crowd(args.images)
    pixels = np.mean(notes.width.astype(float) * notes.height) / 1e6
    print(f"{len(photos)} photographs, mean {np.mean([len(p) for p in photos]) / 1e6:.2f} MB and {pixels:.1f} Mpx")
    speed(photos, notes, args.rounds)
    main_process(photos, notes)
    quality()


if __name__ == "__main__":
    main()
