"""Bytes that evaluating an objective takes, found out before they are taken, and a cap that is held against them."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from fastscape._heap import Heap, fit
from fastscape._settings import Later
from fastscape._state import exact_arithmetic, plain_arithmetic
from fastscape._warnings import filtered_warnings
from fastscape.objective.definition import Definition
from fastscape.objective.replica import Replica
from fastscape.objective.structures import tensors_of
from fastscape.runs.peak import PeakMemory

_SLACK = 1.1  # kernels' workspace that is not counted
_ONCE = 24 << 20  # code and tables that torch loads at first use, and what kernels keep; at most a quarter


@dataclass(frozen=True)
class Footprint:
    """Bytes of one way to evaluate an objective.

    Attributes:
        copy: a private copy: displaced weights, and data and buffers that are cast.
        forward: the most alive in a forward of the largest batch, beside the copy.
        gradient: the same of a forward and a backward pass; infinite for a model without one.
        workspace: the most that a kernel of the forward takes for itself.
    """

    copy: int
    forward: int
    gradient: float
    workspace: int

    @property
    def alone(self) -> int:
        """Bytes of a copy that is evaluated beside one more: a vector along which it is displaced, or the gate's fresh copy."""
        return 2 * self.copy + self.forward


def footprint(objective: Definition, dtype: torch.dtype) -> Footprint:
    """The footprint of an objective in one dtype, without its memory: by tensors that have a shape and no numbers.

    A model whose forward looks at numbers is run instead.

    Cost: dispatch of a forward and a backward pass, once for shapes of data.
    """
    shapes = tuple(tuple(tensor.shape) for batch in objective.batches for tensor in tensors_of(batch))
    key = ("footprint", dtype, objective.names, shapes, objective.batch_norm)
    if key not in objective.known:
        with filtered_warnings(), plain_arithmetic(dtype):
            objective.known[key] = _by_shapes(objective, dtype) or _measured(objective, dtype, nullcontext())
    found: Footprint = objective.known[key]
    return found


def _by_shapes(objective: Definition, dtype: torch.dtype) -> Footprint | None:
    from torch._subclasses.fake_tensor import FakeTensorMode  # 0.2 s

    try:
        return _measured(objective, dtype, FakeTensorMode(allow_non_fake_inputs=True))
    except Exception:  # what a model raises that asks for a number
        return None


def _measured(objective: Definition, dtype: torch.dtype, mode: AbstractContextManager[object]) -> Footprint:
    with PeakMemory() as copied:
        replica = Replica(objective, dtype, None)  # its own: what a model keeps of a forward without numbers goes with it
    largest = max(range(len(replica.batches)), key=lambda index: sum(t.nbytes for t in tensors_of(replica.batches[index])))

    def differentiated() -> object:
        held = dict(replica.module.model.named_parameters())
        probed = [held[name].requires_grad_() for name in objective.names]
        with torch.enable_grad():
            return torch.autograd.grad(replica.batch_loss(largest)[0], probed, allow_unused=True)

    with mode:
        forward = _counted(lambda: replica.batch_loss(largest))
        try:
            gradient: float = _counted(differentiated).peak
        except Exception:  # a model without a backward pass
            gradient = math.inf
    return Footprint(copied.alive, forward.peak, gradient, forward.workspace)


def _counted(call: Callable[[], object]) -> PeakMemory:
    memory = PeakMemory()
    with memory:
        call()
    return memory


class capped_arithmetic(exact_arithmetic):  # noqa: N801 - a block, as contextlib's
    """:class:`fastscape._state.exact_arithmetic` within which freed memory is kept, as far as a cap lets it."""

    def __init__(self, dtype: torch.dtype, memory: int | None) -> None:
        super().__init__(dtype)
        self._cap, self._heap = Cap(memory), Heap(memory)

    def _begin(self, later: Later) -> bool:
        if not super()._begin(later):
            return False
        self._heap.__enter__()
        later(lambda: self._heap.__exit__(None, None, None))
        return True

    def hold(self, bytes_: float, what: str = "") -> None:
        """Say how many bytes are alive at once from here on; with words for them, refused as by :meth:`Cap.hold`."""
        if what:
            self._cap.hold(bytes_, what)
        self._heap.hold(bytes_, self._cap.room())


@dataclass(frozen=True)
class Cap:
    """The bytes that a call may take, where ``memory=`` says how many.

    Attributes:
        memory: as it was given; ``None`` for no cap.
    """

    memory: int | None

    def room(self, otherwise: float = math.inf) -> float:
        """Bytes of tensors that stay within it."""
        return otherwise if self.memory is None else self.memory / _SLACK - min(_ONCE, self.memory / 4)

    def hold(self, bytes_: float, what: str) -> None:
        """Refuse a cap below what must be held.

        Raises:
            ValueError: it is; names how many bytes are enough.
        """
        if self.memory is not None and bytes_ > self.room():
            raise ValueError(
                f"memory must hold {what}, for which {enough(bytes_)} bytes are enough, got {self.memory}; "
                "raise memory=, or pass smaller batches"
            )

    def settle(self) -> None:
        """Return what a trial has freed to the system, where it is much of a cap."""
        if self.memory is not None:
            fit(tried=True)


def enough(bytes_: float) -> int:
    """A cap with room for so many bytes."""
    return math.ceil(min(bytes_ / (1 / _SLACK - 1 / 4), _SLACK * (bytes_ + _ONCE))) + 1
