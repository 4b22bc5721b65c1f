"""Rounding error of the losses of a family of weights, by evaluating points again in float64, or beside themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from fastscape._state import exact_arithmetic
from fastscape.evaluation.agreement import check_same_function
from fastscape.evaluation.effort import multiplications
from fastscape.evaluation.footprint import Cap, footprint
from fastscape.evaluation.noise import step_noise
from fastscape.evaluation.points import Array
from fastscape.evaluation.surface.losses import total
from fastscape.evaluation.surface.paths import PointLoop
from fastscape.objective.objective import Objective

_COMPARED, _COMPARING = (2, 8), 2.0**24  # points at which the noise is measured, by their multiplications: about 3 ms
_NEAR = 1e-8  # relative step: 1e8 roundings of float64, and squared less than one


@dataclass
class Rounding:
    """Measures the rounding of losses at points.

    Attributes:
        objective: the loss.
        loop: the path that evaluates points one by one.
        memory: bytes that both, and a float64 copy beside them, may take.
        evaluations: of the float64 copy.
    """

    objective: Objective
    loop: PointLoop
    memory: int | None = None
    evaluations: int = field(default=0, init=False)

    def rms(self, rows: Array, losses: Array) -> float:
        """Of one loss, at a few of the points ``[P, m]`` with these losses, the origin aside where there are others.

        NaN without a finite loss.
        """
        replica = self.loop.replica
        usable = np.isfinite(losses)
        usable &= rows.any(axis=1) | ~(usable & rows.any(axis=1)).any()
        known = np.flatnonzero(usable)
        if not len(known):
            return math.nan
        few = int(np.clip(_COMPARING / max(multiplications(self.objective), 1.0), *_COMPARED))
        chosen = known[np.unique(((np.arange(few) + 0.5) / few * len(known)).astype(int))]
        size = float(np.sqrt(np.mean(losses[chosen] ** 2)))
        errors = self._errors(rows[chosen], losses[chosen])
        least = torch.finfo(replica.dtype).eps * size / math.sqrt(48)  # ulp / sqrt(12), half of the losses' largest ulp
        finite = errors[np.isfinite(errors)]
        steps = step_noise(replica, lambda: self.loop.write(replica, rows[chosen[-1]].tolist()))
        return float(np.fmax(np.fmax(np.sqrt(np.mean(finite**2)) if len(finite) else 0.0, least), steps))

    def _errors(self, rows: Array, losses: Array) -> Array:
        if self.loop.replica.dtype == torch.float64:
            return self._nearby(rows)
        try:
            return losses - self._exact(rows)
        except Exception:  # such as a dtype that the model fixes: what was evaluated is kept
            return self._nearby(rows)

    def _nearby(self, rows: Array) -> Array:
        """Second differences over coordinates that differ by 1e-8 (in float64), as errors of one loss: six times the variance."""
        near = _NEAR * math.sqrt(torch.finfo(self.loop.replica.dtype).eps / torch.finfo(torch.float64).eps)
        plain = [total(self.objective, self.loop.at(rows * (1 - step * near))) for step in range(3)]
        return (plain[0] - 2 * plain[1] + plain[2]) / math.sqrt(6)

    def _exact(self, rows: Array) -> Array:
        """Losses in float64."""
        if self.memory is not None:
            own = footprint(self.objective, self.loop.replica.dtype)
            Cap(self.memory).hold(2 * own.copy + footprint(self.objective, torch.float64).alone, "a float64 copy")
        with exact_arithmetic(torch.float64):
            replica = self.objective.replica(torch.float64)
            check_same_function(replica)
            exact = np.empty(len(rows))
            for position, row in enumerate(rows.tolist()):
                self.loop.write(replica, row)
                exact[position] = float(replica.loss())
        self.evaluations += replica.evaluations
        return exact
