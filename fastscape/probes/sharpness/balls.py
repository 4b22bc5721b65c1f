r"""Balls around the weights within which a worst case is sought, and the loss there as a function of their coordinates.

A point is :math:`w + \epsilon\, s \circ u` with a fixed scale s per element, and u in a product of Euclidean unit balls: one for
every tensor, or one for all. Coordinates u, scale s and gradients are flat vectors ``[D]`` in the order of ``objective.names``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fastscape._checks import one_of
from fastscape.objective.objective import Objective
from fastscape.objective.replica import Replica
from fastscape.ops import direction
from fastscape.runs.evaluations import Evaluations

Variant = Literal["normalized", "sam", "asam"]


class Balls:
    r"""The set of u and the scale s of a variant of sharpness.

    ============== ======================= ===========================
    variant        s                       constraint
    ============== ======================= ===========================
    ``normalized`` :math:`|w|`             :math:`\|u_l\| \le 1` for every tensor l
    ``sam``        1                       :math:`\|u\| \le 1`
    ``asam``       :math:`|w| + \eta`      :math:`\|u\| \le 1`
    ============== ======================= ===========================

    Args:
        objective: whose weights are in the middle.
        variant: see above.
        eta: offset of ``asam``, in units of the weights.
        dtype: of the vectors.

    Attributes:
        scale: s, ``[D]``.
        blocks: ranges of the balls in a flat vector; tensors whose s is zero everywhere never move and have none.
        fixed: names of these tensors.
    """

    def __init__(self, objective: Objective, variant: Variant, eta: float, dtype: torch.dtype) -> None:
        one_of("variant", variant, get_args(Variant))
        weights = [tensor.to(dtype) for tensor in objective.base.values()]
        flat = torch.cat([tensor.reshape(-1) for tensor in weights])
        self.scale = torch.ones_like(flat) if variant == "sam" else flat.abs() + (eta if variant == "asam" else 0.0)
        tensors, stop = list[slice](), 0
        for tensor in weights:
            tensors.append(slice(stop, stop + tensor.numel()))
            stop = tensors[-1].stop
        moved = [bool(self.scale[where].any()) for where in tensors]
        self.fixed = tuple(name for name, moves in zip(objective.names, moved, strict=True) if not moves)
        self.blocks: Sequence[slice] = [slice(0, stop)]
        if variant == "normalized":
            self.blocks = [where for where, moves in zip(tensors, moved, strict=True) if moves]

    def norms(self, vector: Tensor) -> list[float]:
        """Norm of the part of a vector in every ball, accumulated in float64."""
        return [math.sqrt(float(vector[where].double().square().sum())) for where in self.blocks]

    def dual_norm(self, gradient: Tensor) -> float:
        r"""Largest :math:`g \cdot u` over the balls: :math:`\sum_l \|g_l\|`."""
        return math.fsum(self.norms(gradient))

    def unit(self, vector: Tensor) -> Tensor:
        """The vector with its part in every ball scaled to norm 1; a part that is zero or not finite becomes zero."""
        out = torch.zeros_like(vector)
        for where, norm in zip(self.blocks, self.norms(vector), strict=True):
            if 0 < norm < math.inf:
                out[where] = vector[where] / norm
        return out

    def project(self, vector: Tensor) -> Tensor:
        """The nearest point of the balls; changes ``vector``."""
        for where, norm in zip(self.blocks, self.norms(vector), strict=True):
            if norm > 1:
                vector[where] /= norm
        return vector

    def random(self, seed: int, index: int) -> Tensor:
        """Point ``index``, uniform on the sphere of every ball; depends on (seed, index) alone."""
        ids = torch.zeros(1, dtype=torch.int64, device=self.scale.device)
        row = direction(ids, seed, [index], [len(self.scale)], "gaussian")[0][0]
        return self.unit(row.to(self.scale.dtype))


class BallLoss:
    """L(w + epsilon s u) - L(w) and its gradient in u, on a private copy.

    Args:
        replica: of the objective, in the dtype to evaluate in.
        scale: s, ``[D]``.
        epsilon: radius.
        base: L(w) in the same arithmetic.
        evaluations: those of a journal, of this ball and data.
    """

    def __init__(
        self, replica: Replica, scale: Tensor, epsilon: float, base: float, evaluations: Evaluations | None = None
    ) -> None:
        self._replica, self._scale, self._epsilon, self.base = replica, scale, epsilon, base
        self._kept = evaluations or Evaluations()

    def value(self, point: Tensor) -> float:
        """The difference at u ``[D]``; one forward."""

        def make() -> dict[str, Any]:
            self._write(point)
            return {"value": float(self._replica.loss()) - self.base}

        return float(self._taken("value", point, make)["value"])

    def value_and_gradient(self, point: Tensor) -> tuple[float, Tensor]:
        """The difference at u ``[D]``, and its gradient in u; one forward and backward."""

        def make() -> dict[str, Any]:
            self._write(point)
            loss, parts = self._replica.loss_and_gradient()
            gradient = torch.cat([part.reshape(-1) for part in parts]).to(self._scale.dtype)
            return {"value": loss - self.base, "gradient": gradient.mul_(self._scale).mul_(self._epsilon)}

        found = self._taken("gradient", point, make)
        return float(found["value"]), found["gradient"].to(self._scale.device)

    def _taken(self, kind: str, point: Tensor, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        before = self._replica.evaluations
        found = self._kept.taken(kind, (point,), make)
        self._replica.evaluations = before + 1  # also of an earlier run
        return found

    def _write(self, point: Tensor) -> None:
        """Fresh from the originals; u = 0 gives them exactly."""
        start = 0
        for slot, base in zip(self._replica.scratch, self._replica.base, strict=True):
            where = slice(start, start + base.numel())
            step = (point[where] * self._scale[where]).mul_(self._epsilon)
            slot.copy_(base.to(step.dtype) + step.view(base.shape))
            start = where.stop
