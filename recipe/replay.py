"""`recipe replay`: repeat the step whose loss was not finite, and say where the numbers broke.

recipe replay outputs/run/nonfinite/step-1234
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from recipe.data.batches import normalise
from recipe.model.checkpoint import load_detector, load_processor
from recipe.model.precision import quantise
from recipe.record import RunRecord
from recipe.schema import UserError


def replay(options: argparse.Namespace) -> int:
    """Run the batch saved in `options.folder` through the saved weights under the saved random state.

    Prints the losses and the first modules whose output is not finite. Returns 0 when the loss is finite this time,
    1 when it is broken again.
    """
    folder: Path = options.folder
    if not (folder / "batch.pt").exists():
        raise UserError(f"{folder}: has no batch.pt; give the folder that the stopped run named, nonfinite/step-N")
    saved = torch.load(folder / "batch.pt", map_location="cpu")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = RunRecord.read(folder.resolve().parents[1])
    bf16 = run.settings["bf16"] if run else device == "cuda"  # as the step was
    model = load_detector(folder, bf16=bf16).to(device).train()
    quantise(model.model.backbone, run.settings.get("backbone_precision", "bf16") if run else "bf16")
    processor = load_processor(folder)
    broken = collect_nonfinite(model)
    on_cpu, on_cuda = saved["random_state"]
    torch.set_rng_state(on_cpu)
    if on_cuda is not None and device == "cuda":
        torch.cuda.set_rng_state(on_cuda)
    inputs, items = send_to_device((saved["inputs"], saved["items"]), device)
    inputs = normalise(inputs, processor.image_mean, processor.image_std)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16), torch.no_grad():
        outputs = model(**inputs, num_items_in_batch=items)
    for name, value in outputs.loss_dict.items():
        print(f"{name:14} {' '.join(f'{layer:.4f}' for layer in value.tolist())}")
    images = [int(label["image_id"]) for label in inputs["labels"]]
    print(f"loss           {float(outputs.loss):.4f}   images {images}")
    if broken:
        print("first outputs that are not finite: " + ", ".join(broken[:5]))
    return 0 if torch.isfinite(outputs.loss) else 1


def collect_nonfinite(model: nn.Module) -> list[str]:
    """Collect, in the order of the forward pass, the names of modules whose output is not finite."""
    broken: list[str] = []

    def check(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
            broken.append(name)

    for name, module in model.named_modules():
        module.register_forward_hook(partial(check, name or "model"))
    return broken
