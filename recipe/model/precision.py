"""The frozen linear layers in 8 bits: half of a frozen pass is their products, which newer GPUs compute twice as fast.

    quantise(model.model.backbone, "fp8")          # --backbone_precision fp8

Each row of the weights, once, and of the activations, at each pass, has its own scale (LLM.int8(), Dettmers et al.
2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import ScalingType, linear, scaled_mm

from recipe.schema import UserError

# --backbone_precision: the dtype, what the largest value of a row becomes, and the compute capability that has it.
# Not int8's 127: a scale in bf16 is up to 0.4 % off, and 128 would wrap around.
EIGHT_BITS = {"fp8": (torch.float8_e4m3fn, 448.0, (8, 9)), "int8": (torch.int8, 126.0, (8, 0))}
LARGEST = {dtype: largest for dtype, largest, _ in EIGHT_BITS.values()}


def check_precision(precision: str) -> None:
    """Raises UserError where the GPU has no such products; without a GPU the CPU computes them, slowly."""
    if precision == "bf16" or not torch.cuda.is_available():
        return
    found, needed = torch.cuda.get_device_capability(), EIGHT_BITS[precision][2]
    if found < needed:
        allowed = ["bf16", *(name for name, (_, _, least) in EIGHT_BITS.items() if found >= least)]
        raise UserError(
            f"--backbone_precision {precision}: needs compute capability {needed[0]}.{needed[1]} or higher, and "
            f"{torch.cuda.get_device_name()} has {found[0]}.{found[1]}; give {' or '.join(allowed)}"
        )


class EightBitLinear(nn.Module):
    """A frozen linear layer that computes in 8 bits; its state is still that of the layer it was made from."""

    rows: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias, self.dtype = layer.weight, layer.bias, dtype
        rows, scales = by_rows(layer.weight, dtype)
        self.register_buffer("rows", rows.view(torch.uint8), persistent=False)  # [out, in]; gloo sends no fp8
        self.register_buffer("scales", scales, persistent=False)  # [out, 1]

    def forward(self, inputs: Tensor) -> Tensor:
        return eight_bit_linear(inputs, self.rows.view(self.dtype), self.scales, self.bias)


def quantise(module: nn.Module, precision: str) -> None:
    """Make every linear layer in `module` compute in 8 bits, from the weights that it has now; bf16 leaves it.

    Raises:
        UserError: the GPU has no such products.
    """
    check_precision(precision)
    for parent in [*module.modules()] if precision in EIGHT_BITS else []:
        for name, layer in [*parent.named_children()]:
            if isinstance(layer, nn.Linear):
                setattr(parent, name, EightBitLinear(layer, EIGHT_BITS[precision][0]))


def side_by_side(inputs: Tensor, layers: Sequence[nn.Linear | EightBitLinear], bias: Tensor) -> Tensor:
    """The outputs of several layers of the same inputs by one product: [..., in] -> [..., layers * out].

    The weights are joined anew each time (6 MB in ViT-L, where one token map of a batch of two has 24 MB): a kept copy
    would take 150 MB and could disagree with the weights that are saved.
    """
    if isinstance(layers[0], EightBitLinear):
        rows, scales = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("rows", "scales"))
        return eight_bit_linear(inputs, rows.view(layers[0].dtype), scales, bias)
    return linear(inputs, torch.cat([layer.weight for layer in layers]), bias)


def eight_bit_linear(inputs: Tensor, rows: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` with quantised weights: [..., in] -> [..., out] in the dtype of the inputs."""
    found, found_scales = by_rows(inputs.flatten(0, -2), rows.dtype)
    if rows.dtype == torch.int8:
        out = torch._int_mm(found, rows.t()) * found_scales * scales.t()
        out = out if bias is None else out + bias
    else:  # a GPU scales rows into bf16 only
        bias = None if bias is None else bias.bfloat16()
        by_row = ScalingType.RowWise
        out = scaled_mm(found, rows.t(), found_scales, by_row, scales.t(), by_row, bias=bias)
    return out.to(inputs.dtype).view(*inputs.shape[:-1], -1)


def by_rows(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each row over its scale, in 8 bits, and the scales in fp32: [n, width] -> [n, width], [n, 1]."""
    scales = torch.linalg.vector_norm(values, torch.inf, dim=-1, keepdim=True) / LARGEST[dtype]
    scaled = values / scales.clamp_(min=1e-12)
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scales.float()
