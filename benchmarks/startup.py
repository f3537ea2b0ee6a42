"""How long a person waits: `--help` of both commands, and `recipe train` to its first step; and what it writes.

python benchmarks/startup.py
python benchmarks/startup.py --before CHECKOUT --images 1200    # beside another commit, with 0.4 GB of photographs

Once as the pilot, once with a random backbone of ViT-L's size in fp32 (1.2 GB, read from the page cache), with images
of 64 x 96: without a GPU a step at full size would hide what is measured. Goals: 0.3 s, and 25 s. The photographs are
small ones with bytes at their end that no decoder reads, as large as real ones; GB are what lies in the caches and the
run's folder at the first step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
NAIVE = (
    "from transformers import HfArgumentParser, TrainingArguments; HfArgumentParser(TrainingArguments).print_help()"
)


def seconds(command: list[str], repeats: int, tree: Path) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=tree)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def make_inputs(folder: Path, images: int) -> None:
    """A packed sample, `images` photographs of 0.34 MB, and a backbone of ViT-L's size."""
    from transformers import DINOv3ViTBackbone

    from data_prep.sample import make_sample
    from data_prep.shards import pack
    from recipe.model.backbone import large_backbone

    make_sample(folder / "yolo", train=10, val=2, seed=0)
    pack(folder / "yolo", folder / "packed")
    pictures = folder / "yolo" / "images" / "train"
    for number in range(10, images):
        photograph = (pictures / f"train_{number % 10:05d}.jpg").read_bytes()
        (pictures / f"train_{number:05d}.jpg").write_bytes(photograph + os.urandom(340_000 - len(photograph)))
    pack(folder / "yolo", folder / "photographs")
    DINOv3ViTBackbone(large_backbone()).save_pretrained(folder / "backbone")


def to_first_step(folder: Path, run: str, tree: Path, *flags: str) -> tuple[float, float, float]:
    """Seconds until the first loss row stands in metrics.jsonl, those of them on a CPU, and GB that were written."""
    command = [sys.executable, "-m", "recipe.cli", "train", "--preset", "pilot", "--report_to", "none"]
    command += ["--output_dir", str(folder / run / "run"), *flags]
    environment = os.environ | {"HF_HOME": str(folder / run / "caches"), "PYTHONPATH": str(tree)}
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    log = folder / run / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and "loss" in log.read_text()):
        time.sleep(0.05)
    found = time.perf_counter() - start
    process.kill()
    usage = os.wait4(process.pid, 0)[2]
    files = {path.stat().st_ino: path.stat().st_size for path in (folder / run).rglob("*") if path.is_file()}
    return found, usage.ru_utime + usage.ru_stime, sum(files.values()) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds to --help and to the first step.")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit, measured in turn with this one")
    parser.add_argument("--images", type=int, default=10, help="photographs of 0.34 MB in the last row")
    options = parser.parse_args()
    trees = {"here": ROOT} | ({"before": options.before.resolve()} if options.before else {})
    table = Table("what", *trees)

    def add(what: str, measure: Callable[[str, Path], str]) -> None:
        table.add_row(what, *(measure(name, tree) for name, tree in trees.items()))

    helps = {"recipe --help": ["recipe.cli"], "recipe train --help": ["recipe.cli", "train"]}
    for what, words in (helps | {"python -m data_prep --help": ["data_prep"]}).items():
        command = [sys.executable, "-m", *words, "--help"]
        add(f"{what}, s", lambda _, tree, command=command: f"{seconds(command, 5, tree):.2f}")
    add(
        "a parser over TrainingArguments --help, s",
        lambda _, tree: f"{seconds([sys.executable, '-c', NAIVE], 2, tree):.2f}",
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, options.images)
        small, many = ["--data", str(folder / "packed")], ["--data", str(folder / "photographs")]
        large = ["--backbone", str(folder / "backbone"), "--shortest_edge", "64", "--longest_edge", "96"]
        for run, flags in {
            "pilot": small,
            "ViT-L": small + large,
            f"ViT-L, {options.images} photographs": many + large,
        }.items():
            add(
                f"recipe train to its first step, {run}: s, CPU s, GB",
                lambda side, tree, run=run, flags=flags: "{:.1f}, {:.1f}, {:.2f}".format(
                    *to_first_step(folder, f"{side} {run}", tree, *flags)
                ),
            )
    Console().print(table)


if __name__ == "__main__":
    main()
