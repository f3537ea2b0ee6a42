"""The model card: README.md beside the weights, with the results where the Hub looks for them (model-index).

    write_card(Path("outputs/run"), metrics.compute(), metrics.details(), record)
    trainer.add_callback(Card(metrics))     # one in every checkpoint

It shows plots and no photographs: a model may be shared more widely than the images it was evaluated on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipe.evaluation.metrics import DetectionMetrics
from recipe.hub import is_repo_id
from recipe.record import RUN_FILE, RunRecord
from recipe.report.report import PICTURES
from recipe.report.tables import class_table, escape, number

# Meta's page is the text that its model cards name; the copy in its code repository lacks the display clause.
DINOV3_LICENSE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
TERMS: dict[str, Any] = {"license": "other", "license_name": "dinov3-license", "license_link": DINOV3_LICENSE}
LICENSE_NOTE = f"""
**Built with DINOv3.** The backbone's weights are Meta's and lie in this repository unchanged, so the
[DINOv3 License]({DINOV3_LICENSE}) covers them and
what is derived from them. Among its terms, for whoever passes this model on: distribute it only under that agreement,
include a copy of the agreement, display "Built with DINOv3" prominently, and acknowledge DINOv3 in publications;
military, nuclear and weapons uses and espionage are excluded. Read the agreement itself before you share the model.
"""
KINDS = {"map": "AP", "mar": "AR", "mr2": "MR-2", "ji": "JI"}  # a metric's name for people, by its first word


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
        checkpoint, record = folder / f"checkpoint-{state.global_step}", RunRecord.load(folder / RUN_FILE)
        write_card(checkpoint, self.metrics.compute(), self.metrics.details(), record, weights)


def write_card(
    folder: Path, values: Mapping[str, float], details: Mapping[str, Any], record: RunRecord, weights: str
) -> None:
    """Write FOLDER/README.md on the `weights` ("epoch 2.00, step 8") and their numbers, of `DetectionMetrics`."""
    model = record.settings.get("hub_model_id") or record.run_name
    dinov3 = record.settings["backbone"] != "tiny"  # the pilot's tiny one is random
    at_300 = f"With 300 detections per image instead of COCO's 100, map is {number(values['map_max300'])}."
    results = class_table(values, details)
    for name in ("thresholds", "where", "curves"):  # plots without photographs
        if (folder / "report" / f"{name}.png").exists():
            title, caption = PICTURES[name]
            results += ["", f"![{title}](report/{name}.png)", "", caption]
    limits, joined = details["thresholds"], "\n".join(results)
    thresholds = ", ".join(f"{name} {value:.2f}" for name, value in limits.items())
    train = record.dataset.get("train", {})
    seen = f"{train['images']:,} images with {train['boxes']:,} boxes. " if train else ""
    version = record.dataset.get("revision") or record.dataset.get("manifest")
    classes = " and ".join(f"`{name}`" for name in details["boxes"])
    text = f"""\
---
{front_matter(values, record, model.rpartition("/")[2], dinov3)}
---

# {escape(record.run_name)}

A DETR detector for {classes} in crowded photographs, trained over a frozen DINOv3 backbone.
{LICENSE_NOTE if dinov3 else ""}
## Results

Weights of {escape(weights)}. {details["images"]:,} images of the validation split. {at_300}

{joined}

## How to use it

```python
from transformers import pipeline  # a plain DetrForObjectDetection: no custom code is needed

detector = pipeline("object-detection", model={json.dumps(model, ensure_ascii=False)})
boxes = detector("crowd.jpg", threshold={min(limits.values()):.2f})  # label, score, box in pixels
```

Thresholds of best F1 on the validation split, in config.json as `detection_thresholds`: {thresholds}.
Batch photographs of one size only. In a batch of mixed sizes the smaller ones are padded, and the backbone sees the
padding: on a small test set that cost half of the average precision.

## Training

{seen}Data version `{version}`, recipe commit `{record.commit}` on {escape(record.device)}.
run.json holds all settings. The photographs show people: ask whoever gave you access to them before you share them.

## Limitations

- {record.settings["num_queries"]} boxes per image at most, both classes together; tiny heads are often missed.
- Other cameras, angles, light or crowds than those it was evaluated on need a new evaluation and new thresholds.
- It must not be the only ground for a decision about a person.
"""
    ModelCard(text).save(folder / "README.md")


def front_matter(values: Mapping[str, float], record: RunRecord, name: str, dinov3: bool) -> ModelCardData:
    """What the Hub reads; undefined numbers are left out of the model-index."""
    revision, settings = record.dataset.get("revision"), record.settings
    data = record.dataset["data"] if revision else None  # a commit: the data came from a Hub repo
    results = []
    for key, value in values.items():
        first, *rest = key.split("_")
        result = EvalResult(
            task_type="object-detection",
            dataset_type=data or "private",
            dataset_name=data or "own data in the YOLO layout",
            dataset_split="validation",
            dataset_revision=revision,
            metric_type=key,
            metric_name=" ".join([KINDS[first], *rest]),  # map_50_head: AP 50 head
            metric_value=round(value, 5),
        )
        results += [result] if value >= 0 else []
    base = [settings[key] for key in ("backbone", "detr_init", "init_from") if is_repo_id(settings.get(key) or "")]
    return ModelCardData(
        **(TERMS if dinov3 else {}),
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
