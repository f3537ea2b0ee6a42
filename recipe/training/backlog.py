"""What of a run is on the Hub and what is still to be sent: a mark in each folder, so that no kill confuses the two.

unpushed(Path("outputs/run"), "USER/NAME", final=True)  ->  ["checkpoint-8", "the final model and its report"]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe.report.card import SHOWN
from recipe.training.run import checkpoints, is_whole

PUSHED = "pushed.json"  # in a folder: where on the Hub its content is; without it, it is still to be sent
MODEL_FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json", "README.md")


def model_files(folder: Path) -> list[Path]:
    """What makes a folder a model for plain transformers, and its card."""
    return [path for pattern in MODEL_FILES for path in sorted(folder.glob(pattern))]


def report_files(folder: Path, *, private: bool) -> list[Path]:
    """The report of a finished run; photographs of people only where the repo is private."""
    files = sorted((folder / "report").glob("*"))
    return [path for path in files if private or path.suffix != ".png" or path.stem in SHOWN]


def tag_of(state: Mapping[str, Any]) -> str | None:
    """`epoch-03` at the end of an epoch, None within one."""
    epoch = round(state["epoch"])
    return f"epoch-{epoch:02d}" if abs(state["epoch"] - epoch) < 1e-6 else None


def mark(folder: Path, repo_id: str, commit: str) -> None:
    """Note that the content of `folder` is on the Hub."""
    (folder / PUSHED).write_text(json.dumps({"repo": repo_id, "commit": commit}) + "\n")


def is_pushed(folder: Path, repo_id: str) -> bool:
    """Whether `mark` was there for this repo."""
    try:
        return bool(json.loads((folder / PUSHED).read_text())["repo"] == repo_id)
    except (OSError, ValueError):
        return False


def backlog(folder: Path, repo_id: str) -> list[Path]:
    """The whole checkpoints that are not on the Hub, oldest first."""
    return [path for path in checkpoints(folder) if is_whole(path) and not is_pushed(path, repo_id)]


def unpushed(folder: Path, repo_id: str, *, final: bool) -> list[str]:
    """What is still to be sent, in words."""
    left = [path.name for path in backlog(folder, repo_id)]
    return left + (["the final model and its report"] if final and not is_pushed(folder, repo_id) else [])
