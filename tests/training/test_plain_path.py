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

from recipe.arguments import parse
from recipe.data.batches import collate, normalise
from recipe.data.dataset import CrowdDataset, load_split
from recipe.data.geometry import Geometry
from recipe.model.detector import build_detector, build_processor

STEPS, BATCH = 50, 4
FLAGS = ["--preset", "pilot", "--d_model", "64", "--encoder_layers", "1", "--decoder_layers", "2",
         "--num_queries", "60", "--shortest_edge", "96", "--longest_edge", "160"]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(packed):
    source, annotations, _ = load_split(str(packed), "train")
    return CrowdDataset(source, annotations, Geometry(96, 160))


def plain_model(model):
    """The stock frozen forward, put into eval mode by hand as a careful user would; layers and loss as they are."""
    plain = DINOv3ViTBackbone(model.config.backbone_config)
    plain.load_state_dict(model.model.backbone.model.state_dict())
    model.model.backbone.model = plain.requires_grad_(False)

    def train():
        torch.nn.Module.train(model)
        model.model.backbone.eval()

    return model, train


def plain_batch(processor, dataset, rows):
    """PIL and the saved processor: floats from the start. The boxes stay ours: it would need annotations."""
    files = [io.BytesIO(dataset.source[row]["image"]["bytes"]) for row in rows]
    images = [Image.open(file).convert("RGB") for file in files]
    pixels = processor(images, return_tensors="pt")
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
    same = [row for row in range(len(dataset)) if dataset[row]["size"] == dataset[0]["size"]]
    rows = [same[start : start + BATCH] for start in range(0, len(same) - BATCH + 1, BATCH)]
    torch.manual_seed(0)
    args = parse(FLAGS)
    ours = build_detector(args)
    processor = build_processor(args, ours.config.backbone_config)
    plain, train = plain_model(copy.deepcopy(ours))
    expected = curve(plain, train, [plain_batch(processor, dataset, batch) for batch in rows])
    mean, std = processor.image_mean, processor.image_std
    batches = [normalise(collate([dataset[row] for row in batch]), mean, std) for batch in rows]
    found = curve(ours, ours.train, batches)
    assert expected[-5:].mean() < 0.9 * expected[:5].mean()
    np.testing.assert_allclose(found, expected, rtol=2e-3)
