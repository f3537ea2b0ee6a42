"""Both splits of a run: `load_splits(args)`; the pilot makes its own, as a user would."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.arguments import Arguments
from recipe.data.annotations import split_statistics, statistics_in_words
from recipe.data.augment import build_augmentation
from recipe.data.dataset import CrowdDataset, load_split
from recipe.data.geometry import Geometry
from recipe.training.run import writable

logger = logging.getLogger(__name__)


@dataclass
class Splits:
    """Both splits, the part of validation on which epochs are compared, and what run.json says of them."""

    train: CrowdDataset
    validation: CrowdDataset
    part: CrowdDataset | None
    record: dict[str, Any]


def load_splits(args: Arguments) -> Splits:
    """Both splits as datasets, and what run.json says of them."""
    data = args.data or built_in_sample(args)
    geometry = Geometry(args.shortest_edge, args.longest_edge)
    where: dict[str, Any] = {"revision": args.data_revision, "seed": args.seed}
    splits: dict[str, CrowdDataset] = {}
    record: dict[str, Any] = {"data": data}
    for split, limit in {"train": args.max_train_images, "validation": args.max_val_images}.items():
        source, annotations, info = load_split(data, split, limit=limit, **where)
        found = split_statistics(annotations, geometry, args.num_queries)
        logger.info(statistics_in_words(found, split, args.num_queries))
        augmentation = build_augmentation(args) if split == "train" else None
        splits[split] = CrowdDataset(source, annotations, geometry, augmentation, args.seed)
        record |= {split: found, "revision": info["revision"], "manifest": info["manifest"]}
    counts = {f"{split}_{key}": record[split][key] for split in splits for key in ("images", "boxes")}
    record["fixed"] = {"manifest": record["manifest"], **counts}
    part = None
    if args.eval_images and args.eval_images < len(splits["validation"]):
        source, annotations, _ = load_split(data, "validation", limit=args.eval_images, **where)
        part = CrowdDataset(source, annotations, geometry)
    return Splits(splits["train"], splits["validation"], part, record)


def built_in_sample(args: Arguments) -> str:
    """The pilot's own data: a synthetic crowd, packed as a user would."""
    from data_prep.sample import make_sample
    from data_prep.shards import pack

    folder = Path(f"{args.output_dir}-data")
    packed = folder / "packed"
    with args.main_process_first(local=False, desc="the built-in sample"):
        if not (packed / "manifest.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            make_sample(writable(folder, "--output_dir") / "yolo", 10, 10)
            pack(folder / "yolo", packed)
    return str(packed)
