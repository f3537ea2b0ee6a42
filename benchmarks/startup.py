"""How long a person waits: `--help` of both commands, and `recipe train` to its first step.

python benchmarks/startup.py

Once as the pilot, once with a random backbone of ViT-L's size in fp32 (1.2 GB, read from the page cache), with images
of 64 x 96: without a GPU a step at full size would hide what is measured. Goals: 0.3 s, and 25 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

NAIVE = (
    "from transformers import HfArgumentParser, TrainingArguments; HfArgumentParser(TrainingArguments).print_help()"
)


def seconds(command: list[str], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def make_inputs(folder: Path) -> None:
    """A packed sample, and a backbone of ViT-L's size."""
    from transformers import DINOv3ViTBackbone

    from data_prep.sample import make_sample
    from data_prep.shards import pack
    from recipe.model.backbone import large_backbone

    make_sample(folder / "yolo", train=2, val=2, seed=0)
    pack(folder / "yolo", folder / "packed")
    DINOv3ViTBackbone(large_backbone()).save_pretrained(folder / "backbone")


def to_first_step(folder: Path, run: str, *flags: str) -> float:
    """Seconds until the first loss row stands in metrics.jsonl."""
    command = [sys.executable, "-m", "recipe.cli", "train", "--preset", "pilot", "--report_to", "none"]
    command += ["--data", str(folder / "packed"), "--output_dir", str(folder / run), *flags]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = folder / run / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and "loss" in log.read_text()):
        time.sleep(0.05)
    found = time.perf_counter() - start
    process.kill()
    process.wait()
    return found


def main() -> None:
    table = Table("what", "seconds")
    table.add_row("recipe --help", f"{seconds([sys.executable, '-m', 'recipe.cli', '--help'], 5):.2f}")
    table.add_row("recipe train --help", f"{seconds([sys.executable, '-m', 'recipe.cli', 'train', '--help'], 5):.2f}")
    table.add_row("python -m data_prep --help", f"{seconds([sys.executable, '-m', 'data_prep', '--help'], 5):.2f}")
    table.add_row("a parser over TrainingArguments --help", f"{seconds([sys.executable, '-c', NAIVE], 2):.2f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        large = ("--backbone", str(folder / "backbone"), "--shortest_edge", "64", "--longest_edge", "96")
        table.add_row("recipe train (pilot) to its first step", f"{to_first_step(folder, 'pilot'):.1f}")
        table.add_row("the same with a backbone of ViT-L's size", f"{to_first_step(folder, 'large', *large):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
