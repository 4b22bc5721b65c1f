"""Quantities over the seeds of an architecture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate
from fastscape.numerics.student import mean_estimate
from fastscape.reports.numbers import number


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and Student's t interval over runs of different seeds; runs without the number are left out."""
    known = np.asarray(values, dtype=np.float64)
    return mean_estimate(known[np.isfinite(known)])


def geometric(values: Sequence[float]) -> Estimate:
    """Geometric mean over seeds with Student's t interval of the logarithms, for what is positive and may span decades.

    Curvatures of seeds differ by factors: the interval of their arithmetic mean would hold negative numbers. Where one is not
    positive it is the arithmetic mean.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not (known > 0).all():
        return mean_estimate(known)
    logs = mean_estimate(np.log(known))
    value = float(np.exp(logs.value))
    low, high = (float(np.exp(min(edge, 700.0))) for edge in logs.interval)
    return Estimate(value, value * logs.stderr, (low, high), logs.n)


def text(estimate: Estimate) -> str:
    """An estimate over seeds in a table; a single seed has no interval."""
    if estimate.n == 0:
        return "n/a"
    if estimate.n == 1:
        return f"{number(estimate.value)} (one seed)"
    low, high = estimate.interval
    return f"{number(estimate.value)} [{number(low, 2)}, {number(high, 2)}]"


def pairs(matrix: Array) -> Array:
    """The values of a symmetric matrix above its diagonal."""
    values: Array = matrix[np.triu_indices(len(matrix), 1)]
    return values
