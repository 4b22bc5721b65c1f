r"""Uncertainty of multifractal numbers: bootstrap over directions, permutation of scales."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from fastscape.estimators.scalars import m_tau
from fastscape.estimators.scaling import Array, slope

LEVEL = 95.0
EXACT_SCALES = 6  # 720 permutations: enumerate instead of sampling
_SMALL = 1e-250  # a sum below this share of the largest possible term has lost terms to underflow
COMMON = 1e-9  # ln Z that moves less than this with the scale is a common scaling


Scales = slice | NDArray[np.int64]  # some of the rows of a table


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    Attributes:
        value: the estimate.
        stderr: standard error (standard deviation of the bootstrap).
        interval: 95 % interval: bootstrap percentiles, widened to the value where noise pulls nearly all replicates past it.
            The basic and the bias-corrected interval leave the value out in the same cases; widening can only add coverage.
        n: what it was averaged over (directions).
        method: how the interval was made, in words; empty in files of version 0.1.
        withheld: why no interval is shown, and the remedy; empty where one is.
    """

    value: float
    stderr: float
    interval: tuple[float, float]
    n: int
    method: str = ""
    withheld: str = ""

    @classmethod
    def from_replicates(cls, value: float, replicates: Array, n: int) -> Estimate:
        """Percentile interval that holds ``value``; replicates that are not finite are left out, and all-NaN gives NaN."""
        kept = replicates[np.isfinite(replicates)]
        if len(kept) < 2:
            return cls(value, float("nan"), (float("nan"), float("nan")), n)
        tail = (100 - LEVEL) / 2
        low, high = np.percentile(kept, [tail, 100 - tail])
        return cls(value, float(np.std(kept, ddof=1)), (float(np.fmin(low, value)), float(np.fmax(high, value))), n)


class Estimates(dict[str, Estimate]):
    """Estimates by name; a missing one is a KeyError that says why: ``reason``, or which there are."""

    def __init__(self, estimates: Mapping[str, Estimate], reason: str) -> None:
        super().__init__(estimates)
        self.reason = reason

    def __missing__(self, name: str) -> Estimate:
        there = f"there are {', '.join(self)}" if self else f"the analysis has no numbers ({self.reason or 'none were made'})"
        raise KeyError(f"estimates has no {name!r}: {there}")


@dataclass(frozen=True)
class Resampled:
    """Bootstrap replicates at every scale.

    ``log_s`` = ln sum r^q and ``mean_log`` = sum mu ln r, ``[B, K, Q]``; ``log_total`` = ln sum r, and ``first`` and ``second``
    = mean and variance of ln r, ``[B, K]``; ``counts`` = how often each direction was drawn, ``[B, N]``.
    """

    log_s: Array
    mean_log: Array
    log_total: Array
    first: Array
    second: Array
    counts: NDArray[np.int64]


def resample(
    log_r: Array,
    q: Array,
    banks: Sequence[int],
    *,
    replicates: int = 1000,
    seed: int | np.random.Generator = 0,
    floor: float | None = None,
) -> Resampled:
    """Draw directions with replacement within each bank; a replicate is the same for all scales and orders.

    Args:
        log_r: ln r ``[K, N]``, directions of all banks side by side.
        q: orders ``[Q]``.
        banks: number of directions per bank, summing to N.
        replicates: B.
        seed: of the resampling, or a generator to draw on.
        floor: smallest r as a share of the sum over all directions; the total is that of the r without it.

    Cost: two B x N x (K Q) matrix products; 0.4 s for B = 1000, N = 1024, K = 12, Q = 15.
    """
    rng = np.random.default_rng(seed)
    counts = np.concatenate([rng.multinomial(n, np.full(n, 1 / n), size=replicates) for n in banks if n], axis=1)
    raised = log_r
    if floor is not None:
        raised = np.maximum(log_r, logsumexp(log_r, axis=1, keepdims=True) + np.log(floor))
    scales = [_sums(counts, row, q) for row in raised]
    totals = [_sums(counts, row, np.ones(1))[0][:, 0] for row in log_r]
    alive = ~np.isneginf(log_r)
    first, second = _weighted_variance(counts, np.where(alive, log_r, np.nan))
    return Resampled(
        log_s=np.stack([log_s for log_s, _ in scales], axis=1),
        mean_log=np.stack([mean_log for _, mean_log in scales], axis=1),
        log_total=np.stack(totals, axis=1),
        first=first,
        second=second,
        counts=counts,
    )


def _sums(counts: NDArray[np.int64], log_r: Array, q: Array) -> tuple[Array, Array]:
    """Replicates ``[B, Q]`` of ln sum r^q and of the mean of ln r under the weights r^q, at one scale.

    A product of the counts with exp(q ln r - max); where a replicate misses what carries the moment and its sum
    underflows, it is summed again relative to its own largest term.
    """
    alive = ~np.isneginf(log_r)
    weights, values = counts[:, alive].astype(np.float64), log_r[alive]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        powers = q[:, None] * values  # [Q, N]
        top = np.max(powers, axis=1, initial=-np.inf, keepdims=True)
        scaled = np.exp(powers - top)
        sums = weights @ scaled.T
        log_s, mean_log = np.log(sums) + top[:, 0], weights @ (scaled * values).T / sums
        for order in np.flatnonzero((sums < _SMALL).any(axis=0)):
            rows = np.flatnonzero(sums[:, order] < _SMALL)
            terms = np.log(weights[rows]) + powers[order]
            log_s[rows, order] = logsumexp(terms, axis=1)
            mean_log[rows, order] = np.exp(terms - log_s[rows, order, None]) @ values
    if not alive.all():
        log_s[:, q <= 0], mean_log[:, q <= 0] = np.nan, np.nan
    return log_s, mean_log


def _weighted_variance(counts: NDArray[np.int64], values: Array) -> tuple[Array, Array]:
    """Mean and variance (1/N) over drawn directions of every row of ``values`` ``[K, N]``, each ``[B, K]``; NaN is left out."""
    usable = ~np.isnan(values)
    weights = counts.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        known = np.where(usable, values, 0.0)
        centre = known.sum(axis=1, keepdims=True) / usable.sum(axis=1, keepdims=True)
        offset = np.where(usable, values - centre, 0.0)  # without it E[x^2] - E[x]^2 cancels
        drawn = weights @ usable.T.astype(np.float64)
        mean = weights @ offset.T / drawn
        return mean + centre[:, 0], np.maximum(weights @ (offset**2).T / drawn - mean**2, 0.0)


def weighted_spread(counts: NDArray[np.int64], values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation ``[B]`` of ``values`` ``[N]`` under bootstrap counts ``[B, N]``; NaN is left out."""
    mean, variance = _weighted_variance(counts, values[None])
    return mean[:, 0], np.sqrt(variance[:, 0])


def resampled_spectrum(draws: Resampled, x: Array, q: Array, window: slice) -> tuple[Array, Array, Array]:
    """Replicates of tau, alpha and f, each ``[B, Q]``, over a window of scales."""
    log_s, mean_log = draws.log_s[:, window], draws.mean_log[:, window]
    zeta = slope(x[window], np.moveaxis(log_s, 1, 0))
    zeta_one = slope(x[window], draws.log_total[:, window].T)
    with np.errstate(invalid="ignore"):
        tau = zeta - q * zeta_one[:, None]
        alpha = slope(x[window], np.moveaxis(mean_log, 1, 0)) - zeta_one[:, None]
        return tau, alpha, q * alpha - tau


def is_common(log_z: Array) -> bool:
    """Whether ln Z_q ``[K, Q]`` does not move with the scale, for every q: the measure is the same at all scales."""
    spread = np.abs(log_z - log_z.mean(axis=0))
    return bool(np.all(spread < COMMON))


def permutation_p(
    log_z: Sequence[Array],
    x: Array,
    q: Array,
    windows: Sequence[Scales],
    *,
    permutations_: int = 999,
    seed: int = 0,
) -> float:
    """Significance of M_tau against the null that the measure has no trend with scale.

    The rows of ln Z_q over the scales are permuted, jointly for all q; all permutations are enumerated up to six scales.
    The statistic is M_tau averaged over measures and windows.

    Args:
        log_z: one ``[K, Q]`` array per measure, over the union of the windows.
        x: ln eps ``[K]``.
        q: orders ``[Q]``, without 0.
        windows: slices, or index arrays, of the K scales.
        permutations_: how many to draw.
        seed: of the draws.

    Returns:
        p = (1 + #{M_perm >= M}) / (1 + P); NaN where the scaling is common or tau is not defined.
    """
    if all(is_common(table) for table in log_z):
        return float("nan")
    scales = len(x)
    if scales <= EXACT_SCALES:
        orders = np.array([order for order in permutations(range(scales)) if order != tuple(range(scales))])
    else:
        rng = np.random.default_rng(seed)
        orders = rng.permuted(np.tile(np.arange(scales), (permutations_, 1)), axis=1)
    orders = np.concatenate([np.arange(scales)[None], orders])
    statistic = np.zeros(len(orders))
    for table in log_z:
        for window in windows:
            rows = table[orders][:, window]  # [P + 1, window, Q]
            statistic += m_tau(slope(x[window], np.moveaxis(rows, 1, 0)), q)
    if not math.isfinite(statistic[0]):
        return float("nan")
    return float(np.mean(~(statistic < statistic[0] * (1 - 1e-12))))
