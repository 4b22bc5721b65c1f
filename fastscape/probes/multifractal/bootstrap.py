r"""One bootstrap for every interval over directions, in which each replicate carries its own standard error.

A statistic with influence :math:`\psi_i` (its derivative by the weight of direction i, with mean zero) has the standard
error :math:`se^2 = \tfrac1n \sum_i w_i \psi_i^2` under the weights :math:`w`: 1/n for the sample, for a replicate the drawn
multiplicities over n.

Source: Efron & Tibshirani, "An introduction to the bootstrap" (1993), chapters 12 (bootstrap-t) and 13 (percentiles).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fastscape.numerics.arrays import Array

Ints = NDArray[np.int64]

LEVEL = 95.0
TAILS = ((100 - LEVEL) / 2, (100 + LEVEL) / 2)
SMALL_BANK = 8  # a bank of m directions varies by (m - 1) / m too little by itself, and one of a single direction not at all
ROUNDING = 1e-12  # a standard error below this is rounding, and a ratio to it says nothing
_ENDLESS, _FARTHEST = 1e100, 100.0  # in standard errors: replicates without spread, and what an interval may not reach
_CHUNK = 2**16  # weights at a time: what is computed from them stays in the cache


@dataclass(frozen=True)
class Replicated:
    """A statistic under the sample, and under B resamples of it.

    Attributes:
        value, stderr: under the sample.
        values, stderrs: under every resample ``[B]``; NaN where it is not defined.
    """

    value: float
    stderr: float
    values: Array
    stderrs: Array


def strata(banks: Sequence[int]) -> list[Ints]:
    """Indices of the directions that are drawn among each other: each bank's; banks of fewer than 8 are joined."""
    edges = np.cumsum([0, *banks])
    members = [np.arange(start, stop) for start, stop in pairwise(edges)]
    large = [bank for bank in members if len(bank) >= SMALL_BANK]
    small = [bank for bank in members if 0 < len(bank) < SMALL_BANK]
    return [*large, np.concatenate(small)] if small else large


def multiplicities(members: Sequence[Ints], replicates: int, rng: np.random.Generator) -> Iterator[Ints]:
    """Draws of each direction ``[b, N]``: once each in the first piece ``[1, N]``, then in ``replicates`` draws."""
    size = sum(map(len, members))
    yield np.ones((1, size), dtype=np.int64)
    step = max(1, _CHUNK // size)
    for start in range(0, replicates, step):
        rows = min(step, replicates - start)
        counts = np.empty((rows, size), dtype=np.int64)
        for group in members:
            drawn = rng.integers(0, len(group), (rows, len(group))) + len(group) * np.arange(rows)[:, None]
            counts[:, group] = np.bincount(drawn.ravel(), minlength=rows * len(group)).reshape(rows, len(group))
        yield counts


def standard_errors(weights: Array, influence: Array) -> Array:
    """Standard errors ``[b]`` from influences ``[b, N]``, whose mean is 0 under the weights ``[b, N]``, which sum to 1."""
    result: Array = np.sqrt(np.einsum("bi,bi->b", weights, np.square(influence)) / weights.shape[1])
    return result


def mean_of(parts: Sequence[Replicated]) -> Replicated:
    """Mean of independent statistics whose replicates were drawn independently: se^2 = sum se_b^2 / B^2."""
    count = len(parts)
    with np.errstate(all="ignore"):
        return Replicated(
            float(np.mean([part.value for part in parts])),
            float(np.sqrt(np.sum([part.stderr**2 for part in parts]))) / count,
            np.mean([part.values for part in parts], axis=0),
            np.sqrt(np.sum([part.stderrs**2 for part in parts], axis=0)) / count,
        )


def hull(found: Replicated, *, log: bool = False) -> tuple[float, float]:
    r"""95 % interval: the hull of the percentile and the studentised bootstrap, and of the value.

    Near zero the percentile interval covers too often and the studentised one too seldom; in tails it is the reverse.

    Args:
        found: the statistic and its replicates; those that are not finite are left out.
        log: studentise the logarithm, for what cannot be negative: :math:`z^b = \ln(v^b / v) v^b / se^b`.

    Returns:
        Both ends; NaN with fewer than two replicates, and where an arm has no end, because so many of them have no spread of
        their own (the statistic hangs on one direction).
    """
    value, stderr = found.value, found.stderr
    finite = np.isfinite(found.values)
    if finite.sum() < 2:
        return float("nan"), float("nan")
    ends = [*np.percentile(found.values[finite], TAILS), value]
    if np.isfinite(stderr) and stderr > ROUNDING and not (log and value <= ROUNDING):
        values, stderrs = found.values[finite], found.stderrs[finite]
        with np.errstate(all="ignore"):
            z = np.log(values / value) * values / stderrs if log else (values - value) / stderrs
        z = np.clip(z[~np.isnan(z)], -_ENDLESS, _ENDLESS)
        if len(z) >= 2:
            arms = np.percentile(z, TAILS)
            exponents = -arms * stderr / value if log else np.zeros(2)
            if np.abs(arms).max() >= _FARTHEST or np.abs(exponents).max() >= _FARTHEST:
                return float("nan"), float("nan")
            ends.extend(value * np.exp(exponents) if log else value - arms * stderr)
    return float(np.nanmin(ends)), float(np.nanmax(ends))


def resampled_quantiles(ordered: Array, counts: Ints, shares: Sequence[float]) -> list[Array]:
    """Quantiles of every resample ``[b]``, one array per share, as NumPy interpolates them.

    Args:
        ordered: values ``[N]``, ascending.
        counts: how often each was drawn ``[b, N]``.
        shares: in [0, 1].
    """
    upto = np.cumsum(counts, axis=1)
    drawn, last = upto[:, -1], len(ordered) - 1
    found = []
    for share in shares:
        position = share * (drawn - 1)
        low = np.floor(position)
        below, above = (ordered[np.minimum((upto <= rank[:, None]).sum(axis=1), last)] for rank in (low, np.ceil(position)))
        found.append(np.where(drawn > 0, below + (position - low) * (above - below), np.nan))
    return found
