"""Paths between two states of a model: straight lines and quadratic Bezier curves through all weights and buffers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscape.objective.objective import Objective
from fastscape.objective.replica import Replica

State = Mapping[str, Tensor]
_COUNTER = "num_batches_tracked"  # of batch-norm layers: no statistic, and unused where they are evaluated
_NODES = 64  # of the Gauss rule behind a curve's length: the speed is the root of a quadratic, smooth unless the curve turns back


class Segment:
    r"""The straight line :math:`w(\alpha) = (1 - \alpha) a + \alpha b` of every parameter, and of every floating-point buffer.

    Both ends are written bit for bit, and where a and b agree so does the whole line. The interpolation is that of
    ``torch.lerp``, rounded once to the dtype of the evaluation.

    Args:
        objective: with all parameters (:meth:`Objective.whole`), whose order the weights have.
        a, b: state dicts of its model.

    Raises:
        ValueError: a buffer or parameter of integers that differs between the two.
    """

    dims = 1

    def __init__(self, objective: Objective, a: State, b: State) -> None:
        self._names, self._objective = objective.names, objective
        self.turn(a, b)

    def turn(self, a: State, b: State) -> None:
        """Make it the line between other states."""
        model, place = self._objective.model, self._objective.device
        self.a, self.b = ([state[name].detach().to(place) for name in self._names] for state in (a, b))
        buffers = {name for name, _ in model.named_buffers()} & a.keys() & b.keys()
        self._buffers: dict[str, tuple[Tensor, Tensor]] = {}
        for name in [*sorted(buffers), *(name for name, _ in model.named_parameters() if name not in self._names)]:
            first, second = (state[name].detach().to(place) for state in (a, b))
            if name in buffers and (first.is_floating_point() or first.is_complex()):
                self._buffers[name] = first, second
            elif not name.endswith(_COUNTER) and not torch.equal(first, second):
                raise ValueError(f"a and b must agree in {name!r}, which is of {first.dtype} and has no values between them")

    def write(self, coordinates: Sequence[float], out: Sequence[Tensor]) -> None:
        """See :class:`fastscape.evaluation.surface.families.Family`."""
        for first, second, slot in zip(self.a, self.b, out, strict=True):
            between(first, second, coordinates[0], slot)

    def write_buffers(self, replica: Replica, coordinates: Sequence[float]) -> None:
        """Write the interpolated floating-point and complex buffers into a replica's model."""
        held = dict(replica.module.model.named_buffers())
        for name, (first, second) in self._buffers.items():
            if name in held:  # batch norm by batch statistics has none
                between(first, second, coordinates[0], held[name])

    @property
    def content(self) -> list[Any]:
        """See :class:`fastscape.evaluation.surface.families.Family`."""
        return [self.a, self.b, self._buffers]

    def distance(self) -> float:
        """||a - b|| over all parameters."""
        return math.sqrt(math.fsum(_dot(b, a, b, a) for a, b in zip(self.a, self.b, strict=True)))

    def length(self) -> float:
        """Length of the path in the space of all parameters."""
        return self.distance()


class Bezier(Segment):
    r"""The quadratic Bezier curve :math:`\phi(t) = (1 - t)^2 a + 2 t (1 - t) \theta + t^2 b`.

    It starts as the straight line: :math:`\theta = (a + b)/2`. Buffers are on the straight line.

    Attributes:
        theta: the bend, one tensor per parameter, in the dtype of the training.

    Source: Garipov, Izmailov, Podoprikhin, Vetrov & Wilson, "Loss surfaces, mode connectivity, and fast ensembling of DNNs"
    (2018), equation 2.
    """

    def __init__(self, objective: Objective, a: State, b: State, dtype: torch.dtype) -> None:
        super().__init__(objective, a, b)
        self.theta = [torch.empty_like(first, dtype=dtype) for first in self.a]
        super().write((0.5,), self.theta)

    def write(self, coordinates: Sequence[float], out: Sequence[Tensor]) -> None:
        """See :class:`fastscape.evaluation.surface.families.Family`."""
        t = coordinates[0]
        if t in (0, 1):
            super().write(coordinates, out)
            return
        for first, second, bend, slot in zip(self.a, self.b, self.theta, out, strict=True):
            wide = torch.promote_types(torch.promote_types(first.dtype, slot.dtype), torch.float32)
            point = first.to(wide) * (1 - t) ** 2
            point.add_(bend.to(wide), alpha=2 * t * (1 - t)).add_(second.to(wide), alpha=t * t)
            slot.copy_(point)

    @property
    def content(self) -> list[Any]:
        """See :class:`fastscape.evaluation.surface.families.Family`."""
        return [*super().content, self.theta]

    def length(self) -> float:
        """Length by Gauss-Legendre quadrature of ``||phi'(t)||``, phi'(t) = 2 (1 - t)(theta - a) + 2 t (b - theta)."""
        columns = list(zip(self.a, self.theta, self.b, strict=True))
        start = math.fsum(_dot(theta, a, theta, a) for a, theta, _ in columns)
        mixed = math.fsum(_dot(theta, a, b, theta) for a, theta, b in columns)
        end = math.fsum(_dot(b, theta, b, theta) for _, theta, b in columns)
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        t = (nodes + 1) / 2
        speed = np.sqrt(np.maximum(0.0, (1 - t) ** 2 * start + 2 * t * (1 - t) * mixed + t**2 * end))
        return float(weights @ speed)  # 2 of the speed and 1/2 of the interval cancel


def between(first: Tensor, second: Tensor, share: float, out: Tensor) -> None:
    """``out = first + share (second - first)``, rounded once; exact at both ends and where the two agree."""
    wide = torch.promote_types(torch.promote_types(first.dtype, out.dtype), torch.float32)
    if share in (0, 1) or wide == out.dtype == first.dtype == second.dtype:
        if share in (0, 1):
            out.copy_(second if share else first)
        else:
            torch.lerp(first, second, share, out=out)
        return
    out.copy_(torch.lerp(first.to(wide), second.to(wide), share))


def _dot(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> float:
    """(a - b)'(c - d) in float64."""
    return float(((a.double() - b.double()) * (c.double() - d.double())).sum())
