"""A Hub with data and an image for jobs, whose `recipe` is a small script that stands in."""

from __future__ import annotations

import os
import sys

import pytest
from huggingface_hub import constants
from loopback.hub import LoopbackHub
from published import IMAGE, JOB_ENV, publish

from jobs import job

USERS = {
    "hf_alice": {"name": "alice", "role": "write"},
    "hf_reads": {"name": "alice", "role": "read"},
    "hf_bob": {"name": "bob"},
    # Without job.write.
    "hf_fine": {"name": "alice", "role": "fineGrained", "scopes": {"alice": ["repo.write"]}},
}
CARD = """---
dataset_info:
  splits:
  - name: train
    num_examples: 3600
  - name: validation
    num_examples: 360
---
"""
DATA = {"README.md": CARD, "data/train-00000-of-00001.parquet": "x", "data/validation-00000-of-00001.parquet": "y"}


@pytest.fixture
def stand_in(tmp_path):
    """Write the script that jobs run as `recipe`."""
    script = tmp_path / "bin" / "recipe"
    script.parent.mkdir()

    def write(body):
        script.write_text(f"#!{sys.executable}\nimport json, os, pathlib, sys, time\n{body}\n")
        script.chmod(0o755)

    write("print('trained')")
    return write


@pytest.fixture
def hub(tmp_path, stand_in, monkeypatch):
    """A Hub with a dataset and a built image, and this process as a client of alice's."""
    path = os.pathsep.join((str(tmp_path / "bin"), os.path.dirname(sys.executable), os.environ["PATH"]))
    with LoopbackHub(tmp_path / "hub", USERS, build_seconds=0, job_env=JOB_ENV | {"PATH": path}) as hub:
        api = hub.serve(monkeypatch, "hf_alice")
        publish(api, "alice/crowd", DATA, "dataset")
        publish(api, "alice/recipe", IMAGE, "space")
        monkeypatch.setattr(job, "POLL", 0.1)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        for name in ("TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID", "TRACKIO_WRITE_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield hub
