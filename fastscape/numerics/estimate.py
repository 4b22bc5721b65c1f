"""A number with its uncertainty, or with the reason why it has none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fastscape.numerics.arrays import Array

LEVEL = 95.0


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    Attributes:
        value: the estimate.
        stderr: standard error.
        interval: both ends of the 95 % interval, which holds the value; NaN where it is withheld.
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


def unknown(n: int) -> Estimate:
    """The estimate that could not be made of ``n`` values."""
    return Estimate(math.nan, math.nan, (math.nan, math.nan), n, withheld="the analysis failed")


def widened(estimate: Estimate, rounding: float) -> Estimate:
    """With what arithmetic leaves open beside sampling: ``rounding`` to either side, two standard errors of it.

    Where draws differ by little, or are all there are, sampling leaves nothing, and the rounding of the numbers is all the error.
    """
    low, high = estimate.interval
    stderr = math.hypot(estimate.stderr, rounding / 2)
    return replace(estimate, stderr=stderr, interval=(low - rounding, high + rounding))


class Estimates(dict[str, Estimate]):
    """Estimates by name; a missing one is a KeyError that says why: ``reason``, or which there are."""

    def __init__(self, estimates: Mapping[str, Estimate], reason: str) -> None:
        super().__init__(estimates)
        self.reason = reason

    def __missing__(self, name: str) -> Estimate:
        there = f"there are {', '.join(self)}" if self else f"the analysis has no numbers ({self.reason or 'none were made'})"
        raise KeyError(f"estimates has no {name!r}: {there}")


def apart(first: Estimate, second: Estimate) -> bool:
    """Whether two intervals have no value in common; false where one is not known."""
    return bool(first.interval[1] < second.interval[0] or second.interval[1] < first.interval[0]) and not (
        first.withheld or second.withheld
    )
