"""How far to trust the numbers: 95 % intervals by bootstrap over images (Efron 1979), `bootstrap(metrics)`.

The images of the split are drawn again with replacement, and the numbers computed anew. Nothing is matched again: an
image drawn twice counts its detections twice, so a resample is one weight per image over the sorted detections.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from recipe.evaluation.crowd import log_average_miss_rate
from recipe.evaluation.metrics import DetectionMetrics, mean_of_defined


def bootstrap(metrics: DetectionMetrics, resamples: int = 200, seed: int = 0) -> dict[str, list[float] | None]:
    """[low, high], the 95 % interval of map, and of map_50_<class> and mr2_<class> for every class.

    Keys as in compute(); None where there is nothing to find. The same seed draws the same images, so two detectors
    evaluated on one split may be compared.
    """
    count = len(metrics.images())
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    draws = draws.astype(np.int32)  # [R, I] how often each image is drawn
    values: dict[str, list[float]] = {}
    for label, name in enumerate(metrics.class_names):
        ranked = metrics.ranked(label)
        capped = ranked.first(100)
        for times in draws * ranked.times:
            drawn = replace(ranked, times=times)
            values.setdefault(f"map_{name}", []).append(replace(capped, times=times).average_precision())
            values.setdefault(f"map_50_{name}", []).append(drawn.average_precision([0]))
            values.setdefault(f"mr2_{name}", []).append(log_average_miss_rate(drawn))
        del ranked, capped, drawn  # before the next class is gathered
    of_classes = [values.pop(f"map_{name}") for name in metrics.class_names]
    values["map"] = [mean_of_defined(numbers) for numbers in zip(*of_classes, strict=True)]
    defined = {key: [value for value in numbers if value >= 0] for key, numbers in values.items()}
    return {key: np.quantile(kept, [0.025, 0.975]).tolist() if kept else None for key, kept in defined.items()}
