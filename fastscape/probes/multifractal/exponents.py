r"""Scaling exponents of a family of measures: tau(q), alpha(q), f(q), h_i and log-cumulants.

Sign convention: :math:`Z_q(\epsilon) \sim \epsilon^{\tau(q)}`. Everything is a least-squares slope S over
:math:`x_k = \ln \epsilon_k`, so the unit of epsilon does not matter (except in :func:`ratio_spectrum`).

Sources: Halsey et al., PRA 33 (1986) 1141 (tau, alpha, f); Chhabra & Jensen, PRL 62 (1989) 1327 (canonical alpha, f);
Török & Bartha (directional responses, M_tau); Delour, Muzy & Arneodo, EPJ B 23 (2001) 243 (log-cumulants).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastscape.numerics.arrays import Array, Shapes
from fastscape.probes.multifractal.lines import fit_line, slope
from fastscape.probes.multifractal.moments import Moments, log_measure, log_sum, moments


@dataclass(frozen=True)
class Exponents:
    r"""Exponents over the orders q, arrays ``[Q]``.

    Attributes:
        q: orders.
        tau: mass exponent :math:`\tau(q) = S[\ln Z_q]`.
        tau_stderr, tau_r2, tau_intercept: quality of its line (see :class:`fastscape.probes.multifractal.lines.Line`).
        alpha: Chhabra-Jensen :math:`\alpha(q) = S[A]`; exactly :math:`d\tau/dq`.
        f: Chhabra-Jensen :math:`f(q) = S[F]`; exactly :math:`q \alpha - \tau`.
        dimension: generalised dimension :math:`D_q = \tau / (q - 1)`, and :math:`\alpha(1)` at q = 1.
        n_eff: smallest effective number of directions over the scales.
    """

    shapes: ClassVar[Shapes] = {
        "q": "Q",
        "tau": "Q",
        "tau_stderr": "Q",
        "tau_r2": "Q",
        "tau_intercept": "Q",
        "alpha": "Q",
        "f": "Q",
        "dimension": "Q",
        "n_eff": "Q",
    }
    q: Array
    tau: Array
    tau_stderr: Array
    tau_r2: Array
    tau_intercept: Array
    alpha: Array
    f: Array
    dimension: Array
    n_eff: Array


def exponents(measured: Moments, x: Array, q: Array, weights: Array | None = None) -> Exponents:
    """Exponents from the moments at scales ``x = ln eps`` ``[K]``; ``weights`` ``[K]`` are shared by all q."""
    line = fit_line(x, measured.log_z, weights)
    alpha, f = slope(x, measured.mean_log, weights), slope(x, measured.entropy, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        dimension = np.where(q == 1, alpha, line.slope / np.where(q == 1, 1.0, q - 1))
    return Exponents(q, line.slope, line.stderr, line.r2, line.intercept, alpha, f, dimension, np.min(measured.n_eff, axis=0))


def structure_exponents(log_r: Array, x: Array, q: Array, weights: Array | None = None) -> Array:
    r"""Structure-function exponents :math:`\zeta(q) = S[\ln \sum_i r_i^q]`, with :math:`\tau(q) = \zeta(q) - q \zeta(1)`.

    Args:
        log_r: ln r ``[K, N]``; zeros (-inf) make q <= 0 NaN.
        x: ln eps ``[K]``.
        q: orders ``[Q]``.
    """
    empty = np.isneginf(log_r).any(axis=1)
    with np.errstate(invalid="ignore"):
        sums = np.stack([log_sum(np.where(order == 0, 0.0, order * log_r))[:, 0] for order in q], axis=1)
    sums[np.ix_(empty, q <= 0)] = np.nan
    return slope(x, sums, weights)


def ratio_spectrum(log_p: Array | Sequence[Array], eps: Array, q: Array) -> tuple[Array, Array]:
    r"""Single-scale ratio variant: alpha_ratio = mean_k A / ln eps_k, f_ratio = mean_k F / ln eps_k.

    Not the multifractal spectrum: it depends on the unit of eps and is non-trivial for an exact quadratic. Offered because
    Török & Bartha use it.

    Raises:
        ValueError: a radius of 1 or more (ln eps changes sign).
    """
    if np.any(eps >= 1):
        raise ValueError(f"eps must be below 1 for the ratio variant, got {eps.max()!s}; use the slopes (alpha, f)")
    measured = moments(log_p, q)
    log_eps = np.log(eps)[:, None]
    return np.mean(measured.mean_log / log_eps, axis=0), np.mean(measured.entropy / log_eps, axis=0)


@dataclass(frozen=True)
class HolderExponents:
    """Per-direction exponents h_i = S[ln r_i] and their distribution.

    Attributes:
        h: exponents ``[N]``; NaN for a direction with a zero or NaN response.
        stderr, r2: quality of each line ``[N]``.
        mean, std, median, iqr, span: over directions with a finite h (std with 1/N).
    """

    shapes: ClassVar[Shapes] = {"h": "directions", "stderr": "directions", "r2": "directions"}
    h: Array
    stderr: Array
    r2: Array
    mean: float
    std: float
    median: float
    iqr: float
    span: float


def holder_exponents(log_r: Array, x: Array, weights: Array | None = None) -> HolderExponents:
    """Hölder-type exponents of each direction.

    Args:
        log_r: ln r ``[K, N]``.
        x: ln eps ``[K]``.
        weights: optional ``[K]``.
    """
    usable = np.isfinite(log_r).all(axis=0)
    line = fit_line(x, np.where(usable, log_r, np.nan), weights)
    h = line.slope[usable]
    if not len(h):
        nan = float("nan")
        return HolderExponents(line.slope, line.stderr, line.r2, nan, nan, nan, nan, nan)
    low, high = np.percentile(h, [25, 75])
    return HolderExponents(
        line.slope,
        line.stderr,
        line.r2,
        mean=float(np.mean(h)),
        std=float(np.std(h)),
        median=float(np.median(h)),
        iqr=float(high - low),
        span=float(np.ptp(h)),
    )


@dataclass(frozen=True)
class Cumulants:
    r"""Log-cumulants: C1(k) = mean ln r, C2(k) = var ln r (1/N), and their slopes c1, c2.

    :math:`\tau(q) \approx \tfrac{c_2}{2} (q^2 - q)`: c2 < 0 means that heterogeneity grows toward small radii (tau
    concave), c2 > 0 that it grows toward large ones (tau convex). Zeros are left out of C1 and C2.
    """

    shapes: ClassVar[Shapes] = {"C1": "scales", "C2": "scales"}
    C1: Array
    C2: Array
    c1: float
    c2: float


def cumulants(log_r: Array, x: Array, weights: Array | None = None) -> Cumulants:
    """Log-cumulants of ln r ``[K, N]`` at ``x = ln eps``."""
    with np.errstate(invalid="ignore"):
        masked = np.ma.masked_where(np.isneginf(log_r), log_r)
        first = np.ma.filled(masked.mean(axis=1).astype(np.float64), np.nan)
        second = np.ma.filled(masked.var(axis=1).astype(np.float64), np.nan)
    return Cumulants(first, second, float(slope(x, first, weights)), float(slope(x, second, weights)))


def spread_ratio(found: Cumulants, x: Array) -> float:
    """Standard deviation of ln r at the finest over that at the coarsest scale, from the line through its logarithm; NaN at 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steepness = float(slope(x, np.log(found.C2))) / 2
    return float(np.exp(-steepness * (x[-1] - x[0]))) if np.isfinite(steepness) else float("nan")


def participation_ratio(log_r: Array) -> Array:
    """Share of the directions that carry the response at each scale, 1 / (N Z_2), ``[K]``, from ln r ``[K, N]``."""
    log_z = moments(log_measure(log_r), np.array([2.0])).log_z[:, 0]
    result: Array = np.exp(-log_z) / log_r.shape[1]
    return result


def hill_numbers(measured: Moments, q: Array) -> Array:
    """Hill numbers Z_q^(1 / (1 - q)) per scale ``[K, Q]``; at q = 1 the exponential of the entropy."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        powers = np.where(q == 1, -measured.entropy, measured.log_z / np.where(q == 1, 1.0, 1 - q))
        result: Array = np.exp(powers)
    return result
