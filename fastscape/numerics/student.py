"""Student's t: the 95 % interval of a mean of independent samples."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate

PROBES = "Student's t over probes"


def quantile(count: int) -> float:
    """Half-width of the interval of a mean of ``count`` samples, in standard errors; NaN below two."""
    return float(stats.t.ppf(0.975, count - 1)) if count > 1 else math.nan


def around(value: float, stderr: float, count: int, method: str = "") -> Estimate:
    """The estimate of a mean of ``count`` samples with its interval, n - 1 degrees of freedom."""
    half = quantile(count) * stderr
    return Estimate(value, stderr, (value - half, value + half), count, method)


def mean_estimate(samples: Array, exact: float = 0.0, method: str = PROBES) -> Estimate:
    """``exact`` plus the mean of independent samples ``[n]``.

    NaN and inf go through; with one sample the interval is NaN, with none everything is.
    """
    n = len(samples)
    with np.errstate(invalid="ignore"):
        value = exact + float(np.mean(samples)) if n else math.nan
        stderr = float(np.std(samples, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return around(value, stderr, n, method)
