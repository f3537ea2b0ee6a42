"""`recipe replay`: repeat the step whose loss was not finite, and say where the numbers broke.

recipe replay outputs/run/nonfinite/step-1234
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from recipe.batches import normalise
from recipe.checkpoint import load_model
from recipe.run import read_record
from recipe.schema import UserError


def replay(folder: str) -> int:
    """Run the saved batch through the saved weights under the saved random state.

    Prints the losses and the first modules whose output is not finite. Returns 0 when the loss is finite this time,
    1 when it is broken again.
    """
    path = Path(folder) / "batch.pt"
    if not path.exists():
        raise UserError(f"{folder}: has no batch.pt; give the folder that the stopped run named, nonfinite/step-N")
    saved = torch.load(path, map_location="cpu", weights_only=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = read_record(Path(folder, "..", ".."))
    bf16 = run["training"]["bf16"] if run else device == "cuda"  # as the step was
    model = load_model(folder, bf16=bf16).to(device).train()
    broken = watch_modules(model)
    restore(saved["rng"])
    inputs = normalise(to_device(saved["inputs"], device))
    with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
        outputs = model(**inputs)
    for name, value in outputs.loss_dict.items():
        print(f"{name:14} {float(value):.4f}")
    images = [int(label["image_id"]) for label in inputs["labels"]]
    print(f"loss           {float(outputs.loss):.4f}   images {images}")
    if broken:
        print("first outputs that are not finite: " + ", ".join(broken[:5]))
    return 0 if torch.isfinite(outputs.loss) else 1


def watch_modules(model: nn.Module) -> list[str]:
    """Collect, in the order of the forward pass, the names of modules whose output is not finite."""
    broken: list[str] = []

    def hook(name: str) -> Any:
        def check(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                broken.append(name)

        return check

    for name, module in model.named_modules():
        module.register_forward_hook(hook(name or "model"))
    return broken


def restore(rng: dict[str, Any]) -> None:
    """Set the generators back to where they stood before the step."""
    random.setstate(rng["python"])
    np.random.set_state(rng["numpy"])
    torch.set_rng_state(rng["cpu"])
    if "cuda" in rng and torch.cuda.is_available():
        torch.cuda.set_rng_state(rng["cuda"])


def to_device(value: Any, device: str) -> Any:
    """Tensors inside dicts and lists, moved."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    return [to_device(item, device) for item in value] if isinstance(value, list) else value
