"""Checks that the gradient that autograd gives is that of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from fastscape.curvature.flat import norm
from fastscape.curvature.point import APART, DETACHED, WIDE
from fastscape.evaluation.branches import Branches
from fastscape.evaluation.nearby import NARROW
from fastscape.evaluation.trial import activation_bytes, memory_for
from fastscape.objective.replica import Replica

_RADII = (*WIDE, 1e-4)  # of ||w||
_GRADIENT = 4  # times the activations that a gradient may take
_SAME = 1e-3  # of ||g||: what is missing of a gradient may lie nearly across it


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

    branches.settled(loss)
    slopes = [_slope(replica, gradient, length, radius * size, partial(loss, branches.held)) for radius in _RADII]
    rounding = NARROW * torch.finfo(replica.dtype).eps * (1 + abs(value)) / size
    for wide, near, radius in zip(slopes, slopes[1:], _RADII[1:], strict=False):
        error = APART * abs(wide - near) + rounding / radius
        if math.isfinite(error) and abs(near - length) > max(_SAME * length, error):
            return DETACHED
    return ""


def _slope(replica: Replica, gradient: list[Tensor], length: float, step: float, loss: Callable[[], float]) -> float:
    losses = []
    for sign in (1, -1):
        replica.reset()
        for slot, part in zip(replica.scratch, gradient, strict=True):
            slot.add_(part.to(slot), alpha=sign * step / length)
        losses.append(loss())
    return (losses[0] - losses[1]) / (2 * step)
