"""The model card: README.md beside the weights, with the results where the Hub looks for them (model-index).

    write_card(Path("outputs/run"), metrics.compute(), metrics.details(), record)

It shows plots and no photographs: a model may be shared more widely than the images it was judged on.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from recipe.config import Config
from recipe.hub import is_repo_id
from recipe.report import tables
from recipe.report.report import PICTURES
from recipe.training.run import without_tokens

# Meta's page is the text that its model cards name; the copy in its code repository lacks the display clause.
DINOV3_LICENSE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
LICENSE_NOTE = f"""

**Built with DINOv3.** The backbone's weights are Meta's and lie in this repository unchanged, so the
[DINOv3 License]({DINOV3_LICENSE}) covers them and
what is derived from them. Among its terms, for whoever passes this model on: distribute it only under that agreement,
include a copy of the agreement, display "Built with DINOv3" prominently, and acknowledge DINOv3 in publications;
military, nuclear and weapons uses and espionage are excluded. Read the agreement itself before you share the model."""
SHOWN = ("thresholds", "where", "curves")  # plots without photographs
SETTINGS = ("backbone", "backbone_revision", "detr_init", "num_queries", "encoder_layers", "decoder_layers",
            "shortest_edge", "longest_edge", "num_train_epochs", "learning_rate", "weight_decay", "lr_scheduler_type",
            "warmup_steps", "max_grad_norm", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16",
            "seed")  # fmt: skip
TEXT = """\
# {title}

A DETR detector for {classes} in crowded photographs. Its DINOv3 backbone is frozen: only the encoder, the decoder and
the heads were trained. It is a plain `DetrForObjectDetection` of transformers and needs no custom code.{license}

## Results

{weights}{images:,} images of the validation split. With 300 detections per image instead of COCO's 100,
map is {map_max300} and recall is {mar_300}.

{results}

## How to use it

```python
from transformers import pipeline

detector = pipeline("object-detection", model="{model}")
boxes = detector("crowd.jpg", threshold={threshold:.2f})  # label, score, box in pixels
```

The thresholds of best F1 on the validation split: {thresholds}. With the recipe that trained it:

```bash
recipe predict {model} photos/ --out predictions
recipe evaluate {model} --data DIR_OR_REPO --out evaluation
```

{training}

The photographs show people: ask whoever gave you access to them before you share the images, the report or the model.

## Limitations

- It gives at most {queries} boxes per image, both classes together; heads of a few pixels are often missed.
- Other cameras, angles, light or crowds than those it was evaluated on need a new evaluation and new thresholds.
- It must not be the only ground for a decision about a person.
"""


def write_card(
    folder: Path, values: Mapping[str, float], details: Mapping[str, Any], record: Mapping[str, Any] | None = None
) -> Path:
    """Write FOLDER/README.md and return its path.

    Args:
        values, details: of `DetectionMetrics`, or as they stand in metrics.json.
        record: the contents of run.json; without it the card says nothing of how the model was trained. Its key
            `weights` says which they are: "epoch 2, step 8".
    """
    record = record or {}
    config = record.get("config") or {}
    model = (record.get("training") or {}).get("hub_model_id") or record.get("run_name") or folder.resolve().name
    dinov3 = config.get("backbone") != "tiny"  # the pilot's tiny one is random
    text = TEXT.format(
        title=record.get("run_name") or "Crowd detector",
        classes=" and ".join(f"`{name}`" for name in details["boxes"]),
        license=LICENSE_NOTE if dinov3 else "",
        weights=f"Weights of {record['weights']}. " if "weights" in record else "",
        images=details["images"],
        map_max300=tables.number(values["map_max300"]),
        mar_300=tables.number(values["mar_300"]),
        results="\n".join([*tables.classes(values, details), *pictures(folder)]),
        model=model,
        threshold=min(details["thresholds"].values()),
        thresholds=", ".join(f"{name} {value:.2f}" for name, value in details["thresholds"].items()),
        training="\n".join(training(record) if record else []),
        queries=config.get("num_queries", Config.num_queries),
    )
    path = folder / "README.md"
    front = metadata(values, record, model.rpartition("/")[2], dinov3).to_yaml()
    ModelCard(f"---\n{front}\n---\n\n{text}").save(path)
    return path


def metadata(values: Mapping[str, float], record: Mapping[str, Any], name: str, dinov3: bool) -> ModelCardData:
    """The front matter; undefined numbers are left out of the model-index."""
    config, dataset = record.get("config") or {}, record.get("dataset") or {}
    data = dataset.get("data") if dataset.get("revision") else None  # a commit: the data came from a Hub repo
    where: dict[str, Any] = {
        "dataset_type": data or "private",
        "dataset_name": data or "own data in the YOLO layout",
        "dataset_split": "validation",
        "dataset_revision": dataset.get("revision"),
    }
    results = [
        EvalResult(
            task_type="object-detection", metric_type=key, metric_name=key, metric_value=round(value, 5), **where
        )
        for key, value in values.items()
        if value >= 0
    ]
    sources = [config.get(key) or "" for key in ("backbone", "detr_init")]
    return ModelCardData(
        license="other" if dinov3 else None,
        license_name="dinov3-license" if dinov3 else None,
        license_link=DINOV3_LICENSE if dinov3 else None,
        library_name="transformers",
        pipeline_tag="object-detection",
        tags=["detr", "dinov3", "crowd-detection", "head-detection", "object-detection"],
        datasets=[data] if data else None,
        base_model=[name for name in sources if is_repo_id(name)] or None,
        model_name=name,
        eval_results=results or None,
    )


def pictures(folder: Path) -> list[str]:
    """The plots that the report has drawn, and a link to the rest of it."""
    lines = []
    for name in SHOWN:
        if (folder / "report" / f"{name}.png").exists():
            title, caption = PICTURES[name]
            lines += ["", f"![{title}](report/{name}.png)", "", caption]
    if (folder / "report" / "report.md").exists():
        lines += ["", "[The whole report](report/report.md) also shows photographs of the validation split."]
    return lines


def training(record: Mapping[str, Any]) -> list[str]:
    """Command, settings, versions and data; of the command line neither the program's folder nor any token."""
    settings = {**(record.get("training") or {}), **(record.get("config") or {})}
    command = shlex.join(["recipe", *without_tokens(record.get("command") or [])[1:]])
    lines = [[f"`{key}`", f"`{settings[key]}`"] for key in SETTINGS if settings.get(key) is not None]
    text = ["## How it was trained", "", "```bash", command, "```", "", *tables.table("setting | value", lines, "ll")]
    versions = [f"{key} {value}" for key, value in (record.get("versions") or {}).items()]
    origin = f"Recipe commit `{record.get('commit', 'unknown')}` on {record.get('device', 'an unknown device')}"
    text += ["", f"{', '.join([origin, *versions])}.", ""]
    dataset = record.get("dataset") or {}
    for split in ("train", "validation"):
        if found := dataset.get(split):
            text.append(f"- {split}: {found['images']:,} images with {found['boxes']:,} boxes")
    if version := dataset.get("revision") or dataset.get("manifest"):
        text += ["", f"Data `{version}` (the commit of a Hub dataset, or the sha256 of its manifest.json)."]
    return text
