r"""Whether a number changed between two checkpoints that were probed along the same directions.

Directions in common leave most of their spread in both numbers, so that the difference is known far better than either: c2 of two
checkpoints of the same run differs by 4 to 6 standard errors where its two intervals overlap. Student's t of the differences by
direction covers 92 to 96 % of 64 to 128 directions.
"""

from __future__ import annotations

import math

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate
from fastscape.numerics.student import mean_estimate
from fastscape.probes.multifractal.lines import slope

PAIRED = "Student's t over directions, paired"
_FEW = 32  # directions that a difference of c2 needs; of exponents fewer would do


def shares(log_r: Array, x: Array) -> dict[str, Array]:
    """Contributions of each direction to the means h, c2 and the variance of h over a window.

    Args:
        log_r: ln r ``[K, N]``, finite.
        x: ln eps ``[K]``.

    Returns:
        ``h_mean``: slopes of ln r; ``c2``: slopes of the squared deviation of ln r from its mean; ``h_std``: squared deviation of
        the slope from its mean, whose mean is the square of std h; each ``[N]``.
    """
    h = slope(x, log_r)
    return {"h_mean": h, "c2": slope(x, (log_r - log_r.mean(axis=1, keepdims=True)) ** 2), "h_std": (h - h.mean()) ** 2}


def paired(first: Array, second: Array) -> Estimate:
    """Mean change from ``first`` to ``second`` ``[N]`` of the same directions, with Student's t interval; none below 32."""
    change, count = second - first, len(first)
    value = float(change.mean()) if count else math.nan
    if count < _FEW:
        return Estimate(value, math.nan, (math.nan, math.nan), count, PAIRED, f"{count} directions; at least {_FEW}")
    return mean_estimate(change, method=PAIRED)


def excludes_none(change: Estimate) -> bool:
    """Whether an interval of a change leaves out 0."""
    return not change.withheld and bool(change.interval[0] > 0 or change.interval[1] < 0)


def usable(*tables: Array) -> Array:
    """Which directions have finite ln r ``[K, N]`` in every table ``[N]``."""
    found: Array = np.all([np.isfinite(table).all(axis=0) for table in tables], axis=0)
    return found
