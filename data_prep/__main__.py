"""The command line of data_prep: `python -m data_prep sample | inspect | pack`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.schema import CLASS_NAMES, UserError

if TYPE_CHECKING:
    from data_prep.entries import ReadOptions


def byte_count(text: str) -> int:
    """`256MB` or `1GB` as a number of bytes."""
    match = re.fullmatch(r"([1-9]\d*)(MB|GB)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 256MB or 1GB")
    return int(match[1]) * {"MB": 10**6, "GB": 10**9}[match[2]]


def from_one(text: str) -> int:
    """An integer of 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of 1 or more")
    return int(text)


def assignment(text: str) -> tuple[str, str]:
    """`pedestrian=person` as its two sides."""
    left, _, right = text.rpartition("=")
    if not left or right not in CLASS_NAMES:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {' or '.join(f'={name}' for name in CLASS_NAMES)}")
    return left, right


def share(text: str) -> float:
    """A number between 0 and 1."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")


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
    for command in (inspect, pack):
        command.add_argument("yolo_dir", type=Path, metavar="YOLO_DIR", help="the folder that holds data.yaml")
        cores = len(os.sched_getaffinity(0))
        command.add_argument("--workers", type=from_one, default=cores, help=f"processes ({cores})")
        _add_read_options(command)
    inspect.add_argument("--json", type=Path, metavar="FILE", help="write statistics and every problem to FILE")
    pack.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the dataset goes")
    pack.add_argument(
        "--on-bad",
        choices=("fail", "skip"),
        default="fail",
        help="fail: refuse everything when a line or an image is bad; skip: leave those out and list them (fail)",
    )
    pack.add_argument(
        "--shard-size", type=byte_count, default=256 * 10**6, metavar="256MB", help="image bytes per shard"
    )
    pack.add_argument("--repo-id", metavar="USER/NAME", help="upload it to this Hub dataset repo")
    pack.add_argument("--public", action="store_true", help="a new repo is for everybody to see; else it is private")
    return top


def _add_read_options(command: argparse.ArgumentParser) -> None:
    """The fields of `data_prep.entries.ReadOptions`."""
    add, many = command.add_argument, dict[str, Any](action="append", default=[])
    add("--map", dest="rename", type=assignment, metavar="NAME=person", help="a class that is ours", **many)
    add("--drop", metavar="NAME", help="a class to leave out; '*' for all others", **many)
    labelled = "in images with such names only this class was annotated"
    add("--labelled", type=assignment, metavar="GLOB=person", help=labelled, **many)
    add("--val-fraction", type=share, default=0.0, metavar="0.1", help="hold out images for validation, by sequence")
    add("--seed", type=int, default=0, help="which images --val-fraction takes (0)")
    add("--polygons", choices=("refuse", "boxes"), default="refuse", help="boxes: pack the box around each (refuse)")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (inspect found problems), 2 (the user's mistake), 130 (Ctrl-C)."""
    argv = sys.argv[1:] if argv is None else argv
    # As the flags of `recipe`, each may be written with underscores too.
    args = parser().parse_args([re.sub(r"^--[\w-]+", lambda flag: flag[0].replace("_", "-"), word) for word in argv])
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # folders' names need not be UTF-8
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return {"sample": _sample, "inspect": _inspect, "pack": _pack}[args.command](args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; run the same command again", file=sys.stderr)
        return 130


def _sample(args: argparse.Namespace) -> int:
    from data_prep.sample import make_sample

    make_sample(args.out, args.train, args.val, args.seed)
    print(f"{args.train} + {args.val} images are in {args.out}; next: python -m data_prep inspect {args.out}")
    return 0


def _read_options(args: argparse.Namespace) -> ReadOptions:
    from data_prep.entries import ReadOptions

    return ReadOptions(**{name: value for name, value in vars(args).items() if name in ReadOptions.__annotations__})


def _inspect(args: argparse.Namespace) -> int:
    from data_prep.inspect import inspect

    return inspect(args.yolo_dir, _read_options(args), args.json, workers=args.workers)


def _pack(args: argparse.Namespace) -> int:
    from data_prep.dataset_card import conservation
    from data_prep.shards import pack

    if args.repo_id:
        from data_prep.upload import upload
        from recipe.hub import check_write_access

        logging.info(check_write_access(args.repo_id, "dataset"))  # before hours of packing
    manifest = pack(
        args.yolo_dir,
        args.out,
        _read_options(args),
        on_bad=args.on_bad,
        workers=args.workers,
        shard_size=args.shard_size,
        repo_id=args.repo_id,
    )
    for name, split in manifest["splits"].items():
        print(f"{name}: {conservation(split)}")
    shards = sum(len(split["files"]) for split in manifest["splits"].values())
    print(f"{shards} shards are in {args.out}; problems.csv lists everything that was cut, dropped or left out")
    if args.repo_id:
        print(f"{args.repo_id} holds them, in commit {upload(args.out, args.repo_id, private=not args.public)}")
    print(f"next: recipe train --data {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
