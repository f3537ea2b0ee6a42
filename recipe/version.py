"""Which recipe this is: its version, its commit, its locked libraries.

    recipe --version

An image carries both in its environment (and its labels); a checkout asks git and its own requirements.lock.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent


def describe() -> str:
    """One line for people and logs."""
    return f"recipe {version('recipe')}, commit {commit()}, lock {lock()}"


def commit() -> str:
    """The git commit: from the image's environment, or of the checkout it lies in, "-dirty" where it differs."""
    if "RECIPE_COMMIT" in os.environ:
        return os.environ["RECIPE_COMMIT"]
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def lock() -> str:
    """The first 12 digits of the sha256 of requirements.lock, which names every wheel by hash."""
    if "RECIPE_LOCK" in os.environ:
        return os.environ["RECIPE_LOCK"]
    try:
        return hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()[:12]
    except OSError:
        return "unknown"
