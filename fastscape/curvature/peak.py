"""Bytes of tensors alive while a computation runs, and a limit on them."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
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

    Counts what operations return, also what autograd keeps of it; not workspace inside a kernel, nor what existed before.

    Args:
        limit: bytes; ``None`` to count only.

    Attributes:
        peak: most bytes alive at once.
    """

    def __init__(self, limit: float | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit, self._alive, self.peak = limit, 0, 0
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
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor, made=True)
        if self.limit is not None and self.alive > self.limit:
            limit, self.limit = self.limit, None  # what puts things right on the way out is not stopped
            raise MemoryCapError(f"needs more than {limit / 2**20:.3g} MiB")
        return out

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
        size = storage.nbytes() if made else 0  # what an operation reads before anything made it was there before
        watch = _Watch(storage, self._dead.append)  # a C function: Ctrl-C in a Python callback would be lost
        watch.key = key
        self._known[key] = watch, size
        self._alive += size
        self.peak = max(self.peak, self._alive)

    @property
    def alive(self) -> int:
        """Bytes alive now."""
        return self._alive - sum(self._known[gone.key][1] for gone in self._dead if self._known[gone.key][0] is gone)


def peak_bytes(function: Callable[[], Result], limit: float | None = None) -> tuple[Result, int]:
    """Value of ``function()``, and the most bytes of tensors alive at once while it ran.

    Raises:
        MemoryCapError: more than ``limit`` bytes were alive.
    """
    with PeakMemory(limit) as memory:
        result = function()
    return result, memory.peak


def give_back() -> None:
    """Free tensors that frames holding one another keep, and return freed memory to the system where the C library can."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
