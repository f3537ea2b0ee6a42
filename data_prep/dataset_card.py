"""The dataset card that `python -m data_prep pack` writes beside the shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from data_prep.statistics import counts_table
from recipe.schema import features

CARD = """\
---
{header}---

# {title}

Boxes are COCO `[x, y, width, height]` in pixels of the image after its EXIF orientation was applied, cut at its
border; `width` and `height` are of that image. The image bytes are the original files'.

```python
from datasets import load_dataset

dataset = load_dataset("{source}")  # {splits}
```

{table}

Packed with `python -m data_prep pack`, every image decoded; every line and image that was cut or left out:

{counts}
"""


def write_dataset_card(out: Path, manifest: dict[str, Any], repo_id: str | None = None) -> None:
    """Write README.md, from whose header `load_dataset` and the Hub's viewer learn splits, columns and classes."""
    splits = manifest["splits"]
    header, *rows = (f"| {' | '.join(row)} |" for row in counts_table(splits))
    text = CARD.format(
        header=yaml.safe_dump(card_header(manifest), sort_keys=False, allow_unicode=True),
        title=repo_id or "Crowd detection: " + " and ".join(manifest["classes"]),
        source=repo_id or "DIR",
        splits=", ".join(splits),
        table="\n".join([header, "|---|" + "---:|" * len(splits), *rows]),
        counts="\n".join(f"- {name}: {conservation(split)}" for name, split in splits.items()),
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def card_header(manifest: dict[str, Any]) -> dict[str, Any]:
    """The card's metadata, in the form that the `datasets` library writes itself."""
    from datasets import DatasetInfo
    from datasets.splits import SplitDict, SplitInfo

    sizes = {
        name: SplitInfo(name, num_bytes=sum(file["bytes"] for file in split["files"]), num_examples=split["images"])
        for name, split in manifest["splits"].items()
    }
    total = sum(size.num_bytes for size in sizes.values())
    info = DatasetInfo(
        features=features(bool(manifest["labelled"])), splits=SplitDict(sizes), download_size=total, dataset_size=total
    )
    data_files = [{"split": name, "path": f"data/{name}-*"} for name in sizes]
    return {
        "task_categories": ["object-detection"],
        "tags": ["crowd-detection"],
        "dataset_info": info._to_yaml_dict(),
        "configs": [{"config_name": "default", "data_files": data_files}],
    }


def conservation(split: dict[str, Any]) -> str:
    """What went in and what came out, in one sentence."""
    dropped = sum(split["boxes_dropped"].values())
    rules = ", ".join(f"{count} {rule}" for rule, count in split["boxes_dropped"].items())
    clipped = split["problems"].get("clipped: over_border", 0)
    return (
        f"{split['images_in']:,} images in = {split['images']:,} packed + {split['images_left_out']:,} left out; "
        f"{split['boxes_in']:,} boxes in = {split['boxes']:,} packed + {dropped:,} dropped"
        f"{f' ({rules})' if rules else ''}; {clipped:,} cut at the border"
    )
