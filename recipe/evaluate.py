"""`recipe evaluate`: the metrics and the report of any checkpoint; it needs no training state.

recipe evaluate outputs/run --data DIR_OR_REPO
recipe evaluate USER/MODEL --revision epoch-03 --data USER/DATASET --out outputs/epoch-03
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from recipe.arguments import Arguments
from recipe.data.dataset import CrowdDataset, load_split
from recipe.data.geometry import Geometry
from recipe.evaluation.metrics import DetectionMetrics
from recipe.model.checkpoint import load_detector, load_processor
from recipe.model.precision import quantise
from recipe.prediction.results import as_coco, write_results
from recipe.report.compare import compare_numbers, read_metrics
from recipe.report.report import print_numbers, write_report
from recipe.schema import UserError
from recipe.training.run import device, writable
from recipe.training.trainer import CrowdTrainer


def evaluate(options: argparse.Namespace) -> int:
    """Evaluate `options.checkpoint` on one split and write the report. Returns the exit code."""
    earlier = read_metrics(options.compare) if options.compare is not None else None  # a typo costs nothing yet
    folder = output_folder(options)
    gpu = torch.cuda.is_available()
    model = load_detector(options.checkpoint, options.revision, bf16=gpu)
    quantise(model.model.backbone, options.backbone_precision)
    processor = load_processor(options.checkpoint, options.revision)
    geometry = Geometry(processor.size["shortest_edge"], processor.size["longest_edge"])
    source, annotations, info = load_split(options.data, options.split, limit=options.limit)
    dataset = CrowdDataset(source, annotations, geometry)
    args = Arguments(
        data=options.data,
        output_dir=str(folder),
        per_device_eval_batch_size=options.batch_size,
        dataloader_num_workers=options.workers,
        accelerator_config={"non_blocking": gpu},
        bf16=gpu,
        use_cpu=not gpu,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=not sys.stderr.isatty(),
    )
    metrics = DetectionMetrics(num_queries=model.config.num_queries)
    CrowdTrainer(args, model, processor, None, dataset, metrics).evaluate()
    data = info | {"data": options.data, "split": options.split}
    record = {"checkpoint": options.checkpoint, "revision": options.revision, "dataset": data, "device": device()}
    found = write_report(folder, metrics, dataset, record=record)
    print_numbers(found)
    if earlier is not None:
        print("\n".join(compare_numbers({str(options.compare): earlier, options.checkpoint: found})))
    print(f"report     {folder / 'report' / 'report.md'}")
    if options.save_detections:
        write_results(folder, detections(metrics, dataset))
        print(f"detections {folder / 'predictions.json'}")
    return 0


def detections(metrics: DetectionMetrics, dataset: CrowdDataset) -> Iterator[dict[str, Any]]:
    """What was found in each image, as `recipe predict` writes it."""
    found = metrics.images()
    for index, image_id in enumerate(dataset.annotations.image_id.tolist()):
        image = found[image_id]
        height, width = image.size
        row = {"image_id": image_id, "file_name": dataset.file_name(index), "height": height, "width": width}
        yield row | {"detections": as_coco(image.boxes, image.scores, image.labels)}


def output_folder(options: argparse.Namespace) -> Path:
    """Where the report goes: --out, or a folder inside a local checkpoint."""
    local = Path(options.checkpoint)
    if options.out is None and not local.is_dir():
        raise UserError(f"{local}: no such folder; if it is a Hub repo, say with `--out DIR` where the report goes")
    return writable(options.out or local / f"evaluation-{options.split}", "--out")
