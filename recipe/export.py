"""`recipe export`: a trained detector as ONNX, checked against PyTorch before the file is there.

    recipe export outputs/run --out crowd.onnx

What goes in and comes out is said in `metadata`, which the file carries; pixels are normalised inside.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, DetrForObjectDetection

from recipe.config import PATCH
from recipe.model.checkpoint import load_detector, load_processor
from recipe.model.detector import Detector
from recipe.prediction.predictor import class_thresholds
from recipe.record import describe
from recipe.schema import CLASS_NAMES, UserError
from recipe.training.run import writable

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
CHECKED = ((1, 320, 480), (2, 544, 224))  # batch, height, width: neither is traced, and large ones differ no more
TOLERANCE = 1e-3  # of logits and boxes: ONNX Runtime adds in another order


def export(options: argparse.Namespace) -> int:
    """Write `options.checkpoint` as ONNX to `options.out`, for any batch and image size. Returns the exit code."""
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        raise UserError(f"recipe export needs {', '.join(missing)}: run `pip install 'recipe[export]'`")
    folder = writable(options.out.parent, "--out")
    if options.out.is_dir():
        raise UserError(f"--out {options.out}: is a folder; give a file, as in `--out {options.out / 'model.onnx'}`")
    model = load_detector(options.checkpoint, options.revision).eval()
    if not isinstance(model, DetrForObjectDetection):  # the sizes of its maps become constants of the trace
        raise UserError(
            f"{options.checkpoint}: is {model.config.model_type}, which torch's exporter cannot write for any image "
            "size. Use it by `recipe predict` or transformers, or train with `--detector detr`"
        )
    processor = load_processor(options.checkpoint, options.revision)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as unchecked:
        file = Path(unchecked) / options.out.name
        write_onnx(model, processor, file)
        compare(file, model, processor)
        for part in Path(unchecked).iterdir():  # beyond 2 GB the weights have a file of their own
            part.replace(folder / part.name)
    print(f"exported   {options.out} (at two image sizes within {TOLERANCE} of PyTorch)")
    return 0


class ExportedDetector(nn.Module):
    """The plain `DetrForObjectDetection` that others load, with the processor's normalisation before it."""

    def __init__(self, model: Detector, processor: BaseImageProcessor) -> None:
        super().__init__()
        self.detector = DetrForObjectDetection(model.config)
        self.detector.load_state_dict(model.state_dict())
        self.processor = processor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [batch, 3, height, width] -> logits [batch, queries, classes + 1], pred_boxes [batch, queries, 4]."""
        mean, std = (images.new_tensor(values, dtype=torch.float32)[:, None, None] for values in
                     (self.processor.image_mean, self.processor.image_std))  # fmt: skip
        outputs = self.detector(pixel_values=(images.float() * self.processor.rescale_factor - mean) / std)
        return outputs.logits, outputs.pred_boxes


def metadata(model: Detector, processor: BaseImageProcessor) -> dict[str, str]:
    """What a user of the file has to know, as ONNX keeps it: text."""
    shortest, longest = processor.size["shortest_edge"], processor.size["longest_edge"]
    return {
        "images": f"uint8 [batch, 3, height, width] RGB, sides multiples of {PATCH} from {2 * PATCH}, as decoded",
        "logits": "float32 [batch, queries, classes + 1]; scores are the softmax without the last class, no object",
        "pred_boxes": "float32 [batch, queries, 4]: center x, center y, width, height as shares of the image",
        "resize": f"bilinear, antialiased: shortest side {shortest} unless the longest would pass {longest}, then "
        f"each side down to a multiple of {PATCH}",
        "shortest_edge": str(shortest),
        "longest_edge": str(longest),
        "classes": json.dumps(CLASS_NAMES),
        "thresholds": json.dumps(dict(zip(CLASS_NAMES, class_thresholds(model, None), strict=True))),
        "version": describe(),
    }


def write_onnx(model: Detector, processor: BaseImageProcessor, file: Path) -> None:
    """Trace the detector with batch, height and width left open."""
    rows, columns = (torch.export.Dim(name, min=2, max=1024) for name in ("rows", "columns"))  # of patches
    program = torch.onnx.export(
        ExportedDetector(model, processor).eval(),
        (torch.zeros(2, 3, 4 * PATCH, 6 * PATCH, dtype=torch.uint8),),
        input_names=["images"],
        output_names=["logits", "pred_boxes"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch"), 2: PATCH * rows, 3: PATCH * columns}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # as only the older exporter's is
    program.model.metadata_props.update(metadata(model, processor))
    program.save(file)


@torch.inference_mode()
def compare(file: Path, model: Detector, processor: BaseImageProcessor) -> None:
    """Run the file by ONNX Runtime, beside the detector that is evaluated; UserError where they differ."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch, height, width in CHECKED:
        images = torch.randint(256, (batch, 3, height, width), dtype=torch.uint8)
        size = {"height": height, "width": width}
        outputs = model(processor(list(images), size=size, return_tensors="pt")["pixel_values"])
        found = session.run(["logits", "pred_boxes"], {"images": images.numpy()})
        for theirs, ours in zip(found, (outputs.logits, outputs.pred_boxes), strict=True):
            if not np.allclose(theirs, ours, rtol=0, atol=TOLERANCE):  # nor is NaN
                raise UserError(
                    f"at {height}x{width} the exported detector differs from PyTorch by more than {TOLERANCE}, so it "
                    "was not kept: export with the locked versions of torch, onnxscript and onnxruntime"
                )
