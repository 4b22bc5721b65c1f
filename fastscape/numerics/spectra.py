r"""Results of spectral estimators: a density, a gap, the stability of an optimizer; frozen, in NumPy float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fastscape._checks import one_line
from fastscape.numerics.arrays import Array, Shapes
from fastscape.numerics.estimate import Estimate


@dataclass(frozen=True)
class Density:
    r"""Spectral density of a symmetric matrix by stochastic Lanczos quadrature.

    Probe p gives the Gauss quadrature :math:`\sum_j w_{pj}\,\delta(t - \theta_{pj})` of its spectral measure; the density is
    the mean over probes, smoothed by a Gaussian of standard deviation ``width``. It integrates to one: multiply by D for
    eigenvalues per unit.

    Attributes:
        nodes: Ritz values ``[P, M]`` of P probes, in units of the loss over squared parameters; NaN where a probe broke down
            before M steps.
        weights: ``[P, M]``, rows sum to one (0 beside a NaN node); P = 1 for the quadrature of one block.
        grid: eigenvalues ``[G]`` at which the density was smoothed, ascending.
        values: density ``[G]``, per unit of eigenvalue.
        low, high: 95 % band over probes ``[G]``; NaN where P < 2 or M < 20.
        width: standard deviation of the smoothing, in units of eigenvalues.
        negative_mass: share of the eigenvalues below zero.
        outliers: eigenvalues apart from the bulk, at either end.

    Source: Ghorbani, Krishnan & Xiao, "An investigation into neural net optimization via Hessian eigenvalue density" (2019).
    """

    shapes: ClassVar[Shapes] = {
        "nodes": "probes nodes",
        "weights": "probes nodes",
        "grid": "grid",
        "values": "grid",
        "low": "grid",
        "high": "grid",
    }
    nodes: Array
    weights: Array
    grid: Array
    values: Array
    low: Array
    high: Array
    width: float
    negative_mass: Estimate
    outliers: int
    __repr__ = one_line


@dataclass(frozen=True)
class Gap:
    r"""Distance between the two largest eigenvalues, :math:`\lambda_1 - \lambda_2`.

    Attributes:
        value: of the Ritz values.
        bound: sum of their residuals, which bounds the error of ``value`` where each Ritz value is near its own eigenvalue.
        resolved: whether ``value`` exceeds ``bound``; otherwise the two may be one eigenvalue or cross.
    """

    value: float
    bound: float
    resolved: bool

    @classmethod
    def between(cls, values: Array, residuals: Array) -> Gap:
        """The gap between the first two of descending Ritz values ``[n]`` with their residuals ``[n]``; NaN for n < 2."""
        if len(values) < 2:
            return cls(math.nan, math.nan, False)
        value, bound = float(values[0] - values[1]), float(residuals[0] + residuals[1])
        return cls(value, bound, value > bound)


@dataclass(frozen=True)
class Stability:
    r"""Sharpness relative to the largest at which an optimizer's step still contracts on a quadratic.

    Attributes:
        optimizer: name of its class.
        learning_rate: eta.
        critical: sharpness at the edge of stability (2 / eta for gradient descent), of the raw or the preconditioned Hessian.
        sharpness: largest eigenvalue lambda_1, with coupled weight decay.
        preconditioned: largest eigenvalue of the preconditioned Hessian; ``None`` where the optimizer has no preconditioner.
        ratio: ``preconditioned`` (or ``sharpness``) over ``critical``; above 1 the quadratic model diverges. NaN where it would
            mean nothing, which ``reason`` says: an eigenvalue whose residual exceeds a tenth of it, the first steps of an
            adaptive optimizer or a rising learning rate, learning rate 0, a loss that is not the one that was trained.
        eta_lambda: eta times lambda_1; NaN likewise.
        residual: of the eigenvalue in ``ratio``, in its units.
        batch_sharpness: mean of g'Hg / g'g over batches with their own gradient and Hessian; ``None`` where not measured.
        notes: what was read from the optimizer's state and what was assumed, in words.
        reason: why there is no ratio; empty where there is one.
        at_least: lower bound of the ratio where its eigenvalue has not converged, NaN elsewhere.

    Source: Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability" (2021); "Adaptive
    gradient methods at the edge of stability" (2022).
    """

    optimizer: str
    learning_rate: float
    critical: float
    sharpness: float
    preconditioned: float | None
    ratio: float
    eta_lambda: float
    residual: float
    batch_sharpness: Estimate | None
    notes: tuple[str, ...]
    reason: str = ""
    at_least: float = math.nan
