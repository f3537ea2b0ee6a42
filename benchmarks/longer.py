"""Does a run started by `--init_from` end above its donor? Two trainings on four photographs of the sample.

    python benchmarks/longer.py --out outputs/longer [--steps 300]

`recipe train` as on real data, at the size of benchmarks/learns.py (minutes on a CPU), each run evaluated on the four
photographs that it learns. Exits with 1 if the second is not the better one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from learns import easiest, train_and_evaluate


def train(data: Path, folder: Path, steps: int, *more: str) -> float:
    """The map of a run on the photographs that it learns."""
    return train_and_evaluate(data, folder, "--encoder_layers", "1", "--max_steps", str(steps), *more)["map"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data, donor = easiest(options.out), options.out / "donor"
    before = train(data, donor, options.steps)
    after = train(data, options.out / "longer", options.steps, "--init_from", str(donor))
    print(f"map of the donor {before:.3f}, of the run from it {after:.3f}: {after - before:+.3f}")
    return 0 if after > before else 1


if __name__ == "__main__":
    sys.exit(main())
