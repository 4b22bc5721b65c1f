"""Slopes by losses nearby, and whether the gradient that autograd gives has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from fastscape.curvature.flat import norm
from fastscape.evaluation.branches import Branches
from fastscape.evaluation.nearby import NARROW
from fastscape.evaluation.trial import activation_bytes, memory_for
from fastscape.objective.replica import Replica

DETACHED = (
    "the gradient is not that of the loss (a part is detached, such as the boxes of a detector, or has a backward of its own)"
)
WIDE = (1e-2, 1e-3)  # of ||w||: where losses that cannot tell a curvature tell a slope
_RADII = (*WIDE, 1e-4)  # of ||w||
_GRADIENT = 4  # times the activations that a gradient may take
_APART = 4.0  # of the distance of slopes at two radii
_SAME = 1e-3  # of ||g||: what is missing of a gradient may lie nearly across it


def slopes(
    both: Callable[[float], tuple[float, float]], radii: Sequence[float], unit: float, rounding: float
) -> list[tuple[float, float]]:
    """Slopes of a loss along a vector, and how far each may be off: by its distance to that of a wider radius, and by rounding.

    Args:
        both: the losses a step forth and a step back, a step being a multiple of the vector.
        radii: from wide to near; the first has no slope of its own.
        unit: the step of radius 1.
        rounding: of a loss.
    """
    steps = [radius * unit for radius in radii]
    found = [(plus - minus) / (2 * step) for step in steps for plus, minus in (both(step),)]
    return [
        (near, _APART * abs(wide - near) + rounding / step) for wide, near, step in zip(found, found[1:], steps[1:], strict=False)
    ]


def departing(replica: Replica, memory: int | None = None) -> str:
    r"""In words, where :math:`\|g\|` is not the slope of the loss along g; of the first batch, empty where that cannot be told.

    What descends along such a gradient descends something else, or nothing. Losses are those on the pieces of the network that
    hold at w, as its gradient is: at a kink the plain ones have half of each side. A model that refuses displaced weights, or
    whose gradient needs more than ``memory`` bytes, cannot be told. The scratch parameters are those at w afterwards.

    Cost: a gradient and eight evaluations of a batch.
    """
    replica.reset()
    if _GRADIENT * activation_bytes(replica) > memory_for(memory, replica.objective.device):
        return ""
    try:
        return _departing(replica)
    except Exception:  # the model's own, at weights that it has not been asked for
        return ""
    finally:
        replica.reset()


def _departing(replica: Replica) -> str:
    value, gradient = replica.loss_and_gradient([0])
    length, size = norm(gradient), norm(replica.base)
    if not (math.isfinite(value) and math.isfinite(length) and length > 0 and size > 0):
        return ""
    branches = Branches()

    def loss(mode: Callable[[int], AbstractContextManager[None]]) -> float:
        with mode(0), torch.no_grad():
            return float(replica.batch_loss(0)[0])

    def both(step: float) -> tuple[float, float]:
        losses = []
        for sign in (1, -1):
            replica.reset()
            for slot, part in zip(replica.scratch, gradient, strict=True):
                slot.add_(part.to(slot), alpha=sign * step)
            losses.append(loss(branches.held))
        return losses[0], losses[1]

    branches.settled(loss)
    rounding = NARROW * torch.finfo(replica.dtype).eps * (1 + abs(value))
    for slope, error in slopes(both, _RADII, size / length, rounding):
        if math.isfinite(error) and abs(slope - length**2) > max(_SAME * length**2, error):
            return DETACHED
    return ""
