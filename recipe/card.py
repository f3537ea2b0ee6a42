"""The model card: README.md beside the weights, with the results where the Hub looks for them (model-index).

    write_card(Path("outputs/run"), metrics.compute(), metrics.details(), record)

It shows plots and no photographs: a model may be shared more widely than the images it was judged on.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from recipe import tables
from recipe.config import Config
from recipe.report import FIGURES, TITLES, operating_thresholds

# Meta's page is the text that its model cards name; the copy in its code repository lacks the display clause.
DINOV3_LICENSE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
LICENSE_NOTE = f"""\
**Built with DINOv3.** The backbone's weights are Meta's and lie in this repository unchanged, so the
[DINOv3 License]({DINOV3_LICENSE}) covers them and
what is derived from them. Among its terms, for whoever passes this model on: distribute it only under that agreement,
include a copy of the agreement, display "Built with DINOv3" prominently, and acknowledge DINOv3 in publications;
military, nuclear and weapons uses and espionage are excluded. Read the agreement itself before you share the model:
this list is no substitute."""
SHOWN = ("pr_curves", "where", "curves")  # plots without photographs
SETTINGS = ("backbone", "backbone_revision", "detr_init", "num_queries", "encoder_layers", "decoder_layers",
            "shortest_edge", "longest_edge", "num_train_epochs", "learning_rate", "weight_decay", "lr_scheduler_type",
            "warmup_steps", "max_grad_norm", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16",
            "seed")  # fmt: skip


def write_card(
    folder: Path, values: Mapping[str, float], details: Mapping[str, Any], record: Mapping[str, Any] | None = None
) -> Path:
    """Write FOLDER/README.md.

    Args:
        values, details: of `DetectionMetrics`, or as they stand in metrics.json.
        record: the contents of run.json; without it the card says nothing of how the model was trained.

    Returns:
        The card's path.
    """
    record = record or {}
    parts = [
        introduction(record, details),
        LICENSE_NOTE if has_dinov3(record) else "",
        results(values, details),
        pictures(folder),
        usage(name(folder, record), details),
        training(record),
        data_note(record),
        limitations(record),
    ]
    text = "\n\n".join(part for part in parts if part)
    path = folder / "README.md"
    ModelCard(f"---\n{metadata(folder, values, record).to_yaml()}\n---\n\n{text}\n").save(path)
    return path


def metadata(folder: Path, values: Mapping[str, float], record: Mapping[str, Any]) -> ModelCardData:
    """The front matter; undefined numbers are left out of the model-index."""
    config, dataset = record.get("config") or {}, record.get("dataset") or {}
    on_hub = dataset.get("revision") is not None  # a commit: the data came from a Hub repo
    data = dataset.get("data") if on_hub else None
    results = [
        EvalResult(
            task_type="object-detection",
            dataset_type=data or "private",
            dataset_name=data or "own data in the YOLO layout",
            dataset_split="validation",
            dataset_revision=dataset.get("revision"),
            metric_type=key,
            metric_name=key,
            metric_value=round(float(value), 5),
        )
        for key, value in values.items()
        if isinstance(value, int | float) and value >= 0
    ]
    dinov3 = has_dinov3(record)
    return ModelCardData(
        license="other" if dinov3 else None,
        license_name="dinov3-license" if dinov3 else None,
        license_link=DINOV3_LICENSE if dinov3 else None,
        library_name="transformers",
        pipeline_tag="object-detection",
        tags=["detr", "dinov3", "crowd-detection", "head-detection", "object-detection"],
        datasets=[data] if data else None,
        base_model=[config[key] for key in ("backbone", "detr_init") if is_repo(config.get(key))] or None,
        model_name=name(folder, record).rpartition("/")[2],
        eval_results=results or None,
    )


def name(folder: Path, record: Mapping[str, Any]) -> str:
    """The model's repo on the Hub, or the run's folder."""
    hub = (record.get("training") or {}).get("hub_model_id")
    return str(hub or record.get("run_name") or folder.resolve().name)


def has_dinov3(record: Mapping[str, Any]) -> bool:
    """Whether the backbone holds Meta's weights; the pilot's tiny one is random."""
    return (record.get("config") or {}).get("backbone") != "tiny"


def is_repo(text: Any) -> bool:
    """Whether a setting names a Hub repo, not a folder of this machine."""
    return isinstance(text, str) and bool(re.fullmatch(r"[\w-]+/[\w.-]+", text)) and not Path(text).exists()


def introduction(record: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    """What the model is."""
    config = record.get("config") or {}
    backbone = config.get("backbone", Config.backbone)
    text = (
        f"`{backbone}`"
        if is_repo(backbone)
        else "a randomly initialised tiny DINOv3"
        if backbone == "tiny"
        else "DINOv3"
    )
    classes = " and ".join(f"`{name}`" for name in details["boxes"])
    return (
        f"# {record.get('run_name') or 'Crowd detector'}\n\nA DETR detector for {classes} in crowded photographs. Its "
        f"backbone, {text}, is frozen: only the encoder, the decoder and the heads were trained. It is a plain "
        "`DetrForObjectDetection` of transformers; no code of this repository has to be trusted."
    )


def results(values: Mapping[str, float], details: Mapping[str, Any]) -> str:
    """The table by class, and the limits that COCO's cap hides."""
    head = [
        f"Evaluated on {details['images']:,} images of the validation split. With 300 detections per image instead of "
        f"COCO's 100, map is {tables.number(values['map_max300'])} and recall is {tables.number(values['mar_300'])}."
    ]
    return "\n".join(["## Results", "", *head, "", *tables.classes(values, details)])


def pictures(folder: Path) -> str:
    """The plots that the report has drawn, and a link to the rest of it."""
    there = [key for key in SHOWN if (folder / "report" / f"{key}.png").exists()]
    parts = [f"![{TITLES[key]}](report/{key}.png)\n\n{FIGURES[key]}" for key in there]
    if (folder / "report" / "report.md").exists():
        parts.append("[The whole report](report/report.md) also shows photographs of the validation split.")
    return "\n\n".join(parts)


def usage(model: str, details: Mapping[str, Any]) -> str:
    """How to load and predict, with the thresholds of best F1."""
    thresholds = operating_thresholds(details)
    shown = ", ".join(f"{label} {value:.2f}" for label, value in thresholds.items())
    return f"""## How to use it

```python
from transformers import pipeline

detector = pipeline("object-detection", model="{model}")
boxes = detector("crowd.jpg", threshold={min(thresholds.values()):.2f})  # label, score, box in pixels
```

or `AutoModelForObjectDetection.from_pretrained("{model}")` with `AutoImageProcessor`. The thresholds of best F1 on
the validation split: {shown}. With the recipe that trained it:

```bash
recipe predict {model} photos/ --out predictions
recipe evaluate {model} --data DIR_OR_REPO --out evaluation
```"""


def training(record: Mapping[str, Any]) -> str:
    """Command, settings and versions."""
    if not record:
        return ""
    settings = {**(record.get("training") or {}), **(record.get("config") or {})}
    lines = [[f"`{key}`", f"`{settings[key]}`"] for key in SETTINGS if settings.get(key) is not None]
    versions = ", ".join(f"{key} {value}" for key, value in (record.get("versions") or {}).items())
    text = ["## How it was trained", "", "```bash", command(record.get("command") or []), "```", ""]
    text += tables.table("setting | value", lines, "ll")
    origin = f"Recipe commit `{record.get('commit', 'unknown')}` on {record.get('device', 'an unknown device')}"
    return "\n".join([*text, "", f"{origin}; {versions}." if versions else f"{origin}."])


def command(argv: Sequence[str]) -> str:
    """The command line, without the folder that the program lay in and without the value of any token."""
    words: list[str] = []
    for word in argv[1:]:
        flag, equals, _ = word.partition("=")
        if words and words[-1].startswith("--") and "token" in words[-1]:
            word = "..."
        elif equals and flag.startswith("--") and "token" in flag:
            word = f"{flag}=..."
        words.append(word)
    return shlex.join(["recipe", *words])


def data_note(record: Mapping[str, Any]) -> str:
    """What it was trained on, and whose it is."""
    dataset = record.get("dataset") or {}
    lines = ["## Data", ""]
    for split in ("train", "validation"):
        if found := dataset.get(split):
            lines.append(f"- {split}: {found['images']:,} images with {found['boxes']:,} boxes")
    version = dataset.get("revision") or dataset.get("manifest")
    if version:
        lines += ["", f"Version `{version}` (the commit of a Hub dataset, or the sha256 of its manifest.json)."]
    lines += [
        "",
        "The photographs show people. Their licence and the consent of those shown are a matter of the dataset, not "
        "of this card: ask whoever gave you access before you share the images, the report or the model.",
    ]
    return "\n".join(lines)


def limitations(record: Mapping[str, Any]) -> str:
    """What it cannot do."""
    config = record.get("config") or {}
    queries = config.get("num_queries", Config.num_queries)
    edges = config.get("shortest_edge", Config.shortest_edge), config.get("longest_edge", Config.longest_edge)
    return f"""## Limitations

- It gives at most {queries} boxes per image, both classes together; whoever stands beyond that is missed.
- Images are resized to {edges[0]} pixels on the short side, {edges[1]} at most on the long one. Heads of a few
  pixels are often missed; the report gives recall by size.
- The numbers hold for photographs like those it was evaluated on. Other cameras, angles, light or crowds need a new
  evaluation and new thresholds.
- It finds people; it does not tell who they are, and it must not be the only ground for a decision about a person."""
