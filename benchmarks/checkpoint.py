"""An epoch's checkpoint at ViT-L size: two shards, one hard-linked, beside transformers' save_pretrained.

python benchmarks/checkpoint.py [--size large]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from backbone import SIZES
from rich.console import Console
from rich.table import Table
from transformers import DINOv3ViTBackbone

from recipe.config import Config
from recipe.model.backbone import BACKBONE_PREFIX
from recipe.model.checkpoint import save_detector, write_backbone
from recipe.model.detector import build_detector


def new_bytes(folder: Path) -> int:
    """Bytes of the files that no other folder shares."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.stat().st_nlink == 1)


def synced(save: Callable[[Path], None], folder: Path) -> float:
    start = time.perf_counter()
    save(folder)
    for path in folder.iterdir():
        if path.stat().st_nlink == 1:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="large")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        DINOv3ViTBackbone(SIZES[options.size]).save_pretrained(root / "backbone")
        model = build_detector(Config(preset="pilot", backbone=str(root / "backbone"), detr_init="none"))
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable)
        for parameter in trainable:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        frozen = sum(v.numel() for n, v in model.state_dict().items() if n.startswith(BACKBONE_PREFIX))
        write_backbone(model, root / "shard.safetensors")

        def ours(folder: Path) -> None:
            save_detector(model, folder, root / "shard.safetensors")
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")

        def stock(folder: Path) -> None:
            model.save_pretrained(folder)
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")

        table = Table("side", "seconds with fsync", "new MB per epoch", "ratio of seconds")
        best = {
            kind: min(synced(save, root / f"{kind}-{i}") for i in range(3))
            for kind, save in (("stock", stock), ("ours", ours))
        }
        for kind in best:
            megabytes = new_bytes(root / f"{kind}-2") / 1e6
            table.add_row(kind, f"{best[kind]:.2f}", f"{megabytes:.0f}", f"{best['stock'] / best[kind]:.1f}")
        Console().print(f"{frozen / 1e6:.1f} M frozen, {sum(p.numel() for p in trainable) / 1e6:.2f} M trained")
        Console().print(table)


if __name__ == "__main__":
    main()
