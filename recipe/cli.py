"""The command `recipe`: train, evaluate, predict, compare, export, doctor, push, sync, replay.

    recipe train --preset pilot

Imports lazily: `--help` and a wrong flag answer at once, without torch.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import pkgutil
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from recipe.config import split_flags, train_parser
from recipe.schema import CLASS_NAMES, SPLITS, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; a user's mistake is one line on stderr and exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if argv == ["--version"]:
        from recipe.version import describe

        print(describe())
        return 0
    if argv[:1] in (["train"], ["doctor"]):
        if {"-h", "--help"} & set(argv):
            train_parser(argv[0]).parse_args(["--help"])
        if argv[0] == "train":
            split_flags(argv[1:])  # a wrong flag of the recipe's own answers at once, without torch
    else:
        options = parser.parse_args(argv)
    # albumentations would ask the network for its newest version at import; tokenizers warn about forks.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # else each of its retries is said twice
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("recipe").setLevel(logging.INFO)
    try:
        if argv[0] == "train":
            return _train(argv)
        if argv[0] == "doctor":
            from recipe.doctor import doctor

            return doctor(argv[1:])
        return int(pkgutil.resolve_name(options.run)(options))
    except UserError as error:
        code, words = 2, f"error: {error}"
    except KeyboardInterrupt:
        again = "; the same command resumes from the last checkpoint" if argv[0] == "train" else ""
        code, words = 130, f"interrupted{again}"
    except Exception as error:
        if not (reason := out_of_room(error)):
            raise
        code, words = 2, f"error: a disk is full ({reason}); free some of it and give the same command again"
    if os.environ.get("RANK", "0") == "0":  # several processes meet the same: one says so
        print(words, file=sys.stderr)
    return code


def build_parser() -> argparse.ArgumentParser:
    """All subcommands; those of `train` live in `recipe.config`."""
    parser = argparse.ArgumentParser(
        prog="recipe", description="Train and use a crowd detector: a frozen DINOv3 under DETR.", allow_abbrev=False
    )
    parser.add_argument("--version", action="store_true", help="version, commit and lock")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("train", help="train on a packed dataset (`recipe train --help` has its flags)")

    commands.add_parser("doctor", help="what can be found out before hours are spent; takes the flags of train")

    evaluate = commands.add_parser("evaluate", help="COCO and crowd metrics of a checkpoint, and the report")
    _checkpoint(evaluate, "recipe.evaluate:evaluate")
    evaluate.add_argument("--data", required=True, help="packed folder or Hub dataset repo")
    evaluate.add_argument("--split", default="validation", choices=tuple(SPLITS.values()))
    evaluate.add_argument("--out", type=Path, help="folder for the report; default CHECKPOINT/evaluation-SPLIT")
    evaluate.add_argument("--batch_size", type=_count, default=4)
    evaluate.add_argument("--workers", type=partial(_count, least=0), default=min(8, os.cpu_count() or 1))
    evaluate.add_argument("--limit", type=_count, help="only so many images, drawn by seed 0")
    evaluate.add_argument("--save-detections", action="store_true", help="predictions.json and images.json for COCO")

    predict = commands.add_parser("predict", help="boxes for images and videos: COCO results, label files, drawings")
    _checkpoint(predict, "recipe.predict:predict")
    predict.add_argument("paths", nargs="+", metavar="PATH", help="images, videos, or folders of them")
    predict.add_argument("--out", type=Path, required=True, help="folder for the results")
    predict.add_argument("--threshold", type=_share, help=f"one score for all of {', '.join(CLASS_NAMES)}; default: "
                         "those that the checkpoint carries, else 0.5")  # fmt: skip
    predict.add_argument("--tile", type=_tile, metavar="HxW", help="look at parts of this size, such as 960x1536")
    predict.add_argument(
        "--overlap", type=partial(_share, most=0.8), default=0.2, help="share of a tile that its neighbour sees too"
    )
    predict.add_argument("--batch_size", type=_count, default=4, help="images of one size at a time")
    predict.add_argument("--save", type=_outputs, default=["coco", "drawings"], help="any of coco,yolo,drawings")
    predict.add_argument("--data", help="a dataset: its images get their own ids in the results")

    compare = commands.add_parser("compare", help="one table, one picture and the differing settings of several runs")
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs, evaluations, or metrics.json files")
    compare.add_argument("--out", type=Path, default=Path("comparison"), help="folder for the table and the picture")
    compare.set_defaults(run="recipe.report.compare:compare")

    export = commands.add_parser("export", help="ONNX, checked against PyTorch")
    _checkpoint(export, "recipe.export:export")
    export.add_argument("--out", type=Path, required=True, metavar="FILE.onnx")

    for name, run, text, flag, value in (
        ("push", "recipe.training.push:push", "send what the Hub has missed of a run", "hub_model_id", "USER/NAME"),
        ("sync", "recipe.training.dashboard:sync", "send what a Trackio dashboard has missed of a run",
         "trackio_space_id", "USER/SPACE"),
    ):  # fmt: skip
        command = commands.add_parser(name, help=text)
        command.add_argument("folder", type=Path, help="OUTPUT_DIR of the run")
        command.add_argument(f"--{flag}", metavar=value, help="default: the run's own")
        command.set_defaults(run=run)

    replay = commands.add_parser("replay", help="repeat the step whose loss was not finite")
    replay.add_argument("folder", type=Path, help="OUTPUT_DIR/nonfinite/step-N")
    replay.set_defaults(run="recipe.replay:replay")
    return parser


def _checkpoint(command: argparse.ArgumentParser, run: str) -> None:
    command.add_argument("checkpoint", help="a run's folder, a checkpoint-N, or a Hub repo")
    command.add_argument("--revision", help="branch, tag (epoch-03) or commit of a Hub repo")
    command.set_defaults(run=run)


# What safetensors and torch.save say of a full disk, and of one (or a `ulimit -f`) that takes no larger file.
FULL_DISK = ("No space left on device", "File too large", "unexpected pos")


def out_of_room(error: Exception) -> str | None:
    """What an error, or one that led to it, says of a full disk; the libraries wrap it or have words of their own."""
    from recipe.hub import causes

    for cause in causes(error):
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or any(words in str(cause) for words in FULL_DISK):
            return " ".join(str(cause).split())[:200]
    return None


def _count(text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
    return int(text)


def _share(text: str, most: float = 1.0) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {most:g}")
    return value


def _tile(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or min(int(found[1]), int(found[2])) < 64:
        raise argparse.ArgumentTypeError(f"{text!r} is no height x width from 64 pixels, such as 960x1536")
    return int(found[1]), int(found[2])


def _outputs(text: str) -> list[str]:
    if wrong := set(text.split(",")) - {"coco", "yolo", "drawings"}:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(wrong))}: give any of coco,yolo,drawings")
    return text.split(",")


def _train(argv: Sequence[str]) -> int:
    logging.getLogger("recipe").info("loading torch and transformers")  # seconds, half a minute on a cold disk
    import torch

    gpus = torch.cuda.device_count()
    if gpus > 1 and "LOCAL_RANK" not in os.environ:
        from recipe.training.processes import run_on_all

        return run_on_all(gpus, argv)
    from recipe.arguments import parse
    from recipe.train import train

    return train(parse(argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
