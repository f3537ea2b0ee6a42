"""Does it learn? The same 8 images, once from DETR's initialisation and once from transformers' own.

    python benchmarks/learns.py --out outputs/learns [--steps 300] [--long_steps 1000]

Prints the loss per decoder layer of both sides and draws the two curves into OUT/learns.png. Then it trains by
`recipe train`, evaluates the 8 images by `recipe evaluate`, and again by transformers' plain pipeline, one image at
a time: goal map_50 above 0.5, and the same map within 0.01.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from transformers import DetrForObjectDetection, pipeline, set_seed

from data_prep.sample import make_sample
from data_prep.shards import pack
from recipe.cli import main as recipe
from recipe.config import Config
from recipe.data.batches import SizeBatchSampler, collate, normalise
from recipe.data.dataset import CrowdDataset, load_split
from recipe.data.geometry import Geometry
from recipe.evaluation.metrics import DetectionMetrics
from recipe.model.backbone import BACKBONE_PREFIX
from recipe.model.detector import Detector, build_detector, build_processor, freeze
from recipe.model.loss import count_items
from recipe.record import read_log
from recipe.schema import CLASS_NAMES

# The pilot's detector at half its width and 50 queries: small enough for minutes on a CPU.
SETTINGS = {"d_model": 128, "encoder_layers": 3, "num_queries": 50, "dropout": 0.0, "backbone": "tiny"}
SETTINGS |= {"detr_init": "none", "shortest_edge": 160, "longest_edge": 256, "max_train_images": 8, "preset": "pilot"}


def overfit(data: str, initialisation: str, steps: int) -> list[float]:
    """Loss per decoder layer at each step: all 8 images in every step, no augmentation, no dropout."""
    config = Config(**SETTINGS)
    source, annotations, _ = load_split(data, "train")
    dataset = CrowdDataset(source, annotations, Geometry(config.shortest_edge, config.longest_edge))
    set_seed(0)
    model = build_detector(config, annotations.class_prior(config.num_queries))
    if initialisation == "stock":
        start_as_stock(model)
    freeze(model).train()
    processor = build_processor(config, model.config.backbone_config)
    batches = [collate([dataset[key] for key in batch]) for batch in SizeBatchSampler(dataset, 8, shuffle=False)]
    batches = [normalise(batch, processor.image_mean, processor.image_std) for batch in batches]
    items = count_items(batches, config.num_queries)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 20) * (1 if step < 0.7 * steps else 0.2)
    )
    losses = []
    for _ in range(steps):
        total = 0.0
        for batch in batches:
            loss = model(**batch, num_items_in_batch=items).loss
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total / config.decoder_layers)
    return losses


def start_as_stock(model: Detector) -> None:
    """Give the trained part the initialisation of transformers' own class; all else stays ours."""
    weights = DetrForObjectDetection(model.config).state_dict()
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith(BACKBONE_PREFIX)}, strict=False)


def keep_easiest(yolo: Path, count: int) -> None:
    """Of the training images keep those with the fewest boxes, but some: a dense crowd asks for a GPU's patience."""
    labels = [path for path in (yolo / "labels" / "train").glob("*.txt") if path.read_text().strip()]
    kept = {path.stem for path in sorted(labels, key=lambda path: len(path.read_text().splitlines()))[:count]}
    for folder in ("labels", "images"):
        for path in (yolo / folder / "train").iterdir():
            if path.stem not in kept:
                path.unlink()


def smooth(values: list[float], width: int = 15) -> list[float]:
    return [
        sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1])
        for i in range(len(values))
    ]


def draw(curves: dict[str, list[float]], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    for (name, losses), color in zip(curves.items(), ("#1f77b4", "#d55e00"), strict=True):
        axes.plot(losses, color=color, alpha=0.25)
        axes.plot(smooth(losses), color=color, label=name)
    axes.axhline(2.5, color="grey", linestyle=":", label="goal: 2.5")
    axes.set(xlabel="step", ylabel="loss per decoder layer", title="8 images, a tiny frozen DINOv3, no augmentation")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--long_steps", type=int, default=1000)
    options = parser.parse_args()
    data = options.out / "packed"
    if not data.exists():
        make_sample(options.out / "yolo", train=64, val=1, seed=0)
        keep_easiest(options.out / "yolo", 8)
        pack(options.out / "yolo", data)
    curves = {}
    for name, kind in (("DETR's initialisation (this recipe)", "own"), ("transformers' initialisation", "stock")):
        start = time.monotonic()
        curves[name] = overfit(str(data), kind, options.steps)
        mean = sum(curves[name][-15:]) / 15
        print(f"{name}: {mean:.2f} per decoder layer after {options.steps} steps ({time.monotonic() - start:.0f} s)")
    draw(curves, options.out / "learns.png")
    print(f"curves: {options.out / 'learns.png'}")
    if options.long_steps:
        long_run(data, options.out / "run", options.long_steps)


def long_run(data: Path, folder: Path, steps: int) -> None:
    """The command line's own training, long enough to overfit, and its own evaluation beside the plain pipeline's."""
    flags = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    flags += ["--data", str(data), "--output_dir", str(folder), "--augmentation", "none", "--report_to", "none"]
    flags += ["--max_steps", str(steps), "--per_device_train_batch_size", "8", "--learning_rate", "1e-3"]
    flags += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    flags += ["--logging_steps", "50", "--lr_scheduler_type", "cosine", "--shown_images", "0"]
    flags += ["--adam_beta2", "0.99", "--warmup_steps", "20"]
    flags += ["--gradient_accumulation_steps", "8"]  # an epoch is less: all 8 images in each step
    recipe(["train", *flags])
    recipe(["evaluate", str(folder), "--data", str(data), "--split", "train", "--out", str(folder / "on-train")])
    found = json.loads((folder / "on-train" / "report" / "metrics.json").read_text())
    last = [row["loss"] for row in read_log(folder) if "loss" in row][-1]
    print(f"after {steps} steps: loss {last / 6:.2f} per layer, map_50 {found['map_50']:.3f}, map {found['map']:.3f}")
    plain = through_the_pipeline(data, folder)
    difference = abs(plain["map"] - found["map"])
    print(f"by the plain pipeline: map_50 {plain['map_50']:.3f}, map {plain['map']:.3f}; difference {difference:.4f}")


def through_the_pipeline(data: Path, folder: Path) -> dict[str, float]:
    """The numbers of what `pipeline("object-detection")` finds, one photograph at a time."""
    source, annotations, _ = load_split(str(data), "train")
    dataset = CrowdDataset(source, annotations, Geometry())
    metrics, detect = DetectionMetrics(), pipeline("object-detection", model=str(folder))
    for index, image_id in enumerate(annotations.image_id.tolist()):
        found = detect(Image.fromarray(dataset.photograph(index)), threshold=0.0)
        metrics.update(
            image_id,
            pred_xyxy=np.array([list(each["box"].values()) for each in found], np.float32).reshape(-1, 4),
            scores=np.array([each["score"] for each in found]),
            labels=np.array([CLASS_NAMES.index(each["label"]) for each in found], int),
            **annotations.targets(index),
        )
    return metrics.compute()


if __name__ == "__main__":
    main()
