"""Keep the process as the user left it: random generators, torch flags, attention back ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

import torch
from torch._C import _len_torch_dispatch_stack
from torch.utils._python_dispatch import _pop_mode

from fastscape._creation import create_in
from fastscape._generators import exposed_draws, torch_generators
from fastscape._generators import kept_generators as kept_generators
from fastscape._generators import preserved_rng as preserved_rng
from fastscape._generators import private_draws as private_draws
from fastscape._interrupts import Restoring, held_signals
from fastscape._interrupts import left_on_failure as left_on_failure
from fastscape._settings import PRECISION_LEAVES, SETTINGS, Later, RoundedProducts, legacy

__all__ = [
    "PRECISION_LEAVES",
    "RoundedProducts",
    "autocast_here",
    "autocast_outside",
    "entered",
    "exact_arithmetic",
    "kept_generators",
    "left_on_failure",
    "legacy",
    "plain_arithmetic",
    "preserved_rng",
    "private_draws",
    "torch_generators",
    "torch_threads",
]
_AUTOCAST = ("cpu", "cuda")  # kinds of devices whose autocast evaluations take off
T = TypeVar("T")


class _Outside(threading.local):
    """The autocast around the outermost evaluation of a thread, by kind of device; ``None`` while there is none."""

    dtypes: dict[str, torch.dtype] | None = None


_outside = _Outside()


def autocast_here() -> dict[str, torch.dtype]:
    """Dtypes of the autocasts that are on, by kind of device."""
    return {device: torch.get_autocast_dtype(device) for device in _AUTOCAST if torch.is_autocast_enabled(device)}


def autocast_outside() -> dict[str, torch.dtype]:
    """Dtypes of the autocasts that the caller of a probe has put around it, which evaluations take off."""
    return autocast_here() if _outside.dtypes is None else _outside.dtypes


def entered(stack: ExitStack, block: AbstractContextManager[T]) -> T:
    """Enter a block whose end is that of a stack, with no instant between the two that Ctrl-C could fall into."""
    with held_signals:
        return stack.enter_context(block)


class torch_threads(Restoring):  # noqa: N801 - a block, as contextlib's
    """So many threads for an operation of torch inside the block; ``None`` for as many as there are."""

    def __init__(self, count: int | None) -> None:
        self._count = count

    def _begin(self, later: Callable[[Callable[[], object]], None]) -> bool:
        before = torch.get_num_threads()
        if self._count not in (None, before):
            later(lambda: torch.set_num_threads(before))
            torch.set_num_threads(self._count)
        return True


class plain_arithmetic(Restoring):  # noqa: N801 - a block, as contextlib's
    """Evaluate in plain IEEE ``dtype`` and restore every flag afterwards; for code that draws no random numbers.

    No gradients, no autocast around the model, no TF32 or reduced-precision accumulation, no cuDNN benchmarking, the
    MATH attention back end and no fused transformer fast path, so that L(w), L(w + e d) and L(w - e d) go through
    one and the same arithmetic. Tensors that the model creates in its forward are of ``dtype``.

    Gradients, autocast and the dtype are of this thread. The rest is of the process: the first block of any thread switches it,
    and the last one out switches it back (:mod:`fastscape._settings`).

    An autocast that the model or the loss enters itself is theirs and stays, without torch's cache of cast weights,
    which outlives an evaluation wherever another autocast is around it; so does ``parametrize.cached``.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def _wait(self) -> None:
        with SETTINGS.changed:
            SETTINGS.changed.wait_for(SETTINGS.plain_is_free)

    def _begin(self, later: Later) -> bool:
        with SETTINGS.changed:
            if not SETTINGS.plain_is_free():
                return False
            SETTINGS.enter_plain()
            later(SETTINGS.leave_plain)
        functions, dispatches = torch._C._len_torch_function_stack(), _len_torch_dispatch_stack()
        later(lambda: _leave_modes(functions, dispatches))
        outside = _outside.dtypes
        later(lambda: setattr(_outside, "dtypes", outside))
        _outside.dtypes = autocast_outside()
        for block in self._blocks():
            block.__enter__()
            later(lambda block=block: block.__exit__(None, None, None))  # type: ignore[misc]
        gradients = torch.is_grad_enabled()
        later(lambda: torch.set_grad_enabled(gradients))
        torch.set_grad_enabled(False)
        before = create_in(self._dtype)
        later(lambda: create_in(before))
        return True

    def _blocks(self) -> list[Any]:
        plain: list[Any] = [torch.inference_mode(False), torch.autocast("cpu", enabled=False, cache_enabled=False)]
        if torch.cuda.is_available():
            plain.append(torch.autocast("cuda", enabled=False, cache_enabled=False))
        return plain


def _leave_modes(functions: int, dispatches: int) -> None:
    """Take down modes of torch beyond so many: Ctrl-C within torch's own entering or leaving of one leaves it standing."""
    while torch._C._len_torch_function_stack() > functions:
        torch._C._pop_torch_function_stack()
    while _len_torch_dispatch_stack() > dispatches:
        _pop_mode()


class exact_arithmetic(plain_arithmetic):  # noqa: N801
    """Evaluate in plain IEEE ``dtype``, and restore every flag and the random generators afterwards."""

    def _begin(self, later: Later) -> bool:
        if not super()._begin(later):
            return False
        exposed_draws(later)
        return True
