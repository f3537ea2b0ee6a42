"""What a forward costs, counted without a GPU: FLOPs, bytes, kernels, host reads, and what inductor fuses.

with Counts() as counts, FusedAttention(counts):          # on fake CUDA tensors: nothing is computed
    model(**inputs)
fused_layer("bf16", 4500)                                 # bytes and kernels of a compiled frozen layer
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._inductor.graph import GraphLowering
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from recipe.model.backbone import FrozenBackbone, large_backbone, run_layer
from recipe.model.precision import quantise


class Attention(torch.autograd.Function):
    """Scaled dot product attention as one kernel: what it keeps for backward, and nothing else."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.empty_like(query)
        log_sum = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, log_sum, *([] if bias is None else [bias]))
        return out


class Counts(TorchDispatchMode):
    """Counts operations by part of the model: "layers", "frozen" outside of them, "trained".

    Allocations and views are no kernels.
    """

    ALLOCATIONS = ("empty", "detach", "_unsafe_view", "alias", "lift_fresh", "prim")

    def __init__(self) -> None:
        super().__init__()
        self.part = "trained"
        self.kernels: Counter[str] = Counter()
        self.elementwise: Counter[str] = Counter()  # bytes read and written outside of products and attention
        self.linear: Counter[str] = Counter()  # FLOPs
        self.attention: Counter[str] = Counter()  # FLOPs
        self.biases: list[int] = []  # bytes of each attention bias [batch, 1, tokens, tokens]

    def within(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, counted as that part."""

        def counted(*args: Any) -> Any:
            around, self.part = self.part, part
            out = call(*args)
            self.part = around
            return out

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view or func.name().split("::")[1].startswith(self.ALLOCATIONS) or func.namespace == "prim":
            return out
        self.kernels[self.part] += 1
        if func._overloadpacket in flop_registry:
            self.linear[self.part] += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        else:
            flat = torch.utils._pytree.tree_leaves((args, kwargs, out))
            self.elementwise[self.part] += sum(size(each) for each in flat if isinstance(each, Tensor))
        return out


class FusedAttention(TorchFunctionMode):
    """Puts `Attention` in the place of the composite that fake tensors would take apart."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            if func is torch.Tensor.__bool__:  # only DETR's `isfinite().all()` asks here: it is
                return True
            return func(*args, **(kwargs or {}))
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else args[0].dtype
        query, key, value = (tensor.to(dtype) for tensor in args[:3])
        bias = (kwargs or {}).get("attn_mask")
        batch, heads, tokens, head = query.shape
        self.counts.attention[self.counts.part] += 4 * batch * heads * tokens * key.shape[2] * head
        self.counts.kernels[self.counts.part] += 1
        if bias is not None:
            bias = bias.to(dtype)  # torch turns a boolean mask into a bias of the queries' dtype
            if bias.shape[-2:] == (tokens, tokens):
                self.counts.biases.append(size(bias))
        return Attention.apply(query, key, value, bias)


def size(tensor: Tensor) -> int:
    """Bytes; of an expanded tensor those that exist."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@contextlib.contextmanager
def autocast() -> Iterator[None]:
    """bf16 on CUDA: `torch.autocast` itself switches off where there is no GPU."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


class HostReads(TorchFunctionMode):
    """Counts where the host asks for a number that the GPU has not computed yet, or sends one and waits."""

    READS = ("cpu", "item", "tolist", "__bool__", "__int__", "__float__")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.READS or (name in ("tensor", "as_tensor") and "device" in (kwargs or {})):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def fused_layer(precision: str, tokens: int, batch: int) -> tuple[int, int]:
    """Bytes outside of products and attention, and kernels, of one compiled frozen layer of ViT-L.

    Of inductor's own fusion, which is asked before any code is compiled: for a CPU, as a GPU need not be there. A
    buffer that a kernel reads in part counts in full. Affine in the tokens, so that a mean stands for a mix.
    """
    config = large_backbone()
    config.num_hidden_layers = 1
    backbone = FrozenBackbone(config).bfloat16()
    quantise(backbone, precision)
    hidden = torch.zeros(batch, tokens, config.hidden_size, dtype=torch.bfloat16)
    head = config.hidden_size // config.num_attention_heads
    cos, sin = hidden.new_zeros(tokens, 1, 1, head), hidden.new_zeros(tokens, 1, 1, head // 2)
    found = []

    class Enough(BaseException):
        """Nothing is to be compiled or computed."""

    def look(graph: Any) -> None:
        graph.codegen()
        nodes = [(node.is_extern(), node.get_read_write_buffers_sizes()) for node in graph.scheduler.nodes]
        found.append((sum(size for extern, size in nodes if not extern), sum(size > 0 for _, size in nodes)))
        raise Enough

    torch._dynamo.reset()
    with torch.no_grad(), mock.patch.object(GraphLowering, "compile_to_module", look), contextlib.suppress(Enough):
        compiled = torch.compile(run_layer, dynamic=True, fullgraph=True)
        compiled(backbone.model.layer[0], hidden, cos, sin, hidden.new_zeros(config.hidden_size))
    return found[0]
