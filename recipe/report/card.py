"""The model card: README.md beside the weights, with the results where the Hub looks for them (model-index).

    write_card(Path("outputs/run"), metrics.compute(), metrics.details(), RunRecord.read(Path("outputs/run")))
    trainer.add_callback(Card(metrics))     # one in every checkpoint

It shows plots and no photographs: a model may be shared more widely than the images it was evaluated on.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipe.config import Config
from recipe.evaluation.metrics import DetectionMetrics
from recipe.hub import is_repo_id
from recipe.record import RunRecord, without_tokens
from recipe.report import tables
from recipe.report.report import PICTURES
from recipe.report.tables import escape, number

# Meta's page is the text that its model cards name; the copy in its code repository lacks the display clause.
DINOV3_LICENSE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
LICENSE_NOTE = f"""

**Built with DINOv3.** The backbone's weights are Meta's and lie in this repository unchanged, so the
[DINOv3 License]({DINOV3_LICENSE}) covers them and
what is derived from them. Among its terms, for whoever passes this model on: distribute it only under that agreement,
include a copy of the agreement, display "Built with DINOv3" prominently, and acknowledge DINOv3 in publications;
military, nuclear and weapons uses and espionage are excluded. Read the agreement itself before you share the model."""
SHOWN = ("thresholds", "where", "curves")  # plots without photographs
SETTINGS = ("backbone", "backbone_revision", "detr_init", "init_from", "num_queries", "encoder_layers",
            "decoder_layers", "shortest_edge", "longest_edge", "num_train_epochs", "learning_rate", "weight_decay",
            "lr_scheduler_type", "warmup_steps", "max_grad_norm", "per_device_train_batch_size",
            "gradient_accumulation_steps", "bf16", "seed")  # fmt: skip
KINDS = {"map": "AP", "mar": "AR", "mr2": "MR-2", "ji": "JI"}  # a metric's name for people, by its first word
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

detector = pipeline("object-detection", model={model_in_python})
boxes = detector("crowd.jpg", threshold={threshold:.2f})  # label, score, box in pixels
```

The thresholds of best F1, chosen on the validation split: {thresholds}. In a finished model they also stand in
config.json, as `detection_thresholds`.

Batch photographs of one size only. In a batch of mixed sizes the smaller ones are padded, and the backbone sees the
padding: on a small test set that cost half of the average precision. `pipeline` takes them one by one unless it is
given a `batch_size`. With the recipe that trained it, which sees to this by itself:

```bash
recipe predict {model_in_shell} photos/ --out predictions
recipe evaluate {model_in_shell} --data DIR_OR_REPO --out evaluation
```

{training}

The photographs show people: ask whoever gave you access to them before you share the images, the report or the model.

## Limitations

- It gives at most {queries} boxes per image, both classes together; heads of a few pixels are often missed.
- Other cameras, angles, light or crowds than those it was evaluated on need a new evaluation and new thresholds.
- It must not be the only ground for a decision about a person.
"""


class Card(TrainerCallback):
    """Writes the card into every checkpoint, with the numbers of the last evaluation."""

    def __init__(self, metrics: DetectionMetrics) -> None:
        self.metrics = metrics

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero or self.metrics.step < 0:  # nothing has been evaluated yet
            return
        weights = f"epoch {state.epoch or 0:.2f}, step {state.global_step}"
        if self.metrics.step != state.global_step:
            weights += f"; all numbers are those of step {self.metrics.step}"
        folder = Path(args.output_dir)
        checkpoint = folder / f"checkpoint-{state.global_step}"
        write_card(checkpoint, self.metrics.compute(), self.metrics.details(), RunRecord.read(folder), weights)


def write_card(
    folder: Path,
    values: Mapping[str, float],
    details: Mapping[str, Any],
    record: RunRecord | None = None,
    weights: str = "",
) -> Path:
    """Write FOLDER/README.md and return its path.

    Args:
        values, details: of `DetectionMetrics`, or as they stand in metrics.json.
        record: of the run; without it the card says nothing of how the model was trained.
        weights: which they are: "epoch 2.00, step 8".
    """
    settings = record.settings if record is not None else {}
    name = record.run_name if record is not None else folder.resolve().name
    model = settings.get("hub_model_id") or name
    dinov3 = settings.get("backbone") != "tiny"  # the pilot's tiny one is random
    text = TEXT.format(
        title=escape(name),
        classes=" and ".join(f"`{name}`" for name in details["boxes"]),
        license=LICENSE_NOTE if dinov3 else "",
        weights=f"Weights of {escape(weights)}. " if weights else "",
        images=details["images"],
        map_max300=number(values["map_max300"]),
        mar_300=number(values["mar_300"]),
        results="\n".join([*tables.class_table(values, details), *plots(folder)]),
        model_in_python=json.dumps(model, ensure_ascii=False),
        model_in_shell=shlex.quote(model),
        threshold=min(details["thresholds"].values()),
        thresholds=", ".join(f"{name} {value:.2f}" for name, value in details["thresholds"].items()),
        training="\n".join(how_it_was_trained(record)) if record is not None else "",
        queries=settings.get("num_queries", Config.num_queries),
    )
    front = front_matter(values, record, model.rpartition("/")[2], dinov3).to_yaml()
    path = folder / "README.md"
    ModelCard(f"---\n{front}\n---\n\n{text}").save(path)
    return path


def front_matter(values: Mapping[str, float], record: RunRecord | None, name: str, dinov3: bool) -> ModelCardData:
    """What the Hub reads; undefined numbers are left out of the model-index."""
    settings, dataset = (record.settings, record.dataset) if record is not None else ({}, {})
    data = dataset.get("data") if dataset.get("revision") else None  # a commit: the data came from a Hub repo
    results = [
        EvalResult(
            task_type="object-detection",
            dataset_type=data or "private",
            dataset_name=data or "own data in the YOLO layout",
            dataset_split="validation",
            dataset_revision=dataset.get("revision"),
            metric_type=key,
            metric_name=" ".join([KINDS[key.split("_")[0]], *key.split("_")[1:]]),  # map_50_head: AP 50 head
            metric_value=round(value, 5),
        )
        for key, value in values.items()
        if value >= 0
    ]
    base = [settings[key] for key in ("backbone", "detr_init", "init_from") if is_repo_id(settings.get(key) or "")]
    return ModelCardData(
        license="other" if dinov3 else None,
        license_name="dinov3-license" if dinov3 else None,
        license_link=DINOV3_LICENSE if dinov3 else None,
        library_name="transformers",
        pipeline_tag="object-detection",
        tags=["detr", "dinov3", "crowd-detection", "head-detection", "object-detection"],
        datasets=[data] if data else None,
        base_model=base or None,
        base_model_relation="finetune" if base else None,  # of two base models the Hub would make a merge
        model_name=name,
        pretty_name=name,
        eval_results=results or None,
    )


def plots(folder: Path) -> list[str]:
    """The plots that the report has drawn, and a link to the rest of it."""
    lines = []
    for name in SHOWN:
        if (folder / "report" / f"{name}.png").exists():
            title, caption = PICTURES[name]
            lines += ["", f"![{title}](report/{name}.png)", "", caption]
    if (folder / "report" / "report.md").exists():
        lines += ["", "[The complete report](report/report.md) also shows photographs of the validation split."]
    return lines


def how_it_was_trained(record: RunRecord) -> list[str]:
    """Command, settings, versions and data; of the command line neither the program's folder nor any token."""
    command = shlex.join(["recipe", *without_tokens(record.command)[1:]]).replace("```", "'''")
    rows = [[f"`{key}`", escape(record.settings[key])] for key in SETTINGS if record.settings.get(key) is not None]
    lines = [
        "## How it was trained",
        "",
        "```bash",
        command,
        "```",
        "",
        *tables.table(["setting", "value"], rows, "ll"),
    ]
    versions = [f"{key} {value}" for key, value in record.versions.items()]
    lines += ["", ", ".join([f"Recipe commit `{record.commit}` on {escape(record.device)}", *versions]) + ".", ""]
    for split in ("train", "validation"):
        if found := record.dataset.get(split):
            lines.append(f"- {split}: {found['images']:,} images with {found['boxes']:,} boxes")
    if version := record.dataset.get("revision") or record.dataset.get("manifest"):
        lines += ["", f"Data `{version}` (the commit of a Hub dataset, or the sha256 of its manifest.json)."]
    return lines
