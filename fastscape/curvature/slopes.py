"""Checks that the gradient that autograd gives is that of the loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastscape.curvature.flat import norm
from fastscape.curvature.point import APART, DETACHED, WIDE
from fastscape.evaluation.nearby import NARROW
from fastscape.objective.replica import Replica

_RADII = (*WIDE, 1e-4)  # of ||w||
_SAME = 1e-3  # of ||g||: what is missing of a gradient may lie nearly across it


def departing(replica: Replica) -> str:
    r"""In words, where :math:`\|g\|` is not the slope of the loss along g; of the first batch, empty where that cannot be told.

    What descends along such a gradient descends something else, or nothing. The scratch parameters are those at w afterwards.

    Cost: a gradient and six evaluations of a batch.
    """
    replica.reset()
    value, gradient = replica.loss_and_gradient([0])
    length, size = norm(gradient), norm(replica.base)
    if not (math.isfinite(value) and math.isfinite(length) and length > 0 and size > 0):
        return ""
    slopes = [_slope(replica, gradient, length, radius * size) for radius in _RADII]
    replica.reset()
    rounding = NARROW * torch.finfo(replica.dtype).eps * (1 + abs(value)) / size
    for wide, near, radius in zip(slopes, slopes[1:], _RADII[1:], strict=False):
        error = APART * abs(wide - near) + rounding / radius
        if abs(near - length) > max(_SAME * length, error):  # not of NaN
            return DETACHED
    return ""


def _slope(replica: Replica, gradient: list[Tensor], length: float, step: float) -> float:
    losses = []
    for sign in (1, -1):
        replica.reset()
        for slot, part in zip(replica.scratch, gradient, strict=True):
            slot.add_(part.to(slot), alpha=sign * step / length)
        with torch.no_grad():
            losses.append(float(replica.batch_loss(0)[0]))
    return (losses[0] - losses[1]) / (2 * step)
