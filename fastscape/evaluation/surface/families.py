"""Families of weights: points of parameter space as functions of a few coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Tensors = Sequence[Tensor]


class Family(Protocol):
    """Weights as a function of coordinates.

    Attributes:
        dims: m, the number of coordinates.
    """

    dims: int

    @property
    def content(self) -> Sequence[Any]:
        """All tensors that it is made of, nested at will."""
        ...

    def write(self, coordinates: Sequence[float], out: Tensors) -> None:
        """Write the weights at ``coordinates`` into ``out``, in the order of ``objective.names``.

        They are made fresh from what the family holds, never by a step from the last point, so that rounding does not add up.
        ``out`` has the dtype of the evaluation, which may be wider than the family's.
        """
        ...


class Affine:
    r"""The affine family :math:`w + \sum_j \alpha_j v_j`.

    Points of one row (equal in all coordinates but the last) share :math:`w + \sum_{j<m} \alpha_j v_j`, which is kept, so that
    each costs one pass over the weights; the sum is rounded once per axis to float32, or to float64 for float64 evaluations.
    A coordinate that is 0 leaves its axis out: at the origin the weights are w, bit for bit.

    Args:
        base: w.
        axes: v_1 ... v_m, each in the order and shapes of ``base``.

    Raises:
        ValueError: no axis, or one whose shapes are not those of ``base``.
    """

    def __init__(self, base: Tensors, axes: Sequence[Tensors]) -> None:
        self.base, self.axes = list(base), [list(axis) for axis in axes]
        self.dims = len(self.axes)
        if not self.axes:
            raise ValueError("axes must hold at least one direction, got none")
        shapes = [tensor.shape for tensor in self.base]
        for index, axis in enumerate(self.axes):
            found = [tensor.shape for tensor in axis]
            if found != shapes:
                raise ValueError(f"axes[{index}] must have the shapes of base, {len(shapes)} tensors, got {len(found)} others")
        self.content = (self.base, self.axes)
        self._row: list[Tensor] = []
        self._at: tuple[tuple[tuple[int, float], ...], torch.dtype] | None = None

    def write(self, coordinates: Sequence[float], out: Tensors) -> None:
        """See :class:`Family`."""
        *before, last = [(index, value) for index, value in enumerate(coordinates) if value] or [(0, 0.0)]
        _added(self._start(tuple(before), out), self.axes[last[0]], last[1], out)

    def _start(self, before: tuple[tuple[int, float], ...], out: Tensors) -> Tensors:
        """The sum over all moving axes but the last, in the arithmetic's dtype; kept for the next point of the row."""
        if not before:
            return self.base
        dtype = torch.promote_types(out[0].dtype, torch.float32)
        if self._at != (before, dtype):
            if not self._row or self._row[0].dtype != dtype:
                self._row = [torch.empty_like(tensor, dtype=dtype) for tensor in out]
            self._at = None  # an interrupt leaves no half-written row behind
            start: Tensors = self.base
            for index, value in before:
                _added(start, self.axes[index], value, self._row)
                start = self._row
            self._at = before, dtype
        return self._row


def _added(start: Tensors, axis: Tensors, value: float, out: Tensors) -> None:
    """``out = start + value * axis``, rounded once where the dtypes are one; ``out`` may be ``start``."""
    for first, step, slot in zip(start, axis, out, strict=True):
        if value == 0:
            if slot is not first:
                slot.copy_(first)
        elif first.dtype == slot.dtype == step.dtype and slot.dtype in (torch.float32, torch.float64):
            torch.add(first, step, alpha=value, out=slot)
        else:
            wide = torch.promote_types(
                torch.promote_types(first.dtype, step.dtype), torch.promote_types(slot.dtype, torch.float32)
            )
            slot.copy_(torch.add(first.to(wide), step.to(wide), alpha=value))
