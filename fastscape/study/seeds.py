"""Quantities over the seeds of an architecture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastscape.estimators import Estimate
from fastscape.estimators.scaling import Array
from fastscape.estimators.trace import mean_estimate
from fastscape.reports.tables import interval, number


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and Student's t interval over runs of different seeds; runs without the number are left out."""
    known = np.asarray(values, dtype=np.float64)
    return mean_estimate(known[np.isfinite(known)])


def text(estimate: Estimate) -> str:
    """An estimate over seeds in a table; a single seed has no interval."""
    if estimate.n == 0:
        return "n/a"
    return interval(estimate) if estimate.n > 1 else f"{number(estimate.value)} (one seed)"


def spread(values: Array) -> tuple[float, float]:
    """Smallest and largest of what is known, for error bars."""
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if len(known) else (float("nan"), float("nan"))
