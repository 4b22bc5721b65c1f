r"""Projected gradient ascent over a product of unit balls, with the step size of auto-PGD.

Source: Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks" (2020),
section 3: normalised gradient steps with momentum, the step halved at checkpoints where progress stalls, and the best point kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fastscape.numerics.arrays import Array
from fastscape.probes.sharpness.balls import Balls

ValueAndGradient = Callable[[Tensor], tuple[float, Tensor]]
_FIRST_STEP = 2.0  # radii of a ball: from any point the first step reaches the far side
_MOMENTUM = 0.75  # share of the new step; the rest repeats the last move
_PROGRESS = 0.75  # share of steps that must have improved since the last checkpoint
_CHECKPOINTS = (0.22, 0.03, 0.06)  # share of all steps to the first; its decrease per checkpoint; and the least


@dataclass
class Ascent:
    """Result of an ascent.

    Attributes:
        best: largest finite or infinite value among the points evaluated; -inf before the first.
        point: where.
        values: of the points in order ``[steps + 1]``; NaN where none was evaluated, or the loss was NaN.
        nonfinite: points with a NaN or infinite value.
    """

    values: Array
    best: float = -math.inf
    point: Tensor | None = None
    nonfinite: int = 0

    def take(self, index: int, value: float, point: Tensor) -> bool:
        """Note a value; whether it is the best so far."""
        self.values[index] = value
        self.nonfinite += not math.isfinite(value)
        better = value > self.best  # False for NaN
        if better:
            self.best, self.point = value, point.clone()
        return better


def ascend(
    function: ValueAndGradient,
    balls: Balls,
    start: Tensor,
    steps: int,
    *,
    stop: Callable[[], bool] | None = None,
    found: Ascent | None = None,
) -> Ascent:
    r"""Climb from ``start``: :math:`z = P(u + \eta\, \hat g),\ u' = P(u + 0.75 (z - u) + 0.25 (u - u_{-1}))`.

    :math:`\hat g` is the gradient with its part in every ball scaled to norm 1, P the projection on the balls.

    Args:
        function: value and gradient at u ``[D]``.
        balls: the set.
        start: in the set.
        steps: gradient steps, at least 1.
        stop: asked before every step; true ends the ascent with what is known.
        found: record to write into, so that an interrupt leaves it to the caller.

    Returns:
        The record. A value that is not finite ends the ascent: there is no direction to go on in.

    Cost: ``steps`` + 1 evaluations; five vectors of D numbers.
    """
    found = found or Ascent(np.full(steps + 1, np.nan))
    point, previous = start.clone(), start
    value, gradient = function(point)
    found.take(0, value, point)
    best_gradient = gradient
    size, checkpoint, span = _FIRST_STEP, 0, _span(steps, _CHECKPOINTS[0])
    improved, halved, best_then = 0, False, found.best
    for index in range(1, steps + 1):
        if not math.isfinite(value) or (stop is not None and stop()):
            break
        target = balls.project(point + size * balls.unit(gradient))
        share = _MOMENTUM if index > 1 else 1.0
        moved = balls.project(point + share * (target - point) + (1 - share) * (point - previous))
        previous, point, before = point, moved, value
        value, gradient = function(point)
        improved += value > before
        if found.take(index, value, point):
            best_gradient = gradient
        if index - checkpoint < span:
            continue
        stalled = improved < _PROGRESS * (index - checkpoint) or (not halved and best_then == found.best)
        halved = stalled
        if stalled and found.point is not None and math.isfinite(found.best):
            size /= 2
            point, value, gradient = found.point.clone(), found.best, best_gradient
            previous = point
        span = max(_span(steps, _CHECKPOINTS[2]), span - _span(steps, _CHECKPOINTS[1]))
        checkpoint, improved, best_then = index, 0, found.best
    return found


def _span(steps: int, share: float) -> int:
    return max(1, round(share * steps))
