"""What to do next: plain sentences that follow from an evaluation's numbers.

    for sentence in next_steps(values, details, history=rows, shrink=0.8, num_queries=300): ...

Each rule looks at one weakness and says the number that shows it and the flag that helps. The limits are this
project's judgement, not a benchmark's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]

SMALL_BINS = ("<8", "8-16", "16-32")
SIZE_WORDS = {"<8": "below 8", ">=96": "of 96 and more"}
FEW_IMAGES = 100


def next_steps(
    values: Mapping[str, float],
    details: Mapping[str, Any],
    *,
    history: Rows = (),
    shrink: float = 1.0,
    num_queries: int = 300,
) -> list[str]:
    """Sentences, the most telling first; never empty.

    Args:
        shrink: by how much a typical image is resized for the model (0.5: to half its width).
    """
    if not sum(details["boxes"].values()):
        return ["The evaluated images hold no labelled boxes, so nothing can be measured: evaluate another split."]
    errors = details["errors"]
    if not sum(kinds["hits"] for kinds in errors.values()):
        return [
            "Not one box was found. After few steps this is normal: train longer (`--num_train_epochs`). If the loss "
            "of the last decoder layer has long stopped falling, look at predictions.png for boxes that are shifted."
        ]
    found = [
        *_missed(details, shrink),
        *_low_scores(details),
        *_false_kinds({name: kinds for name, kinds in errors.items() if details["boxes"][name]}),
        *_density(details),
        *_limits(values, details, num_queries),
        *_schedule(history),
    ]
    if values["map_50"] > 0 and values["map_75"] < 0.5 * values["map_50"]:
        found.append(
            f"Boxes are found but placed loosely: map_75 is {values['map_75']:.2f} where map_50 is "
            f"{values['map_50']:.2f}. More epochs sharpen them; so does a higher resolution."
        )
    if details["images"] < FEW_IMAGES:
        found.append(
            f"Only {details['images']} image{'s were' if details['images'] > 1 else ' was'} evaluated: other images "
            "would move every number by several points, so do not read small differences."
        )
    return found or ["No single weakness stands out: more epochs or more data are the next things to try."]


def _missed(details: Mapping[str, Any], shrink: float) -> list[str]:
    """Which class and size most of the missed boxes have, and what that asks for."""
    missed = {
        (name, row["bin"]): row["boxes"] * (1 - row["recall_best_f1"])
        for name, rows in details["by_size"].items()
        for row in rows
        if row["boxes"]
    }
    total = sum(missed.values())
    if total < 1:
        return []
    small = sum(count for (_, size), count in missed.items() if size in SMALL_BINS)
    name, size = max(missed, key=lambda key: missed[key])
    text = (
        f"{small / total:.0%} of all missed boxes are smaller than 32 pixels; the largest group is `{name}` "
        f"{SIZE_WORDS.get(size, f'of {size}')} pixels ({missed[name, size] / total:.0%})."
    )
    if small < 0.5 * total:
        return [text + " Size is not the main reason: see worst.png for hidden people and for missing labels."]
    if shrink < 0.9:
        return [
            text + f" Images are shrunk to {shrink:.0%} for the model: raise `--shortest_edge` and `--longest_edge`, "
            "or predict on overlapping slices of the image."
        ]
    return [
        text + " One patch of the backbone covers 16 pixels: enlarge the images (`--shortest_edge`, "
        "`--longest_edge`), or predict on overlapping slices of the image."
    ]


def _low_scores(details: Mapping[str, Any]) -> list[str]:
    sentences = []
    for name, rows in details["by_size"].items():
        boxes = sum(row["boxes"] for row in rows)
        lost = sum(row["boxes"] * (row["recall"] - row["recall_best_f1"]) for row in rows if row["boxes"])
        if boxes and lost > 0.1 * boxes:
            sentences.append(
                f"Another {lost / boxes:.0%} of `{name}` boxes are found, but with scores below the threshold: lower "
                "`--threshold` in `recipe predict` where a miss costs more than a false alarm; longer training "
                "separates the scores."
            )
    return sentences


def _false_kinds(errors: Mapping[str, Mapping[str, int]]) -> list[str]:
    advice = {
        "duplicate": (0.05, "are second boxes on something already found: the decoder learns to suppress them with "
                      "more epochs; until then torchvision.ops.batched_nms at IoU 0.7 removes most"),
        "wrong_class": (0.05, "have the place right and the class wrong: check the labels of both classes"),
        "badly_placed": (0.1, "touch a labelled box without fitting it: more epochs or a higher resolution help"),
        "background": (0.15, "lie on nothing labelled: look at worst.png whether people are there without a label; "
                       "if not, raise the threshold"),
    }  # fmt: skip
    sentences = []
    for name, kinds in errors.items():
        detections = sum(kinds.values()) - kinds["missed"]
        for kind, (limit, text) in advice.items():
            if kinds[kind] > limit * detections:
                sentences.append(f"{kinds[kind] / detections:.0%} of the `{name}` detections {text}.")
    return sentences


def _density(details: Mapping[str, Any]) -> list[str]:
    sentences = []
    for name, rows in details["by_density"].items():
        full = [row for row in rows if row["boxes"] >= 20]
        if len(full) > 1 and full[0]["recall_best_f1"] - full[-1]["recall_best_f1"] > 0.15:
            sentences.append(
                f"Crowding hurts `{name}`: {full[0]['recall_best_f1']:.0%} are found in images of {full[0]['bin']} "
                f"boxes, {full[-1]['recall_best_f1']:.0%} in those of {full[-1]['bin']}. More crowded training images "
                "and more `--num_queries` help."
            )
    return sentences


def _limits(values: Mapping[str, float], details: Mapping[str, Any], num_queries: int) -> list[str]:
    sentences = []
    if details["recall_ceiling"] < 0.99:
        sentences.append(
            f"{1 - details['recall_ceiling']:.1%} of the boxes cannot be found at all, because their images hold more "
            f"than {num_queries}: raise `--num_queries`."
        )
    if values["map_max300"] - values["map"] > 0.005:
        sentences.append(
            f"COCO's limit of 100 detections per image hides {values['map_max300'] - values['map']:.3f} of mAP: quote "
            "map_max300 beside map."
        )
    return sentences


def _schedule(history: Rows) -> list[str]:
    """Whether to train longer or shorter, from the evaluations of the run."""
    evaluations = [row for row in history if row.get("eval_map", -1) >= 0]
    if len(evaluations) < 3:
        return []
    best = max(range(len(evaluations)), key=lambda i: evaluations[i]["eval_map"])
    losses = [row["eval_loss"] for row in evaluations if "eval_loss" in row]
    last, before = evaluations[-1]["eval_map"], evaluations[-2]["eval_map"]
    if best == len(evaluations) - 1 and last > 1.02 * before:
        return [
            f"mAP still rose by {last - before:.3f} in the last epoch: a new run may be longer (`--num_train_epochs`)."
        ]
    if best < len(evaluations) - 1 and len(losses) == len(evaluations) and losses[-1] > 1.02 * min(losses):
        epoch = evaluations[best].get("epoch", best + 1)
        return [
            f"mAP was best after epoch {epoch:.0f} and the validation loss has risen from {min(losses):.2f} to "
            f"{losses[-1]:.2f} since its best: stop earlier, or augment more. The saved model is the best one."
        ]
    return []
