"""Does it learn? The same 8 images, once from DETR's initialisation and once from transformers' own.

    python benchmarks/learns.py --out outputs/learns [--steps 300] [--long_steps 3000]

Prints the loss per decoder layer of both sides, draws the two curves into OUT/learns.png, then trains on and evaluates
the 8 images with `recipe evaluate`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import matplotlib
import torch
from transformers import DetrForObjectDetection, set_seed

from data_prep.sample import make_sample
from data_prep.shards import pack
from recipe.cli import main as recipe
from recipe.config import parse_train
from recipe.data.batches import collate, normalise
from recipe.data.dataset import CrowdDataset, load_split
from recipe.data.geometry import Geometry
from recipe.model.detector import build_model, freeze
from recipe.record import read_log
from recipe.train import class_prior

SIZE = (160, 256)
# The pilot's detector at half its width and 50 queries: small enough for minutes on a CPU.
FLAGS = ["--preset", "pilot", "--max_train_images", "8", "--d_model", "128", "--encoder_layers", "3"]
FLAGS += ["--num_queries", "50", "--dropout", "0", "--shortest_edge", str(SIZE[0]), "--longest_edge", str(SIZE[1])]


def overfit(data: str, initialisation: str, steps: int) -> list[float]:
    """Loss per decoder layer at each step: all 8 images in every step, no augmentation, no dropout."""
    config, _ = parse_train(FLAGS)
    source, annotations, _ = load_split(data, "train")
    dataset = CrowdDataset(source, annotations, Geometry(*SIZE))
    samples = [dataset[index] for index in range(len(dataset))]
    canvases = sorted({sample["canvas"] for sample in samples})  # batches of one orientation
    batches = [normalise(collate([sample for sample in samples if sample["canvas"] == c])) for c in canvases]
    set_seed(0)
    model = build_model(config, class_prior(annotations, config.num_queries))
    if initialisation == "stock":
        stock = DetrForObjectDetection(model.config)
        stock.model.backbone.load_state_dict(model.model.backbone.state_dict())
        model = stock
    model = freeze(model).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 20) * (1 if step < 0.7 * steps else 0.2)
    )
    losses = []
    for _ in range(steps):
        total = 0.0
        for batch in batches:
            loss = model(**batch).loss * len(batch["labels"]) / len(samples)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total / config.decoder_layers)
    return losses


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
    parser.add_argument("--long_steps", type=int, default=3000)
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
    """The command line's own training, long enough to overfit, and its own evaluation."""
    flags = [*FLAGS, "--data", str(data), "--output_dir", str(folder), "--augment", "false"]
    flags += ["--max_steps", str(steps), "--per_device_train_batch_size", "8", "--learning_rate", "1e-3"]
    flags += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    flags += ["--report_to", "none", "--logging_steps", "50", "--lr_scheduler_type", "cosine", "--shown_images", "0"]
    flags += ["--gradient_accumulation_steps", "2", "--adam_beta2", "0.99", "--warmup_steps", "20"]
    recipe(["train", *flags])
    recipe(["evaluate", str(folder), "--data", str(data), "--split", "train", "--out", str(folder / "on-train")])
    found = json.loads((folder / "on-train" / "report" / "metrics.json").read_text())
    last = [row["loss"] for row in read_log(folder) if "loss" in row][-1]
    print(f"after {steps} steps: loss {last / 6:.2f} per layer, map_50 {found['map_50']:.3f}, map {found['map']:.3f}")


if __name__ == "__main__":
    main()
