"""What the numbers of a run mean: one line at each evaluation while it trains, and at its end what to do next.

    trainer.add_callback(Outlook())
    next_steps(values, details, history, num_queries=300)

All limits are our own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]  # of metrics.jsonl

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


class Outlook(TrainerCallback):
    """Logs at each evaluation how good the run is, where its own curve leads, and the hours left."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began, self._first_step = time.perf_counter(), state.global_step

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, Any], **_: Any
    ) -> None:
        key = f"eval_{(args.metric_for_best_model or 'map').removeprefix('eval_')}"
        steps, left = state.global_step - self._first_step, state.max_steps - state.global_step
        if state.is_world_process_zero and key in metrics and steps > 0:
            end = state.max_steps * (state.epoch or 0) / state.global_step
            hours = (time.perf_counter() - self._began) / steps * left / 3600
            rows = [row for row in state.log_history if key in row]
            words = outlook(rows, key, args.greater_is_better is not False, end)
            logger.info("%s%s", words, f" About {hours:.1f} h left." if left > 0 else "")


def outlook(rows: Rows, key: str, greater_is_better: bool, end: float) -> str:
    """One line on a run's evaluations so far, of which `key` names the best, as seen from its last epoch, `end`."""
    now, best = rows[-1], (max if greater_is_better else min)(rows, key=lambda row: row[key])
    words = f"epoch {now['epoch']:.2f} of {end:.4g}: {key} {now[key]:.4f}, "
    words += "the best so far." if best is now else f"best so far {best[key]:.4f} at epoch {best['epoch']:.2f}."
    if now["epoch"] > 0.999 * end:
        return words
    if len(rows) == 1:
        return f"{words} Numbers near 0 are normal this early; from the second evaluation on its curve says more."
    expected = expect(rows, key, greater_is_better, end)
    return (
        f"{words} By its own curve it ends near {expected:.4f}, eval_loss {expect(rows, 'eval_loss', False, end):.4g}."
    )


def expect(rows: Rows, key: str, greater_is_better: bool, epoch: float) -> float:
    """A number at a later epoch, if its distance from the best possible goes on as a power of the epoch.

    Fitted to the later half of the evaluations: the first ones fall faster than any power.
    """
    recent = rows[-max(2, (len(rows) + 1) // 2) :]
    errors = np.array([1 - row[key] if greater_is_better else row[key] for row in recent])
    power, start = np.polyfit(np.log([row["epoch"] for row in recent]), np.log(errors.clip(1e-6)), 1)
    error = float(np.exp(start + power * np.log(epoch)))
    return max(1 - error, 0.0) if greater_is_better else error


def next_steps(
    values: Mapping[str, float], details: Mapping[str, Any], history: Rows, *, num_queries: int
) -> list[str]:
    """A Markdown list; one weakness each with its number and what helps. `history` is that of metrics.jsonl."""
    if not any(details["boxes"].values()):
        return ["- The images hold no labelled boxes, so nothing can be measured: evaluate another split."]
    level, epochs = values["map"], [row["epoch"] for row in history if "eval_map" in row]
    *earlier, last = [row["eval_map"] for row in history if "eval_map" in row] or [level]
    best = max(earlier, default=last)
    rising, falling = last > 1.02 * best, len(earlier) > 1 and last < 0.98 * best
    flat = len(earlier) > 1 and not rising and not falling
    few, little = bool(epochs) and epochs[-1] < FEW_EPOCHS, level < LITTLE
    undertrained = rising or few or (little and not flat and not falling)
    unseen = 1 - details["recall_ceiling"]
    rows = [
        (little, f"mAP is {level:.3f}: the detector has learned little so far. After few steps this is normal."),
        (rising, f"mAP still rose in the last epoch, from {best:.3f} to {last:.3f}."),
        (falling, f"mAP has fallen from {best:.3f} to {last:.3f}: stop earlier, or augment more."),
        (flat and little, "mAP no longer rises: look at predictions.png for wrong labels, and start from COCO's "
                          "weights (`--detr_init facebook/detr-resnet-50`)."),
        (few, f"It has seen {round(epochs[-1], 2)} epochs." if few else ""),
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
    remedy = "raise `--shortest_edge` and `--longest_edge`" if small >= 0.5 else "see worst.png for missing labels"
    yield total >= 1, f"{small:.0%} of all missed boxes are below 32 pixels, most are `{name}` of {size}: {remedy}."
    for name, boxes in details["boxes"].items():
        own = [row for key, row in bins.items() if key[0] == name]
        lost = sum(row["boxes"] * (row["recall"] - row["recall_best_f1"]) for row in own) / max(boxes, 1)
        text = f"Another {lost:.0%} of `{name}` boxes are found with scores below the threshold: lower"
        yield lost > 0.1, f"{text} `--threshold` in `recipe predict` where a miss costs more than a false alarm."


def false_detections(details: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """Each kind of false detection that is frequent, of the classes that have labels."""
    for name, errors in details["errors"].items():
        detections = max(sum(errors.values()) - errors["missed"], 1)
        for kind, (limit, text) in FALSE_DETECTIONS.items():
            share = errors[kind] / detections
            yield bool(details["boxes"][name]) and share > limit, f"{share:.0%} of the `{name}` detections {text}."
