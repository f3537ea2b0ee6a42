"""Every speed path at once beside the plain one: the same loss curve over 50 steps from the same seed."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim import AdamW
from transformers import DINOv3ViTBackbone

from recipe.config import parse_train
from recipe.data.batches import collate, normalise
from recipe.data.dataset import CrowdDataset, load_split
from recipe.data.geometry import Geometry
from recipe.model.detector import build_model, build_processor, freeze

STEPS, BATCH = 50, 4
FLAGS = "--preset pilot --d_model 64 --encoder_layers 1 --decoder_layers 2 --num_queries 60"


@pytest.fixture(scope="module")
def dataset(packed):
    source, annotations, _ = load_split(str(packed), "train")
    return CrowdDataset(source, annotations, Geometry(96, 160))


def plain_model(model):
    """The stock backbone and loss, put into eval mode by hand as a careful user would."""
    model.model.backbone.requires_grad_(False)
    assert type(model.model.backbone.model) is DINOv3ViTBackbone

    def train():
        torch.nn.Module.train(model)
        model.model.backbone.eval()

    return model, train


def plain_batch(dataset, rows):
    """PIL and the stock processor: floats from the start. The boxes stay ours: padding, it would rescale its own."""
    files = [io.BytesIO(dataset.source[row]["image"]["bytes"]) for row in rows]
    images = [Image.open(file).convert("RGB") for file in files]
    pixels = build_processor(96, 160)(images, return_tensors="pt", pad_size={"height": 96, "width": 160})
    return pixels | {"labels": collate([dataset[row] for row in rows])["labels"]}


def curve(model, train, batches):
    torch.manual_seed(1)  # the dropout's
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    losses = []
    for step in range(STEPS):
        train()
        loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return np.array(losses)


def test_the_loss_curve_of_50_steps_is_that_of_the_plain_path(dataset):
    landscape = np.flatnonzero(~dataset.annotations.portrait)
    rows = [landscape[start : start + BATCH].tolist() for start in range(0, len(landscape) - BATCH + 1, BATCH)]
    torch.manual_seed(0)
    ours = build_model(parse_train(FLAGS.split())[0])
    plain, train = plain_model(copy.deepcopy(ours))
    freeze(ours)
    expected = curve(plain, train, [plain_batch(dataset, batch) for batch in rows])
    found = curve(ours, ours.train, [normalise(collate([dataset[row] for row in batch])) for batch in rows])
    assert expected[-5:].mean() < 0.9 * expected[:5].mean()
    np.testing.assert_allclose(found, expected, rtol=2e-3)
