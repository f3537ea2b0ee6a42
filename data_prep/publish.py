"""The packed folder as the Hub sees it: its dataset card, and `upload(out, "USER/NAME")` (`pack ... --repo-id`)."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, HfApi

from data_prep.statistics import counts_table
from recipe.hub import as_user_errors, send_files, with_retries
from recipe.schema import UserError, features

PATIENCE = 3600.0  # seconds in which the upload is tried again
SIZES = {1e3: "n<1K", 1e4: "1K<n<10K", 1e5: "10K<n<100K", 1e6: "100K<n<1M", float("inf"): "n>1M"}  # the Hub's words
CARD = """\
---
{header}---

# {title}

Boxes are COCO `[x, y, width, height]` in pixels of the image after its EXIF orientation, cut at its border. The image
bytes are the original files'. Read it with `datasets.load_dataset("{source}")`.

Packed with `python -m data_prep pack`, every image decoded; "px" are sqrt(area) after the training resize:

{table}
"""


def write_dataset_card(out: Path, manifest: dict[str, Any], repo_id: str | None = None) -> None:
    """Write README.md, from whose header `load_dataset` and the Hub's viewer learn splits, columns and classes."""
    from datasets import DatasetInfo
    from datasets.info import DatasetInfosDict
    from datasets.splits import SplitDict, SplitInfo

    splits, sizes = manifest["splits"], SplitDict()
    for name, split in splits.items():
        size = sum(file["bytes"] for file in split["files"])
        sizes.add(SplitInfo(name, num_bytes=size, num_examples=split["images"]))
    total, columns = sum(size.num_bytes for size in sizes.values()), features(labelled=bool(manifest.get("labelled")))
    info = DatasetInfo(features=columns, splits=sizes, download_size=total, dataset_size=total)
    data_files = [{"split": name, "path": f"data/{name}-*"} for name in splits]
    images = sum(split["images"] for split in splits.values())
    card = DatasetCardData(
        pretty_name=repo_id or "Crowd detection",
        task_categories=["object-detection"],
        size_categories=next(word for limit, word in SIZES.items() if images < limit),
        tags=["crowd-detection"],
        configs=[{"config_name": "default", "data_files": data_files}],
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(card)
    text = CARD.format(
        header=f"{card.to_yaml()}\n",
        title=repo_id or "Crowd detection: " + " and ".join(manifest["classes"]),
        source=repo_id or "DIR",
        table=counts_table(splits),
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def upload(out: Path, repo_id: str, *, private: bool = True) -> str:
    """Send a packed folder to a Hub dataset repo, in one commit; only what changed travels.

    A shard that arrived is not sent again, whatever interrupted the upload. Shards that an earlier packing left there
    are deleted in the same commit, or the dataset would hold both.

    Returns:
        The commit that holds the dataset; the newest one when nothing changed.

    Raises:
        UserError: the repo holds something else, is public though `private`, or cannot be written or reached.
    """
    api, deadline = HfApi(), time.monotonic() + PATIENCE
    manifest = json.loads((out / "manifest.json").read_text())
    names = [f"data/{file['name']}" for split in manifest["splits"].values() for file in split["files"]]
    with as_user_errors(f"--repo-id {repo_id}: not sent, the same command resumes"):
        create = partial(api.create_repo, repo_id, repo_type="dataset", private=private, exist_ok=True)
        repo_id = with_retries(f"creating {repo_id}", create, deadline).repo_id
        info = with_retries(f"reading {repo_id}", partial(api.dataset_info, repo_id), deadline)
        there = {file.rfilename for file in info.siblings or ()}
        if "manifest.json" not in there and there - {".gitattributes", "README.md"}:
            raise UserError(f"--repo-id {repo_id}: holds something else than a packed dataset; give another")
        if private and not info.private:  # asked of the Hub: a repo that was there before is left as it was
            raise UserError(f"--repo-id {repo_id}: is public, for everybody to see; give --public, or another repo")
        stale = [name for name in sorted(there) if name.startswith("data/") and name not in names]
        files = {name: out / name for name in [*names, "README.md", "manifest.json"]}
        return send_files(api, repo_id, files, "Packed dataset", deadline, kind="dataset", delete=stale)
