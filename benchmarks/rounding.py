"""Tensor-core arithmetic on any machine: the operands of matrix products rounded, sums in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = {  # overload -> places of the operands
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
    aten.convolution.default: (0, 1),
}


def to_bf16(tensor: Tensor) -> Tensor:
    """The nearest values with 8 significant bits."""
    return tensor.bfloat16().float()


def to_tf32(tensor: Tensor) -> Tensor:
    """The nearest values with 11 significant bits, ties to even."""
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class _Rounded(TorchDispatchMode):
    def __init__(self, rounding: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._rounding = rounding

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        places = PRODUCTS.get(func, ())
        rounded = [self._rounding(value) if place in places else value for place, value in enumerate(args)]
        return func(*rounded, **(kwargs or {}))


@contextmanager
def rounded_products(kind: Literal["bf16", "tf32"]) -> Iterator[None]:
    """Round the operands of every matrix product and convolution inside the block; fused attention is taken apart."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _Rounded({"bf16": to_bf16, "tf32": to_tf32}[kind]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
