"""Bytes of tensors alive while a computation runs, and a limit on them."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")


class MemoryCapError(RuntimeError):
    """A computation holds more bytes of tensors than it was allowed."""


class _Watch(weakref.ref[torch.UntypedStorage]):
    """A weak reference that knows the key of what it watched."""

    __slots__ = ("key",)
    key: int


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of storages made inside the block that are alive at once, and stop above a limit.

    Counts what operations return, also what autograd keeps of it, and the workspace of convolutions on the CPU, which is larger
    than all that they return; no other workspace inside a kernel, nor what existed before.

    Args:
        limit: bytes; ``None`` to count only.

    Attributes:
        peak: most bytes alive at once.
        workspace: most bytes that a kernel took for itself.
    """

    def __init__(self, limit: float | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit, self._alive, self.peak, self.workspace = limit, 0, 0, 0
        self._known: dict[int, tuple[_Watch, int]] = {}
        self._dead: deque[_Watch] = deque()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._count(tensor, made=False)
        if func is torch.ops.aten._efficientzerotensor.default:  # without storage: kernels called from a mode read it, and crash
            func = torch.ops.aten.zeros.default
        beside = workspace(func, args)
        self.peak, self.workspace = max(self.peak, self.alive + beside), max(self.workspace, beside)
        if self.limit is not None and beside and self.alive + beside > self.limit:
            self._stop()
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor, made=True)
        if self.limit is not None and self.alive > self.limit:
            self._stop()
        return out

    def _stop(self) -> None:
        limit, self.limit = self.limit, None  # what puts things right on the way out is not stopped
        assert limit is not None
        raise MemoryCapError(f"needs more than {limit / 2**20:.3g} MiB")

    def _count(self, tensor: Tensor, *, made: bool) -> None:
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # a subclass without storage
            return
        key = storage._cdata
        while self._dead:
            gone = self._dead.popleft()
            if self._known[gone.key][0] is gone:
                self._alive -= self._known.pop(gone.key)[1]
        if key in self._known:
            return
        # what an operation reads before anything made it was there before; what is on "meta" has no bytes
        size = storage.nbytes() if made and tensor.device.type != "meta" else 0
        watch = _Watch(storage, self._dead.append)  # a C function: Ctrl-C in a Python callback would be lost
        watch.key = key
        self._known[key] = watch, size
        self._alive += size
        self.peak = max(self.peak, self._alive)

    @property
    def alive(self) -> int:
        """Bytes alive now."""
        return self._alive - sum(self._known[gone.key][1] for gone in self._dead if self._known[gone.key][0] is gone)


_CONVOLUTIONS = {torch.ops.aten.convolution.default: 0, torch.ops.aten.convolution_backward.default: 1}  # where the input is
_REORDERED = 2  # times input and output, in float32: 14 and 18 MiB were measured beside 8 MiB of both


def workspace(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes that the kernel of a convolution on the CPU takes for itself: columns of its input, or copies in another order."""
    place = _CONVOLUTIONS.get(func)
    if place is None or args[place].device.type != "cpu":
        return 0
    x, weight = args[place], args[place + 1]
    if x.dtype == torch.float64 and not args[place + 6]:  # [N, C k, positions] of one group, of all samples
        positions = math.prod(args[0].shape[2:]) if place else _positions(x, weight, *args[3:6])
        return (
            int(x.shape[0] * math.prod(weight.shape[1:]) * positions * x.element_size()) if math.prod(weight.shape[2:]) > 1 else 0
        )
    other = args[0].nbytes if place else x.shape[0] * weight.shape[0] * _positions(x, weight, *args[3:6]) * x.element_size()
    return int(_REORDERED * (x.nbytes + other))


def _positions(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> int:
    """Places of a kernel in an image."""
    sides = zip(x.shape[2:], weight.shape[2:], *(_each(part, x.ndim - 2) for part in (stride, padding, dilation)), strict=True)
    return math.prod(max(0, (side + 2 * pad - spread * (width - 1) - 1) // step + 1) for side, width, step, pad, spread in sides)


def _each(part: Sequence[int], count: int) -> list[int]:
    return list(part) * count if len(part) == 1 else list(part)


def peak_bytes(function: Callable[[], Result], limit: float | None = None) -> tuple[Result, int]:
    """Value of ``function()``, and the most bytes of tensors alive at once while it ran.

    Raises:
        MemoryCapError: more than ``limit`` bytes were alive.
    """
    with PeakMemory(limit) as memory:
        result = function()
    return result, memory.peak
