"""What one training step costs at ViT-L size, counted without a GPU: FLOPs, bytes, kernels, host reads, activations.

python benchmarks/step_budget.py

This recipe with its frozen layers compiled (the default on a GPU), without, and in 8 bits; version 0.1 (the stock DETR
on a canvas of 960x1536 with its mask, DINOv3's stock layers in bf16, one map kept, the loss of this recipe); the
literal plan (the same canvas, all of it stock, fp32 weights under autocast). The forward runs on fake CUDA tensors in
a batch of two, with the shapes and dtypes of a GPU; attention counts as one kernel, backward as twice the forward.
Compiled layers move what inductor's fusion says. Hours follow from `CARDS`: stated rates, not measured ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from counts import Counts, FusedAttention, HostReads, autocast, fused_layer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DetrForObjectDetection, DINOv3ViTBackbone
from transformers.initialization import no_init_weights

from recipe.config import Config
from recipe.data.batches import normalise
from recipe.data.geometry import Geometry
from recipe.model.backbone import FrozenBackbone, large_backbone, tiny_backbone
from recipe.model.detector import detector_config
from recipe.model.detr import Detr
from recipe.model.loss import detection_loss

CANVAS = (960, 1536)
BATCH = 2
FAKE = FakeTensorMode()  # one for all: transformers caches position embeddings
# The assumed share of each shape among the photographs, as (height, width).
MIX = {(1080, 1920): 0.25, (1000, 1500): 0.35, (1200, 1600): 0.25, (1200, 1200): 0.10, (1000, 2000): 0.05}
IMAGES, EVALUATED, EPOCHS = 55_442, 12_065, 10
EIGHT = 1.7  # times the bf16 rate of the frozen linear layers' products, on paper; what scaling moves is counted
MASKED = 0.5  # of the attention's rate, where a bias shuts out flash attention


@dataclass(frozen=True)
class Card:
    """What a card is assumed to sustain."""

    linear: float  # TFLOP/s
    attention: float  # TFLOP/s
    bandwidth: float  # GB/s of elementwise kernels
    host: tuple[float, float]  # ms an image that the GPU waits for the host: at 23 waits a step, and at 3


CARDS = {
    "RTX 4000 SFF Ada": Card(45, 38, 375, (7, 3)),  # 280 GB/s of memory; some of a token map stays in 48 MB of cache
    "A10G": Card(50, 45, 600, (7, 3)),
    "H100": Card(600, 350, 3350, (12, 5)),
}


def build(side: str, config: Config, backbone_config: Any, frozen_dtype: torch.dtype) -> DetrForObjectDetection:
    """A detector of one of the three sides, in train mode."""
    torch.set_default_dtype(frozen_dtype if side != "plan" else torch.float32)
    kind = DINOv3ViTBackbone if side == "plan" else FrozenBackbone
    backbone = kind(backbone_config).requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    detr = detector_config(config, backbone_config)
    if side == "ours":
        return Detr(detr, backbone).train()
    detr.auxiliary_loss = True
    detr.backbone_config = type(backbone_config)(hidden_size=backbone_config.hidden_size, num_hidden_layers=1)
    detr.backbone_config.num_attention_heads = backbone_config.num_attention_heads
    model = DetrForObjectDetection(detr)
    model.model.backbone.model = backbone
    backbone_config._attn_implementation = "sdpa"  # as from_pretrained chooses
    return model.train()


def count(side: str, height: int, width: int) -> tuple[Counts, int]:
    """The forward of a batch at ViT-L size, and the bytes kept for backward, parameters left out."""
    counts, kept = Counts(), {}
    with FAKE, torch.device("cuda"), no_init_weights():
        model = build(side, Config(data="-"), large_backbone(), torch.bfloat16)
        parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in parameters:
                kept[storage._cdata] = storage
            return tensor

        backbone = model.model.backbone
        backbone.register_forward_pre_hook(lambda *_: setattr(counts, "part", "frozen"))
        backbone.model.register_forward_pre_hook(lambda *_: setattr(counts, "part", "frozen"))
        backbone.model.register_forward_hook(lambda *_: setattr(counts, "part", "trained"))
        if side == "ours":
            backbone.model.run_layer = counts.within("layers", backbone.model.run_layer)
        inputs = {"pixel_values": torch.empty(BATCH, 3, height, width)}
        if side == "0.1":  # DINOv3's own layers, in bf16
            position = backbone.model.rope_embeddings(inputs["pixel_values"].bfloat16())
            backbone.model.run_layer = lambda layer, hidden, *_: layer(hidden, position_embeddings=position)
        if side != "ours":
            inputs["pixel_mask"] = torch.ones(BATCH, height, width, dtype=torch.int64)
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with autocast(), FusedAttention(counts), counts, hooks:
            model(**inputs)
    return counts, sum(storage.nbytes() for storage in kept.values())


def host_reads(side: str) -> Counter[str]:
    """Of one micro-step, from the batch on the device to the end of backward, with the checks of the trainer."""
    torch.manual_seed(0)
    model = build(side, Config(d_model=32, num_queries=12, preset="pilot"), tiny_backbone(), torch.float32)
    complete = {"labelled": torch.ones(2, dtype=torch.bool), "ignored": torch.zeros(0, 4)}
    labels = [{"class_labels": torch.randint(0, 2, (5,)), "boxes": torch.rand(5, 4) * 0.4 + 0.05, **complete}] * BATCH
    mask = torch.ones(BATCH, 64, 96, dtype=torch.int64)
    mask[:, 48:] = 0
    batch = {"pixel_values": torch.zeros(BATCH, 3, 64, 96, dtype=torch.uint8), "labels": labels}
    normalise(batch, (0.5,) * 3, (0.5,) * 3)  # sends mean and std, once a run
    more = {"num_items_in_batch": torch.tensor([10.0, 2.0])} if side == "ours" else {"pixel_mask": mask}
    with HostReads() as reads:
        inputs = normalise(batch, (0.5,) * 3, (0.5,) * 3)
        if side == "0.1":
            out = model(inputs["pixel_values"], **more)
            torch.tensor(5.0, device=out.logits.device)  # the count of boxes, which 0.1 sent at every micro-step
            loss = detection_loss(out.logits[None], out.pred_boxes[None], labels, model.config)[0]
        else:
            loss = model(**inputs, **more).loss
        loss.backward()
        for check in (torch.isnan, torch.isinf) if side == "plan" else (torch.isfinite,):  # logging_nan_inf_filter
            bool(check(loss))
    return reads.found


@dataclass
class Budget:
    """Of one side, an image on the average of the mix; FLOPs of the frozen and the trained forward."""

    padding: float = 0.0  # share of the pixels
    linear: tuple[float, float] = (0.0, 0.0)
    attention: tuple[float, float] = (0.0, 0.0)
    elementwise: tuple[float, float] = (0.0, 0.0)  # bytes
    kept: float = 0.0  # bytes
    outside: tuple[float, float] = (0.0, 0.0)  # bytes and kernels of the frozen forward outside of its layers
    kernels: float = 0.0  # of the frozen forward of a batch
    eight_bits: bool = False
    biases: float = 0.0  # of a batch
    bias_bytes: float = 0.0

    @property
    def flops(self) -> float:
        """Forward of both, backward of the trained part."""
        return self.linear[0] + self.attention[0] + 3 * (self.linear[1] + self.attention[1])

    def add(self, share: float, counts: Counts, kept: int, padding: float) -> None:
        def more(values: tuple[float, float], found: Counter[str]) -> tuple[float, float]:
            frozen = found["frozen"] + found["layers"]
            return values[0] + share * frozen / BATCH, values[1] + share * found["trained"] / BATCH

        self.padding += share * padding
        moved, started = counts.elementwise["frozen"] / BATCH, counts.kernels["frozen"]
        self.outside = self.outside[0] + share * moved, self.outside[1] + share * started
        self.linear, self.attention = more(self.linear, counts.linear), more(self.attention, counts.attention)
        self.elementwise = more(self.elementwise, counts.elementwise)
        self.kept += share * kept / BATCH
        self.kernels += share * (counts.kernels["frozen"] + counts.kernels["layers"])
        self.biases += share * len(counts.biases)
        self.bias_bytes += share * sum(counts.biases) / BATCH

    def compiled(self, precision: str) -> Budget:
        """With the frozen layers as inductor fuses them."""
        layers, rule = large_backbone().num_hidden_layers, Geometry(*CANVAS)
        tokens = sum(share * (5 + math.prod(rule.resized(*each)) / 256) for each, share in MIX.items())
        moved, started = fused_layer(precision, round(tokens), BATCH)
        elementwise = self.outside[0] + layers * moved / BATCH, self.elementwise[1]
        kernels = self.outside[1] + layers * started
        return replace(self, elementwise=elementwise, kernels=kernels, eight_bits=precision != "bf16")

    def milliseconds(self, card: Card, passes: int) -> float:
        """Of an image; `passes` of the trained part: 3 with backward, 1 to evaluate."""
        masked = MASKED if self.biases else 1.0
        products = self.linear[0] / (EIGHT if self.eight_bits else 1) + passes * self.linear[1]
        attention = self.attention[0] + passes * self.attention[1] / masked
        moved = self.elementwise[0] + passes * self.elementwise[1]
        device = products / card.linear + attention / card.attention  # FLOP / (TFLOP/s) = 1e-12 s
        return device / 1e9 + moved / card.bandwidth / 1e6 + card.host[0 if self.biases else 1]

    def hours(self, card: Card, evaluated: int = EPOCHS * EVALUATED) -> float:
        return (EPOCHS * IMAGES * self.milliseconds(card, 3) + evaluated * self.milliseconds(card, 1)) / 3.6e6


def budget(side: str) -> Budget:
    found, geometry = Budget(), Geometry(*CANVAS)
    on_canvas = None if side == "ours" else count(side, *CANVAS)
    for original, share in MIX.items():
        height, width = geometry.resized(*original)
        counts, kept = on_canvas or count(side, height, width)
        padding = 1 - height * width / (CANVAS[0] * CANVAS[1]) if on_canvas else 0
        found.add(share, counts, kept, padding)
    return found


def main() -> None:
    plain = budget("ours")
    found = {
        "this recipe": plain.compiled("bf16"),
        "uncompiled": plain,
        "fp8": plain.compiled("fp8"),
        "int8": plain.compiled("int8"),
        "version 0.1": budget("0.1"),
        "literal plan": budget("plan"),
    }
    reads = {side: str(sum(host_reads(side).values())) for side in ("ours", "0.1", "plan")}
    part = 2 * EVALUATED + EPOCHS * 2000  # the last epoch and the best, if that is another, on all
    table = Table("an image, on the average of the mix", *found)

    def row(name: str, value: Callable[[Budget], float], form: str = ".2f") -> None:
        table.add_row(name, *(f"{value(each):{form}}" for each in found.values()))

    row("padding, share of the pixels", lambda it: it.padding, ".1%")
    row("TFLOP", lambda it: it.flops / 1e12)
    row("... frozen linear", lambda it: it.linear[0] / 1e12)
    row("... frozen attention", lambda it: it.attention[0] / 1e12)
    row("... trained, with backward", lambda it: 3 * (it.linear[1] + it.attention[1]) / 1e12)
    row("biases \\[batch, 1, tokens, tokens] a micro-step", lambda it: it.biases, ".0f")
    row("... GB", lambda it: it.bias_bytes / 1e9)
    row("activations kept for backward, GB", lambda it: it.kept / 1e9)
    row("frozen forward: kernels a batch", lambda it: it.kernels, ".0f")
    row("... elementwise GB", lambda it: it.elementwise[0] / 1e9)
    table.add_row("host reads a micro-step of 2", *[reads["ours"]] * 4, reads["0.1"], reads["plan"])
    table.add_row("blocking copies of the batch", *["0"] * 4, *[str(1 + 5 * BATCH)] * 2)
    for name, card in CARDS.items():
        row(f"{name}: ms of a training image", lambda it, card=card: it.milliseconds(card, 3), ".0f")
        row("... hours of 10 epochs, each evaluated on all", lambda it, card=card: it.hours(card), ".1f")
        row("... with --eval_images 2000", lambda it, card=card: it.hours(card, part), ".1f")
    Console(width=119).print(table)

    canvas, _ = count("ours", *CANVAS)
    moved = (canvas.elementwise["frozen"] + canvas.elementwise["layers"]) / BATCH
    new, old, card = found["this recipe"], found["version 0.1"], CARDS["RTX 4000 SFF Ada"]
    goals = [
        ("FLOPs an image beside version 0.1", new.flops / old.flops, 0.82),
        ("padding", new.padding, 0.02),
        ("attention biases", new.biases, 0),
        ("activations kept, beside 0.1", new.kept / old.kept, 0.55),
        ("kernels of the frozen forward uncompiled, beside 0.1", plain.kernels / old.kernels, 0.6),
        ("its elementwise bytes on the same canvas", moved / old.elementwise[0], 0.75),
        ("host reads a micro-step", int(reads["ours"]), 2),
        ("hours on the RTX 4000 SFF Ada", new.hours(card), 34),
        ("... with --eval_images 2000", new.hours(card, part), 30),
        ("... and fp8", found["fp8"].hours(card, part), 26),
    ]
    for name, value, most in goals:
        print(f"{name}: {value:.2f}, goal at most {most}: {'met' if value <= most else 'NOT MET'}")


if __name__ == "__main__":
    main()
