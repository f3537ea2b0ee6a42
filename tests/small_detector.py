"""The smallest detector that is still a DETR over a DINOv3, its images, and its checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from recipe.config import Config
from recipe.model.checkpoint import save_detector, write_backbone
from recipe.model.detector import Detector, build_processor

SMALL = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 12}


def small_config(**changes) -> Config:
    flags = {"preset": "pilot", "backbone": "tiny", "detr_init": "none", "shortest_edge": 64, "longest_edge": 96}
    return Config(**flags | SMALL | changes)


def images(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


def targets(sizes: list[int], seed: int = 1) -> list[dict[str, Tensor]]:
    """For each image so many boxes of either class."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "class_labels": torch.randint(0, 2, (size,), generator=generator),
            "boxes": torch.rand(size, 4, generator=generator) * 0.4 + 0.05,
            "labelled": torch.ones(2, dtype=torch.bool),
            "ignored": torch.zeros(0, 4),
        }
        for size in sizes
    ]


def save(model: Detector, folder: Path) -> Path:
    write_backbone(model, folder.parent / "backbone.safetensors")
    save_detector(model, folder, folder.parent / "backbone.safetensors")
    build_processor(small_config(), model.config.backbone_config).save_pretrained(folder)
    return folder
