"""Small crowds made on the spot, and the smallest detector that is still a DETR over a DINOv3."""

from __future__ import annotations

import os
import shutil
import tempfile

# Before any library is imported: no network, nothing of the machine's caches and dashboards, no warnings about forks.
HOME = tempfile.mkdtemp(prefix="recipe-tests-")
os.environ |= {
    "HF_HOME": f"{HOME}/hf",
    "HF_DATASETS_CACHE": f"{HOME}/datasets",
    "TRACKIO_DIR": f"{HOME}/trackio",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",  # two test processes share two cores: more threads only wait for each other
}

from pathlib import Path

import cv2
import numpy as np
import pytest


def pytest_sessionfinish() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


def make_yolo(folder: Path, train: int = 8, val: int = 4, seed: int = 0) -> Path:
    """A YOLO folder of small photographs, every third one portrait, with persons and heads as bright rectangles."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        (folder / split / "images").mkdir(parents=True)
        (folder / split / "labels").mkdir(parents=True)
        for number in range(count):
            height, width = (120, 80) if number % 3 == 2 else (80, 120)
            pixels = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
            lines = []
            for _ in range(1 + number % 4):
                w, h = rng.uniform(0.15, 0.3), rng.uniform(0.3, 0.6)
                x, y = rng.uniform(w / 2, 1 - w / 2), rng.uniform(h / 2, 1 - h / 2)
                for kind, (cx, cy, bw, bh) in enumerate([(x, y, w, h), (x, y - h * 0.4, w * 0.5, h * 0.2)]):
                    corner = [(int((cx - bw / 2) * width), int((cy - bh / 2) * height))]
                    corner.append((int((cx + bw / 2) * width), int((cy + bh / 2) * height)))
                    cv2.rectangle(pixels, *corner, (200, 120, 60 + 150 * kind), -1)
                    lines.append(f"{kind} {cx:.6f} {cy:.6f} {bw:.6f} {bh:.6f}")
            cv2.imwrite(str(folder / split / "images" / f"{number:03d}.jpg"), pixels)
            (folder / split / "labels" / f"{number:03d}.txt").write_text("\n".join(lines) + "\n")
    names = "names: [person, head]\n"
    (folder / "data.yaml").write_text(f"train: train/images\nval: val/images\n{names}")
    return folder


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> Path:
    """A packed dataset: 8 training and 4 validation images, both orientations."""
    from data_prep.shards import pack

    folder = tmp_path_factory.mktemp("crowd")
    pack(make_yolo(folder / "yolo"), folder / "packed", workers=1)
    return folder / "packed"


# The smallest run that has every part: flip, affine, colour, dropout, two decoder layers, both orientations.
TINY = [
    *(
        "--backbone",
        "tiny",
        "--detr_init",
        "none",
        "--d_model",
        "32",
        "--encoder_layers",
        "1",
        "--decoder_layers",
        "2",
    ),
    *("--num_queries", "12", "--shortest_edge", "64", "--longest_edge", "96", "--color", "0.5", "--shown_images", "1"),
    *("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--num_train_epochs", "2"),
    *("--dataloader_num_workers", "0", "--report_to", "none", "--logging_steps", "1", "--learning_rate", "1e-3"),
]


@pytest.fixture
def tiny_flags(packed) -> list[str]:
    """Flags of `recipe train` for a run of seconds."""
    return ["--data", str(packed), *TINY]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A loopback Hub of the test's own; the clients in this process ask it, with alice's token and for 20 s."""
    from loopback.hub import LoopbackHub  # and with it the Hub's client: most tests need neither

    users = {
        "hf_alice": {"name": "alice", "role": "write", "orgs": ["acme"]},
        "hf_alice_reads": {"name": "alice", "role": "read"},
        "hf_alice_fine": {"name": "alice", "role": "fineGrained", "scopes": {"alice/other": ["repo.write"]}},
        "hf_bob": {"name": "bob"},
    }
    with LoopbackHub(tmp_path / "hub", users) as hub:
        hub.serve(monkeypatch, "hf_alice")
        monkeypatch.setattr("recipe.hub.PATIENCE", 20.0)
        yield hub
