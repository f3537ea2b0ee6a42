"""The command `recipe`: train, evaluate, predict, compare, export, doctor, push, sync, replay.

    recipe train --preset pilot

Imports lazily: `--help` and a wrong flag answer at once, without torch.
"""

from __future__ import annotations

import argparse
import logging
import os
import pkgutil
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_type_hints

from recipe.config import COUNT, SHARE, Config, Range, check_ranges, split_flags
from recipe.machine import in_words, outlive_readers
from recipe.schema import SPLITS, UserError

COMMANDS = {  # and the function behind each
    "train": "recipe.train:start",
    "doctor": "recipe.doctor:doctor",
    "evaluate": "recipe.evaluate:evaluate",
    "predict": "recipe.predict:predict",
    "compare": "recipe.report.compare:compare",
    "export": "recipe.export:export",
    "push": "recipe.training.push:push",
    "sync": "recipe.training.dashboard:sync",
    "replay": "recipe.replay:replay",
}
# What is allowed of the numbers of evaluate and predict.
RANGES = {"batch_size": COUNT, "workers": Range(0, 256), "limit": COUNT, "threshold": SHARE, "overlap": Range(0, 0.8)}
OUTPUTS = ("coco", "yolo", "drawings")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; a user's mistake is one line on stderr and exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    outlive_readers()
    if argv == ["--version"]:
        from recipe.record import describe

        print(describe())
        return 0
    options = read_options(argv)
    first = os.environ.get("RANK", "0") == "0"  # several processes meet the same: one says so
    # albumentations would ask the network for its newest version at import; tokenizers warn about forks.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # else each of its retries is said twice
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logger = logging.getLogger("recipe")
    logger.setLevel(logging.INFO if first else logging.ERROR)
    try:
        if argv[0] == "train":
            logger.info("loading torch and transformers")  # seconds, half a minute on a cold disk
        return int(pkgutil.resolve_name(COMMANDS[options.command])(options))
    except UserError as error:
        code, words = 2, f"error: {error}"
    except KeyboardInterrupt:
        again = "; the same command resumes from the last checkpoint" if argv[0] == "train" else ""
        code, words = 130, f"interrupted{again}"
    except Exception as error:
        if not (known := in_words(error, argv)):
            raise
        code, words, first = 2, known, True  # of this process alone
    if first:
        print(words, file=sys.stderr)
    return code


def read_options(argv: list[str]) -> argparse.Namespace:
    """The options of one subcommand, for train and doctor its `flags`; a wrong one is one line and exit code 2."""
    parser = build_parser()
    if argv[:1] in (["train"], ["doctor"]):
        command, *flags = argv
        if command == "train" or {"-h", "--help"} & {*flags}:
            split_flags(flags, command)  # --help and a wrong flag of the recipe's own answer without torch
        return argparse.Namespace(command=command, flags=flags)
    options = parser.parse_args(argv)
    try:
        check_ranges(vars(options), RANGES)
    except ValueError as error:
        parser.error(str(error))
    return options


def build_parser() -> argparse.ArgumentParser:
    """All subcommands; the flags of `train` live in `recipe.config`."""
    parser = argparse.ArgumentParser(prog="recipe", description="Train and use a crowd detector.", allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="version, commit and lock")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("train", help="train on a packed dataset (`recipe train --help` has its flags)")
    commands.add_parser("doctor", help="what can be found out before hours are spent; takes the flags of train")

    checkpoint = argparse.ArgumentParser(add_help=False)
    checkpoint.add_argument("checkpoint", help="a run's folder, a checkpoint-N, or a Hub repo")
    checkpoint.add_argument("--revision", help="branch, tag (epoch-03) or commit of a Hub repo")
    run = argparse.ArgumentParser(add_help=False)
    run.add_argument("folder", type=Path, help="OUTPUT_DIR of the run")

    evaluate = commands.add_parser("evaluate", parents=[checkpoint], help="COCO and crowd metrics, and the report")
    evaluate.add_argument("--data", required=True, help="packed folder or Hub dataset repo")
    evaluate.add_argument("--split", default="validation", choices=tuple(SPLITS.values()))
    evaluate.add_argument("--out", type=Path, help="folder for the report; default CHECKPOINT/evaluation-SPLIT")
    evaluate.add_argument("--batch_size", type=int, default=4)
    evaluate.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    evaluate.add_argument("--limit", type=int, help="only so many images, drawn by seed 0")
    precisions = get_args(get_type_hints(Config)["backbone_precision"])
    evaluate.add_argument("--backbone_precision", choices=precisions, default="bf16", help="as in training")
    evaluate.add_argument("--compare", type=Path, help="an earlier metrics.json to stand beside")
    evaluate.add_argument("--save-detections", action="store_true", help="predictions.json and images.json for COCO")

    predict = commands.add_parser("predict", parents=[checkpoint], help="boxes for images and videos")
    predict.add_argument("paths", nargs="+", metavar="PATH", help="images, videos, or folders of them")
    predict.add_argument("--out", type=Path, required=True, help="folder for the results")
    predict.add_argument("--threshold", type=float, help="for all classes; default: the checkpoint's own, else 0.5")
    predict.add_argument("--tile", type=_tile, metavar="HxW", help="look at parts of this size, such as 960x1536")
    predict.add_argument("--overlap", type=float, default=0.2, help="share of a tile that its neighbour sees too")
    predict.add_argument("--batch_size", type=int, default=4, help="images of one size at a time")
    predict.add_argument("--save", type=_outputs, default=["coco", "drawings"], help=f"any of {','.join(OUTPUTS)}")
    predict.add_argument("--data", help="a dataset: its images get their own ids in the results")

    compare = commands.add_parser("compare", help="one table, one picture and the differing settings of several runs")
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs, evaluations, or metrics.json files")
    compare.add_argument("--out", type=Path, default=Path("comparison"), help="folder for the table and the picture")

    export = commands.add_parser("export", parents=[checkpoint], help="ONNX, checked against PyTorch")
    export.add_argument("--out", type=Path, required=True, metavar="FILE.onnx")

    push = commands.add_parser("push", parents=[run], help="send what the Hub has missed of a run")
    push.add_argument("--hub_model_id", metavar="USER/NAME", help="default: the run's own")

    sync = commands.add_parser("sync", parents=[run], help="send what a Trackio dashboard has missed of a run")
    sync.add_argument("--trackio_space_id", metavar="USER/SPACE", help="default: the run's own")

    replay = commands.add_parser("replay", help="repeat the step whose loss was not finite")
    replay.add_argument("folder", type=Path, help="OUTPUT_DIR/nonfinite/step-N")
    return parser


def _tile(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or min(int(found[1]), int(found[2])) < 64:
        raise argparse.ArgumentTypeError(f"{text!r} is no height x width from 64 pixels, such as 960x1536")
    return int(found[1]), int(found[2])


def _outputs(text: str) -> list[str]:
    if not {*text.split(",")} <= {*OUTPUTS}:
        raise argparse.ArgumentTypeError(f"{text!r}: give any of {','.join(OUTPUTS)}")
    return text.split(",")


if __name__ == "__main__":
    sys.exit(main())
