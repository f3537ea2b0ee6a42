"""run.json: what made a run, read and written here alone; and the rows of metrics.jsonl.

    record = RunRecord.read(Path("outputs/run"))    # None where there is no run
    record.settings["learning_rate"], record.dataset["train"]["images"]
    read_log(Path("outputs/run"))[-1]["eval_map"]

Standard library only: the launcher reads it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from recipe.schema import UserError

RUN_FILE = "run.json"
LOG_FILE = "metrics.jsonl"
TOKEN_FLAG = r"--[\w-]*token[\w-]*"


@dataclass
class RunRecord:
    """What run.json holds."""

    run_name: str
    run_id: str  # one run on the dashboard, however often it is resumed
    started: str  # UTC, ISO 8601
    settings: dict[str, Any]  # every flag as it was resolved, tokens left out
    fixed_settings: dict[str, Any]  # those that decide the weights: a run is resumed with the same or not at all
    dataset: dict[str, Any]  # data, revision, manifest, and the statistics of both splits
    command: list[str] = field(default_factory=list)
    commit: str = "unknown"
    lock: str = "unknown"
    versions: dict[str, str] = field(default_factory=dict)
    device: str = "unknown"
    processes: int = 1
    pace: dict[str, Any] | None = None  # recipe/pace.py

    @classmethod
    def read(cls, folder: Path) -> RunRecord | None:
        """The record of the run in `folder`; None where there is none.

        Raises:
            UserError: the file is no run.json.
        """
        path = folder / RUN_FILE
        return cls.load(path) if path.exists() else None

    @classmethod
    def load(cls, path: Path) -> RunRecord:
        """The record in a file of any name. Raises UserError where it is none."""
        try:
            found = json.loads(path.read_text())
            if "identity" in found:  # as version 0.1 wrote it
                found["settings"] = found.pop("training") | found.pop("config")
                found["fixed_settings"] = found.pop("identity") | {"recipe": "0.1"}
            return cls(**{each.name: found[each.name] for each in fields(cls) if each.name in found})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}: cannot be read as the record of a run ({error}); restore or delete it"
            ) from error

    def write(self, folder: Path) -> None:
        """Write FOLDER/run.json, all of it or nothing."""
        partial = folder / f"{RUN_FILE}.partial"
        partial.write_text(json.dumps(asdict(self), indent=2, default=str) + "\n")
        partial.replace(folder / RUN_FILE)

    def check_same(self, expected: Mapping[str, Any], where: str) -> None:
        """Refuse to resume the run that lies at `where` under other settings.

        Raises:
            UserError: naming each setting that differs.
        """
        found = self.fixed_settings
        differing = [
            f"{name} was {found[name]}, now {expected[name]}"
            for name in sorted(found.keys() & expected.keys())
            if found[name] != expected[name]
        ]
        if differing:
            raise UserError(
                f"{where}: holds a run with other settings: {'; '.join(differing)}. Give the same settings to resume "
                f"it, or another {where.split()[0]} to start a new one"
            )


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that a killed process left unfinished is dropped."""
    path = folder / LOG_FILE
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def without_tokens(argv: Sequence[str]) -> list[str]:
    """A command line, with the values of its `--..._token` flags left out."""
    return [
        re.sub(f"^({TOKEN_FLAG}=).+", r"\1...", word) if not re.fullmatch(TOKEN_FLAG, before) else "..."
        for before, word in zip(["", *argv], argv, strict=False)
    ]
