"""One small detector and its checkpoint for the tests of this room."""

from __future__ import annotations

import pytest
import torch
from small_detector import save, small_config

from recipe.model.detector import build_detector


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_detector(small_config())


@pytest.fixture
def checkpoint(model, tmp_path):
    return save(model, tmp_path / "checkpoint")
