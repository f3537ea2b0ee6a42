"""How long a person waits: `--help` of both commands, and `recipe train` to its first step.

python benchmarks/startup.py
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


def to_first_step(folder: Path) -> float:
    """Seconds until the first loss row stands in metrics.jsonl; packing the sample is not counted."""
    from data_prep.sample import make_sample
    from data_prep.shards import pack

    make_sample(folder / "yolo", train=2, val=2, seed=0)
    pack(folder / "yolo", folder / "packed")
    command = [sys.executable, "-m", "recipe.cli", "train", "--preset", "pilot", "--report_to", "none"]
    command += ["--data", str(folder / "packed"), "--output_dir", str(folder / "run")]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = folder / "run" / "metrics.jsonl"
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
        table.add_row("recipe train (pilot) to its first step", f"{to_first_step(Path(name)):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
