"""What a job needs on the loopback Hub: a dataset repo, and the Space that is its image."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import CommitOperationAdd

ROOT = Path(__file__).parents[1]
IMAGE = {"README.md": "---\nsdk: docker\n---\n", "Dockerfile": "FROM scratch\n"}
# What a job's environment needs besides what the Hub gives it: this checkout, and offline switches as in every test.
JOB_ENV = {name: os.environ[name] for name in ("NO_ALBUMENTATIONS_UPDATE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
JOB_ENV |= {"PYTHONPATH": str(ROOT)}


def publish(api, repo_id, files, kind="model"):
    """A private repo that holds these files: path -> text."""
    sdk = "docker" if kind == "space" else None
    api.create_repo(repo_id, repo_type=kind, private=True, exist_ok=True, space_sdk=sdk)
    operations = [CommitOperationAdd(path, text.encode()) for path, text in files.items()]
    api.create_commit(repo_id, operations, commit_message="files", repo_type=kind)
