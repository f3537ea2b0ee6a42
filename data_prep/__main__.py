"""The command line of data_prep: `python -m data_prep sample | inspect | pack`."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from pathlib import Path

from recipe.schema import UserError


def size(text: str) -> int:
    """`256MB` or `1GB` as a number of bytes."""
    match = re.fullmatch(r"([1-9]\d*)(MB|GB)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 256MB or 1GB")
    return int(match[1]) * {"MB": 10**6, "GB": 10**9}[match[2]]


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m data_prep", description="From a YOLO folder to a Hugging Face dataset.")
    commands = top.add_subparsers(dest="command", required=True, metavar="sample | inspect | pack")

    sample = commands.add_parser("sample", help="write a synthetic crowd dataset in the YOLO layout")
    sample.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder")
    sample.add_argument("--train", type=count, default=64, help="images for training (64)")
    sample.add_argument("--val", type=count, default=16, help="images for validation (16)")
    sample.add_argument("--seed", type=int, default=0, help="the same seed draws the same bytes (0)")

    inspect = commands.add_parser("inspect", help="show what a trainer needs to know, and every problem")
    pack = commands.add_parser("pack", help="write Parquet shards, dataset card, problems.csv and manifest.json")
    for command in (inspect, pack):
        command.add_argument("yolo_dir", type=Path, metavar="YOLO_DIR", help="the folder that holds data.yaml")
        command.add_argument("--workers", type=count, default=len(os.sched_getaffinity(0)), help="cores to use (all)")
    inspect.add_argument("--json", type=Path, metavar="FILE", help="write statistics and every problem to FILE")
    pack.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the dataset goes")
    pack.add_argument(
        "--on-bad",
        choices=("fail", "skip"),
        default="fail",
        help="fail: refuse everything when a line or an image is bad; skip: leave those out and list them (fail)",
    )
    pack.add_argument(
        "--verify",
        choices=("full", "header"),
        default="full",
        help="full: decode every image; header: three times as fast, misses truncated and overwritten pixels (full)",
    )
    pack.add_argument("--shard-size", type=size, default=256 * 10**6, metavar="256MB", help="image bytes per shard")
    pack.add_argument(
        "--repo-id", metavar="USER/NAME", help="upload it to this Hub dataset repo, and go on if cut off"
    )
    pack.add_argument("--public", action="store_true", help="a new repo is for everybody to see; else it is private")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (inspect found problems), 2 (a mistake to mend), 130 (Ctrl-C)."""
    argv = sys.argv[1:] if argv is None else argv
    # As the flags of `recipe`, each may be written with underscores too.
    args = parser().parse_args([re.sub(r"^--[\w-]+", lambda flag: flag[0].replace("_", "-"), word) for word in argv])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return {"sample": _sample, "inspect": _inspect, "pack": _pack}[args.command](args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "; the same command goes on where it stopped" if args.command == "pack" else ""
        print(f"interrupted{again}", file=sys.stderr)
        return 130


def _sample(args: argparse.Namespace) -> int:
    from data_prep.sample import make_sample

    make_sample(args.out, args.train, args.val, args.seed)
    print(f"{args.train} + {args.val} images are in {args.out}; next: python -m data_prep inspect {args.out}")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from data_prep.inspect import inspect

    return inspect(args.yolo_dir, args.json, workers=args.workers)


def _pack(args: argparse.Namespace) -> int:
    from data_prep.publish import conservation, write_card
    from data_prep.shards import pack

    if args.repo_id:
        from data_prep.upload import check_write_access, upload

        logging.info(check_write_access(args.repo_id, "dataset"))  # before hours of packing
    manifest = pack(
        args.yolo_dir,
        args.out,
        on_bad=args.on_bad,
        workers=args.workers,
        shard_size=args.shard_size,
        verify=args.verify,
    )
    for name, split in manifest["splits"].items():
        print(f"{name}: {conservation(split)}")
    shards = sum(len(split["files"]) for split in manifest["splits"].values())
    print(f"{shards} shards are in {args.out}; problems.csv lists everything that was cut, dropped or left out")
    if args.repo_id:
        write_card(args.out, manifest, args.repo_id)
        print(f"{args.repo_id} holds them, in commit {upload(args.out, args.repo_id, private=not args.public)}")
    print(f"next: recipe train --data {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
