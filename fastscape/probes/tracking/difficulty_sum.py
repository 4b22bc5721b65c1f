r"""Optimisation difficulty: the curvature that a training run has paid for, from its steps.

.. math:: O(w_0) = \sum_{t < T} \eta_t \|g_t\|^2 \|H_t\|_2

The spectral norm is known at some steps only and is interpolated linearly between them (trapezoid rule).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate
from fastscape.numerics.positive import LEAST, skewed_mean
from fastscape.numerics.student import mean_estimate

_SEEDS = "Student's t over runs"
RICHARDSON = 3.0  # the error of linear interpolation is a quarter at half the spacing: |O_k - O_2k| = 3 |O_k - O|


@dataclass(frozen=True)
class DifficultySum:
    """O(w0) of one run.

    Attributes:
        value: O, in units of eta ||g||^2 ||H||: loss times curvature.
        coarse: the same from every other spectral norm.
        discretisation: ``|value - coarse|``, about three times the error of ``value`` where the norm is smooth in time.
        cost: sum of eta_t^2 ||g_t||^2 ||H_t|| / 2, in units of the loss: what curvature takes from the descent of every step.
    """

    value: float
    coarse: float
    discretisation: float
    cost: float


def difficulty(learning_rates: Array, gradient_squares: Array, nodes: Array, norms: Array) -> DifficultySum:
    r"""Sum :math:`\eta_t \|g_t\|^2 \|H_t\|_2` over steps, with the norm interpolated between nodes.

    Args:
        learning_rates, gradient_squares: eta_t and ||g_t||^2 of steps t = 0 ... T - 1, ``[T]``.
        nodes: ascending steps at which the norm is known ``[n]``; before the first and after the last it is taken as constant.
        norms: ||H||_2 there ``[n]``.

    Returns:
        :class:`DifficultySum`. NaN where an input is NaN: a run that has diverged has no difficulty.

    Raises:
        ValueError: shapes that do not fit, no node, or nodes that do not ascend.

    Cost: T operations.
    """
    rates, squares = np.asarray(learning_rates, dtype=np.float64), np.asarray(gradient_squares, dtype=np.float64)
    at, known = np.asarray(nodes, dtype=np.float64), np.asarray(norms, dtype=np.float64)
    if rates.shape != squares.shape or rates.ndim != 1:
        raise ValueError(
            f"learning_rates and gradient_squares must have one value per step, got shapes {rates.shape} and {squares.shape}"
        )
    if at.shape != known.shape or at.ndim != 1 or not len(at):
        raise ValueError(f"norms must have one value per node, at least one, got shapes {known.shape} and {at.shape}")
    if np.any(np.diff(at) <= 0):
        raise ValueError("nodes must ascend; give the norm of every step once")
    steps = np.arange(len(rates))
    half = np.unique(np.r_[np.arange(0, len(at), 2), len(at) - 1])
    weights = rates * squares
    fine, coarse = np.interp(steps, at, known), np.interp(steps, at[half], known[half])
    value, other = math.fsum(weights * fine), math.fsum(weights * coarse)
    return DifficultySum(value, other, abs(value - other), math.fsum(rates * weights * fine) / 2)


def dimensionless(cost: float, first_loss: float, last_loss: float) -> float:
    r"""Curvature cost over descent, :math:`\sum_t \tfrac12 \eta_t^2 \|g_t\|^2 \|H_t\|_2 \,/\, (L_0 - L_T)`.

    With a constant learning rate it is (eta / 2) O / (L_0 - L_T). By the descent lemma a step of gradient descent lowers the loss
    by at least :math:`\eta \|g\|^2 - \tfrac12 \eta^2 \|g\|^2 \|H\|`, so that the number has no units and compares
    architectures: near 0 curvature hardly matters. NaN where the loss has not fallen.
    """
    descent = first_loss - last_loss
    return cost / descent if descent > 0 else math.nan


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over training runs that differ in their seed, with a 95 % interval.

    From four runs of positive numbers on it is that of :func:`skewed_mean`, because difficulties of seeds differ by factors; of
    fewer, and of signed numbers, Student's t.

    Raises:
        ValueError: no value.
    """
    array: Array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("values must hold one number per run, got none")
    if len(array) >= LEAST and np.all(array > 0):
        return skewed_mean(array)
    found = mean_estimate(array, method=_SEEDS)
    return replace(found, withheld="1 run; at least 2") if len(array) < 2 else found
