"""Does it learn? Held-out crowds over five seeds, then eight photographs by heart, by `evaluate` and by the pipeline.

    python benchmarks/learns.py --out outputs/learns [--seeds 5] [--by_heart detr deformable]

1. Each side of `SIDES` learns the same 64 drawn crowds from the same seeds and is evaluated on 32 others. Prints the
   paired differences to DETR as it is here, with their spread, and draws OUT/learns.png.
2. `recipe train` learns 8 photographs of the sample by heart. Goals: map_50 above 0.5, and the same map within 0.01
   by `recipe evaluate` and by plain transformers, image by image. Beside it the pipeline, which cuts boxes to whole
   pixels (heads here have 4 and more), and a batch of mixed sizes, where the backbone sees the padding.

A tiny random backbone on a CPU: it compares the parts that learn, and says nothing about DINOv3 or photographs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_convert
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    DetrForObjectDetection,
    pipeline,
    set_seed,
)

from data_prep.sample import draw_crowd, make_sample
from data_prep.shards import pack
from recipe.cli import main as recipe
from recipe.config import Config
from recipe.data.batches import normalise
from recipe.data.dataset import CrowdDataset, load_split
from recipe.data.geometry import Geometry
from recipe.evaluation.metrics import DetectionMetrics
from recipe.model.backbone import BACKBONE_PREFIX
from recipe.model.detector import Detector, build_detector, build_processor, freeze
from recipe.schema import CLASS_NAMES

WIDTH, HEIGHT, BATCH = 192, 128, 4
SHAPE: dict[str, Any] = {"backbone": "tiny", "detr_init": "none", "d_model": 128, "dropout": 0.0}
SHAPE |= {"preset": "pilot", "decoder_layers": 3}
OURS = "DETR as it is here"
SIDES = {  # detector, initialisation, images that share a normaliser
    OURS: ("detr", "own", BATCH),
    "transformers' initialisation": ("detr", "stock", BATCH),
    "each image divided by its own boxes": ("detr", "own", 1),
    "--detector deformable": ("deformable", "own", BATCH),
}
# Flags of the run that learns by heart; an epoch is at most 8 batches, so all images are in each step.
BY_HEART = """--per_device_train_batch_size 8 --gradient_accumulation_steps 8 --augmentation none --report_to none
    --eval_strategy no --save_strategy no --load_best_model_at_end false --shown_images 0 --logging_steps 50
    --learning_rate 1e-3 --adam_beta2 0.99 --warmup_steps 20 --dataloader_num_workers 0 --num_queries 40
    --shortest_edge 160 --longest_edge 256"""
STEPS = {"detr": "--max_steps 1000 --encoder_layers 1", "deformable": "--max_steps 400 --encoder_layers 1"}


# ---- held-out crowds ----


def draw(count: int, seed: int) -> dict[str, Any]:
    """A batch of crowds of 1 to 10 people: pixel_values uint8 [count, 3, height, width], and labels."""
    rng, pictures, labels = np.random.default_rng(seed), [], []
    for _ in range(count):
        pixels, boxes = draw_crowd(rng, WIDTH, HEIGHT, int(rng.integers(1, 11)))
        pictures.append(torch.from_numpy(pixels).permute(2, 0, 1))
        xyxy = torch.from_numpy(boxes[:, 1:]).float() / torch.tensor([WIDTH, HEIGHT] * 2)
        label = {"class_labels": torch.from_numpy(boxes[:, 0]).long(), "boxes": box_convert(xyxy, "xyxy", "cxcywh")}
        labels.append(label | {"labelled": torch.ones(2, dtype=torch.bool), "ignored": torch.zeros(0, 4)})
    return {"pixel_values": torch.stack(pictures), "labels": labels}


def learn(side: str, seed: int, steps: int) -> dict[str, float]:
    """Train one side from one seed; its loss per decoder layer and its map_50 on the held-out crowds."""
    torch.set_num_threads(1)
    detector, initialisation, together = SIDES[side]
    config = Config(detector=detector, encoder_layers=1, num_queries=30, **SHAPE)
    set_seed(seed)
    model = build_detector(config, [0.15, 0.15, 0.7])
    if initialisation == "stock":
        start_as_stock(model)
    freeze(model).train()
    processor = build_processor(config, model.config.backbone_config)
    crowds, others = (
        normalise(draw(count, number), processor.image_mean, processor.image_std)
        for number, count in enumerate((64, 32))
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4, weight_decay=1e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        for part in np.split(rng.choice(64, BATCH, replace=False), BATCH // together):
            batch = {"pixel_values": crowds["pixel_values"][part], "labels": [crowds["labels"][i] for i in part]}
            (model(**batch).loss * together / BATCH).backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return evaluate(model.eval(), processor, others) | {"side": side, "seed": seed}


@torch.no_grad()
def evaluate(model: Detector, processor: Any, batch: dict[str, Any]) -> dict[str, float]:
    outputs = model(**batch)
    metrics, size = DetectionMetrics(), (HEIGHT, WIDTH)
    found = processor.post_process_object_detection(outputs, -1.0, target_sizes=[size] * len(batch["labels"]))
    for number, (each, label) in enumerate(zip(found, batch["labels"], strict=True)):
        metrics.update(
            number,
            size=size,
            pred_xyxy=each["boxes"].numpy(),
            scores=each["scores"].numpy(),
            labels=each["labels"].numpy(),
            target_xyxy=box_convert(label["boxes"], "cxcywh", "xyxy").numpy() * ([WIDTH, HEIGHT] * 2),
            target_labels=label["class_labels"].numpy(),
        )
    box_loss = 5 * outputs.loss_dict["loss_bbox"][-1] + 2 * outputs.loss_dict["loss_giou"][-1]
    return {"map_50": metrics.compute()["map_50"], "box loss": float(box_loss)}


def start_as_stock(model: Detector) -> None:
    """Give the trained part the initialisation of transformers' own class; all else stays ours."""
    weights = DetrForObjectDetection(model.config).state_dict()
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith(BACKBONE_PREFIX)}, strict=False)


def compare(out: Path, seeds: int, steps: int) -> None:
    """All sides from all seeds, one process a core."""
    start = time.monotonic()
    runs = [(side, seed) for seed in range(seeds) for side in SIDES]
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(learn, *zip(*runs, strict=True), [steps] * len(runs)))
    (out / "seeds.json").write_text(json.dumps(found, indent=1))
    print(f"{len(runs)} trainings of {steps} steps in {(time.monotonic() - start) / 60:.0f} minutes")
    show(out, found, seeds)


def show(out: Path, found: list[dict[str, Any]], seeds: int) -> None:
    """The paired differences as a table and a figure."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.2), dpi=110, sharey=True, layout="constrained")
    for place, name in zip(axes, ("map_50", "box loss"), strict=True):
        values = np.array([[run[name] for run in found if run["side"] == side] for side in SIDES])  # [sides, seeds]
        mean, best = values[0].mean(), "higher" if name == "map_50" else "lower"
        for row, (side, differences) in enumerate(zip(SIDES, values - values[0], strict=True)):
            spread = differences.std(ddof=1)
            print(f"{name:8} {side:42} {values[row].mean():.3f}, paired {differences.mean():+.3f} +- {spread:.3f}")
            place.plot(differences, [row] * seeds, "o", color="#1f77b4", alpha=0.6)
            place.errorbar(differences.mean(), row, xerr=spread, fmt="|", color="#d55e00", markersize=18, capsize=4)
        place.axvline(0, color="grey", linewidth=0.8)
        place.set(title=f"held-out {name} minus DETR's {mean:.3f}; {best} is better")
        place.set(yticks=range(len(SIDES)), yticklabels=list(SIDES), ylim=(len(SIDES) - 0.5, -0.5))
        place.title.set_fontsize(9)
    figure.savefig(out / "learns.png")
    print(f"{out / 'learns.png'}: a dot for each seed, mean and standard deviation beside them")


# ---- by heart, by the command line ----


def easiest(out: Path, count: int = 4) -> Path:
    """A packed sample whose training images are those with the fewest boxes, but some."""
    yolo, packed = out / "yolo", out / "packed"
    if packed.exists():
        return packed
    make_sample(yolo, train=64, val=1, seed=0)
    labels = {path.stem: len(path.read_text().splitlines()) for path in (yolo / "labels" / "train").glob("*.txt")}
    kept = sorted((stem for stem, boxes in labels.items() if boxes), key=lambda stem: labels[stem])[:count]
    for path in (*(yolo / "labels" / "train").iterdir(), *(yolo / "images" / "train").iterdir()):
        if path.stem not in kept:
            path.unlink()
    pack(yolo, packed)
    return packed


def train_and_evaluate(data: Path, folder: Path, *more: str) -> dict[str, Any]:
    """`recipe train` with the flags `more`, then `recipe evaluate` on the photographs that it learns: its numbers."""
    flags = ["--data", str(data), "--output_dir", str(folder), *(f"--{name}={value}" for name, value in SHAPE.items())]
    recipe(["train", *flags, *BY_HEART.split(), *more])
    recipe(["evaluate", str(folder), "--data", str(data), "--split", "train", "--out", str(folder / "on-train")])
    return json.loads((folder / "on-train" / "report" / "metrics.json").read_text())


def learn_by_heart(data: Path, folder: Path, detector: str) -> None:
    start = time.monotonic()
    found = train_and_evaluate(data, folder, "--detector", detector, *STEPS[detector].split())
    print(f"{detector}: {STEPS[detector]}, {(time.monotonic() - start) / 60:.0f} minutes")
    print(f"  recipe evaluate                map_50 {found['map_50']:.3f}, map {found['map']:.3f}")
    for name, detect in plain_ways(folder).items():
        plain = measure(data, detect)
        print(f"  {name:30} map_50 {plain['map_50']:.3f}, map {plain['map']:.3f} ({plain['map'] - found['map']:+.4f})")


def plain_ways(folder: Path) -> dict[str, Callable[[list[Image.Image]], list[dict[str, np.ndarray]]]]:
    """Three ways to use the detector without a line of this project: photographs -> boxes, scores, labels of each."""
    model = AutoModelForObjectDetection.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    detector = pipeline("object-detection", model=str(folder))

    @torch.no_grad()
    def together(photographs: list[Image.Image]) -> list[dict[str, np.ndarray]]:
        outputs = model(**processor(photographs, return_tensors="pt"))
        sizes = [photograph.size[::-1] for photograph in photographs]  # height, width
        found = processor.post_process_object_detection(outputs, -1.0, target_sizes=sizes)
        return [{key: each[key].numpy() for key in ("boxes", "scores", "labels")} for each in found]

    def by_pipeline(photograph: Image.Image) -> dict[str, np.ndarray]:
        found = detector(photograph, threshold=0.0)
        return {
            "boxes": np.array([list(each["box"].values()) for each in found], np.float32),
            "scores": np.array([each["score"] for each in found]),
            "labels": np.array([CLASS_NAMES.index(each["label"]) for each in found]),
        }

    return {
        "pipeline (whole pixels)": lambda photographs: [by_pipeline(each) for each in photographs],
        "plain classes, image by image": lambda photographs: [together([each])[0] for each in photographs],
        "plain classes, a mixed batch": together,
    }


def measure(data: Path, detect: Callable[[list[Image.Image]], list[dict[str, np.ndarray]]]) -> dict[str, float]:
    """The numbers of what `detect` finds in the training photographs."""
    source, annotations, _ = load_split(str(data), "train")
    dataset, metrics = CrowdDataset(source, annotations, Geometry()), DetectionMetrics()
    photographs = [Image.fromarray(dataset.photograph(index)) for index in range(len(annotations))]
    for index, found in enumerate(detect(photographs)):
        image_id, targets = int(annotations.image_id[index]), annotations.targets(index)
        metrics.update(image_id, pred_xyxy=found["boxes"], scores=found["scores"], labels=found["labels"], **targets)
    return metrics.compute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5, help="0 for none of the first part")
    parser.add_argument("--steps", type=int, default=250, help="of each training of the first part")
    parser.add_argument(
        "--by_heart", nargs="*", choices=STEPS, default=list(STEPS), help="none without a word after it"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.seeds:
        compare(options.out, options.seeds, options.steps)
    for detector in options.by_heart:
        learn_by_heart(easiest(options.out, 8), options.out / detector, detector)


if __name__ == "__main__":
    main()
