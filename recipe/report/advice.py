"""What to do next after an evaluation: the training first, then resolution, queries and labels.

    next_steps(values, details, history, shrink=0.6, num_queries=300)

All limits are our own judgement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LITTLE = 0.1  # mAP below which a detector has learned little; finished ones reach 0.2 to 0.4 on crowds
FEW_EPOCHS = 3
SMALL_BINS = ("<8", "8-16", "16-32")
FALSE_DETECTIONS = {  # kind: the share of the detections from which on it is worth a sentence, what to do
    "badly_placed": (0.1, "touch a labelled box without fitting it: try a higher resolution"),
    "duplicate": (0.05, "are second boxes on something already found: more queries or more epochs suppress them"),
    "wrong_class": (0.05, "have the place right and the class wrong: check the labels of both classes"),
    "background": (0.15, "lie on nothing labelled: look at worst.png whether people are there without a label"),
}
TRAIN_LONGER = "Train longer: more `--num_train_epochs`, from these weights with `--init_from RUN`. Resolution and "
TRAIN_LONGER += "labels come later: what is still learning cannot be blamed on them yet."


def next_steps(
    values: Mapping[str, float],
    details: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    *,
    shrink: float,
    num_queries: int,
) -> list[str]:
    """A Markdown list; one weakness each with its number and what helps.

    `history` is that of metrics.jsonl, and `shrink` by how much a typical image is scaled for the model.
    """
    if not any(details["boxes"].values()):
        return ["- The images hold no labelled boxes, so nothing can be measured: evaluate another split."]
    steps, undertrained = training_steps(values["map"], history)
    if not undertrained:
        steps += missed_steps(details, shrink)
    if details["recall_ceiling"] < 0.99:
        steps.append(f"{1 - details['recall_ceiling']:.1%} of the boxes cannot be found at all, because their images "
                     f"hold more than {num_queries}: raise `--num_queries`.")  # fmt: skip
    if not undertrained:
        steps += false_steps(details)
    return [f"- {step}" for step in steps or ["No single weakness stands out: try more epochs or more data."]]


def training_steps(level: float, history: Sequence[Mapping[str, Any]]) -> tuple[list[str], bool]:
    """What the level of mAP, its slope and the epochs say, and whether to train longer before anything else."""
    evaluations = [row for row in history if "eval_map" in row]
    maps = [row["eval_map"] for row in evaluations]
    rising = len(maps) > 1 and maps[-1] > 1.02 * max(maps[:-1])
    falling = len(maps) > 2 and maps[-1] < 0.98 * max(maps)
    flat = len(maps) > 2 and not rising and not falling
    few = bool(evaluations) and evaluations[-1].get("epoch", FEW_EPOCHS) < FEW_EPOCHS
    steps = []
    if level < LITTLE:
        steps.append(f"mAP is {level:.3f}: the detector has learned little so far. After few steps this is normal.")
    if rising:
        steps.append(f"mAP still rose in the last epoch, from {max(maps[:-1]):.3f} to {maps[-1]:.3f}.")
    elif falling:
        steps.append(f"mAP has fallen from {max(maps):.3f} to {maps[-1]:.3f}: stop earlier, or augment more.")
    elif flat and level < LITTLE:
        steps.append("mAP no longer rises: look at predictions.png for wrong labels, and start from COCO's weights "
                     "(`--detr_init facebook/detr-resnet-50`).")  # fmt: skip
    undertrained = rising or few or (level < LITTLE and not flat and not falling)
    if undertrained:
        steps.append((f"It has seen {evaluations[-1]['epoch']:g} epochs. " if few else "") + TRAIN_LONGER)
    return steps, undertrained


def missed_steps(details: Mapping[str, Any], shrink: float) -> list[str]:
    """How large the missed boxes are, and which are found with scores that are too low."""
    steps = []
    bins = [(name, row) for name, rows in details["by_size"].items() for row in rows if row["boxes"]]
    missed = {(name, row["bin"]): row["boxes"] * (1 - row["recall_best_f1"]) for name, row in bins}
    total, (name, size) = sum(missed.values()), max(missed, key=lambda key: missed[key])
    if total >= 1:
        small = sum(count for (_, each), count in missed.items() if each in SMALL_BINS) / total
        larger = f"raise `--shortest_edge` and `--longest_edge` (images are now scaled by {shrink:.2f})."
        help = larger if small >= 0.5 else "see worst.png for hidden people and missing labels."
        steps.append(
            f"{small:.0%} of all missed boxes are below 32 pixels, most are `{name}` of {size} pixels: {help}"
        )
    for name, boxes in details["boxes"].items():
        lost = sum(row["boxes"] * (row["recall"] - row["recall_best_f1"]) for each, row in bins if each == name)
        if boxes and lost > 0.1 * boxes:
            steps.append(
                f"Another {lost / boxes:.0%} of `{name}` boxes are found with scores below the threshold: lower "
                "`--threshold` in `recipe predict` where a miss costs more than a false alarm."
            )
    return steps


def false_steps(details: Mapping[str, Any]) -> list[str]:
    """Each kind of false detection that is frequent, of the classes that have labels."""
    steps = []
    for name, errors in details["errors"].items():
        detections = sum(errors.values()) - errors["missed"]
        for kind, (limit, text) in FALSE_DETECTIONS.items():
            if details["boxes"][name] and errors[kind] > limit * detections:
                steps.append(f"{errors[kind] / detections:.0%} of the `{name}` detections {text}.")
    return steps
