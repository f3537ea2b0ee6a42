"""What to do next after an evaluation: the training first, then resolution, queries and labels.

    next_steps(values, details, history, num_queries=300)

All limits are our own judgement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LITTLE = 0.1  # mAP below which a detector has learned little; finished ones reach 0.2 to 0.4 on crowds
FEW_EPOCHS = 3
FALSE_DETECTIONS = {  # kind: the share of the detections from which on it is worth a sentence, what to do
    "badly_placed": (0.1, "touch a labelled box without fitting it: try a higher resolution"),
    "duplicate": (0.05, "are second boxes on something already found: more queries or more epochs suppress them"),
    "wrong_class": (0.05, "have the place right and the class wrong: check the labels of both classes"),
    "background": (0.15, "lie on nothing labelled: look at worst.png whether people are there without a label"),
}
TRAIN_LONGER = (
    "Train longer: more `--num_train_epochs`, from these weights with `--init_from RUN`. Resolution and labels come "
    "later: what is still learning cannot be blamed on them yet."
)


def next_steps(
    values: Mapping[str, float], details: Mapping[str, Any], history: Sequence[Mapping[str, Any]], *, num_queries: int
) -> list[str]:
    """A Markdown list; one weakness each with its number and what helps. `history` is that of metrics.jsonl."""
    if not any(details["boxes"].values()):
        return ["- The images hold no labelled boxes, so nothing can be measured: evaluate another split."]
    level, evaluations = values["map"], [row for row in history if "eval_map" in row]
    maps = [row["eval_map"] for row in evaluations] or [level]
    last, best, epochs = (
        maps[-1],
        max(maps[:-1], default=maps[-1]),
        round(evaluations[-1]["epoch"], 2) if evaluations else None,
    )
    rising, falling = last > 1.02 * best, len(maps) > 2 and last < 0.98 * best
    flat = len(maps) > 2 and not rising and not falling
    few, little = epochs is not None and epochs < FEW_EPOCHS, level < LITTLE
    undertrained = rising or few or (little and not flat and not falling)
    unseen = 1 - details["recall_ceiling"]
    rows = [
        (little, f"mAP is {level:.3f}: the detector has learned little so far. After few steps this is normal."),
        (rising, f"mAP still rose in the last epoch, from {best:.3f} to {last:.3f}."),
        (falling, f"mAP has fallen from {best:.3f} to {last:.3f}: stop earlier, or augment more."),
        (flat and little, "mAP no longer rises: look at predictions.png for wrong labels, and start from COCO's "
                          "weights (`--detr_init facebook/detr-resnet-50`)."),
        (few, f"It has seen {epochs} epochs."),
        (undertrained, TRAIN_LONGER),
        *(missed(details) if not undertrained else ()),
        (unseen > 0.01, f"{unseen:.1%} of the boxes cannot be found at all, because their images hold more than "
                        f"{num_queries}: raise `--num_queries`."),
        *(false_detections(details) if not undertrained else ()),
    ]  # fmt: skip
    steps = [f"- {text}" for applies, text in rows if applies]
    return steps or ["- No single weakness stands out: try more epochs or more data."]


def missed(details: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """How large the missed boxes are, and which are found with scores that are too low."""
    bins = {(name, row["bin"]): row for name, rows in details["by_size"].items() for row in rows if row["boxes"]}
    counts = {key: row["boxes"] * (1 - row["recall_best_f1"]) for key, row in bins.items()}
    total, (name, size) = sum(counts.values()), max(counts, key=lambda key: counts[key])
    small = sum(count for key, count in counts.items() if key[1] in ("<8", "8-16", "16-32")) / max(total, 1)
    help = "raise `--shortest_edge` and `--longest_edge`" if small >= 0.5 else "see worst.png for missing labels"
    yield total >= 1, f"{small:.0%} of all missed boxes are below 32 pixels, most are `{name}` of {size}: {help}."
    for name, boxes in details["boxes"].items():
        own = [row for key, row in bins.items() if key[0] == name]
        lost = sum(row["boxes"] * (row["recall"] - row["recall_best_f1"]) for row in own) / max(boxes, 1)
        text = (
            f"Another {lost:.0%} of `{name}` boxes are found with scores below the threshold: lower `--threshold` in "
        )
        yield lost > 0.1, text + "`recipe predict` where a miss costs more than a false alarm."


def false_detections(details: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """Each kind of false detection that is frequent, of the classes that have labels."""
    for name, errors in details["errors"].items():
        detections = max(sum(errors.values()) - errors["missed"], 1)
        for kind, (limit, text) in FALSE_DETECTIONS.items():
            share = errors[kind] / detections
            yield bool(details["boxes"][name]) and share > limit, f"{share:.0%} of the `{name}` detections {text}."
