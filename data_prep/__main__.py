"""The command line of data_prep: `python -m data_prep sample | inspect | pack`."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from recipe.schema import CLASS_NAMES, UserError


def from_one(text: str) -> int:
    """An integer of 1 or more."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def megabytes(text: str) -> int:
    """`256MB` as a number of bytes."""
    return from_one(text.removesuffix("MB")) * 10**6


def assignment(text: str) -> tuple[str, str]:
    """`pedestrian=person` as its two sides."""
    left, _, right = text.rpartition("=")
    if not left or right not in CLASS_NAMES:
        raise ValueError
    return left, right


def share(text: str) -> float:
    """A number between 0 and 1."""
    if not 0 < float(text) < 1:
        raise ValueError
    return float(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m data_prep", description="From a YOLO folder to a Hugging Face dataset.")
    commands = top.add_subparsers(dest="command", required=True, metavar="sample | inspect | pack")

    sample = commands.add_parser("sample", help="write a synthetic crowd dataset in the YOLO layout")
    sample.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder")
    sample.add_argument("--train", type=from_one, default=64, help="images for training (64)")
    sample.add_argument("--val", type=from_one, default=16, help="images for validation (16)")
    sample.add_argument("--seed", type=int, default=0, help="the same seed draws the same bytes (0)")

    inspect = commands.add_parser("inspect", help="show what a trainer needs to know, and every problem")
    pack = commands.add_parser("pack", help="write Parquet shards, dataset card, problems.csv and manifest.json")
    cores = len(os.sched_getaffinity(0))
    several: dict[str, Any] = {"action": "append", "default": []}
    for add in (inspect.add_argument, pack.add_argument):
        add(
            "yolo_dir",
            type=Path,
            metavar="DIR",
            help="the folder with data.yaml, or with COCO's or CrowdHuman's files",
        )
        add("--workers", type=from_one, default=cores, help=f"processes ({cores})")
        # the fields of data_prep.entries.ReadOptions
        add("--map", dest="rename", type=assignment, **several, metavar="NAME=person", help="a class that is ours")
        add("--drop", **several, metavar="NAME", help="a class to leave out; '*' for all others")
        alone = "in images with such names only this class was annotated"
        add("--labelled", type=assignment, **several, metavar="GLOB=person", help=alone)
        add("--val-fraction", type=share, default=0.0, metavar="0.1", help="hold out images, by sequence")
        add("--seed", type=int, default=0, help="which images --val-fraction takes (0)")
        polygons = "boxes: pack the box around each (refuse)"
        add("--polygons", choices=("refuse", "boxes"), default="refuse", help=polygons)
    inspect.add_argument("--json", type=Path, metavar="FILE", help="write statistics and every problem to FILE")
    add = pack.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="where the dataset goes")
    bad = "fail: refuse everything when a line or an image is bad; skip: leave those out and list them (fail)"
    add("--on-bad", choices=("fail", "skip"), default="fail", help=bad)
    add("--shard-size", type=megabytes, default="256MB", metavar="256MB", help="image bytes per shard")
    add("--repo-id", metavar="USER/NAME", help="upload it to this Hub dataset repo")
    add("--public", action="store_true", help="a new repo is for everybody to see; else it is private")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (inspect found problems), 2 (the user's mistake), 130 (Ctrl-C)."""
    argv = sys.argv[1:] if argv is None else argv
    # As the flags of `recipe`, each may be written with underscores too.
    args = parser().parse_args([re.sub(r"^--[\w-]+", lambda flag: flag[0].replace("_", "-"), word) for word in argv])
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # folders' names need not be UTF-8
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        advice = "give folders that can be read and written, on a disk with room"
        print(f"error: {' '.join(argv)}: {error}; {advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    """One command; libraries are imported only where there is work."""
    if args.command == "sample":
        from data_prep.sample import make_sample

        make_sample(args.out, args.train, args.val, args.seed)
        print(f"{args.train} + {args.val} images are in {args.out}; next: python -m data_prep inspect {args.out}")
        return 0
    from data_prep.entries import ReadOptions

    options = ReadOptions(**{name: getattr(args, name) for name in ReadOptions.__annotations__})
    if args.command == "inspect":
        from data_prep.inspect import inspect

        return inspect(args.yolo_dir, options, args.json, workers=args.workers)
    from data_prep.publish import upload
    from data_prep.shards import pack
    from data_prep.statistics import counts_table
    from recipe.hub import check_write_access

    if args.repo_id:
        logging.info(check_write_access(args.repo_id, "dataset"))  # before hours of packing
    settings = {name: getattr(args, name) for name in ("on_bad", "workers", "shard_size", "repo_id")}
    manifest = pack(args.yolo_dir, args.out, options, **settings)
    print(counts_table(manifest["splits"]))
    print(f"packed to {args.out}; its problems.csv lists everything that was cut, dropped or left out")
    if args.repo_id:
        print(f"{args.repo_id} holds it, in commit {upload(args.out, args.repo_id, private=not args.public)}")
    print(f"next: recipe train --data {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
