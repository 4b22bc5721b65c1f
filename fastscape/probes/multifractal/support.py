r"""The orders q whose moments n directions determine.

.. math:: \mathrm{load}(q) = \frac{|q| s}{\sqrt{2 \ln n}}

is the order in units of the critical order :math:`\sqrt{2 \ln n} / s` of a log-normal sample, beyond which its largest value is
the whole moment (the linearisation effect); s is the root mean square excess of ln r above its median (below it for q < 0), the
largest over scales. A central limit theorem for :math:`r^q` needs a load of at most 1/2, a tolerable skewness 1/3. Moments of
order below -1 exist only where responses stay clear of zero, which no sample shows.

Source: Lashermes, Abry & Chainais, "New insights into the estimation of scaling exponents" (2004), for the critical order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastscape.numerics.arrays import Array

LARGEST_LOAD = 1 / 3
LOWEST_ORDER = -1.0
MIN_DIRECTIONS = 64  # of moments
MIN_ORDERS = 4
_BEYOND = 1e7  # directions: not worth a figure
_HELPLESS = 1e5  # directions that nobody will probe


@dataclass(frozen=True)
class Support:
    """Which orders are supported, and why not the others.

    Attributes:
        q: orders ``[Q]``.
        load: of each ``[Q]``; infinite where zeros leave no moment.
        mask: supported ``[Q]``: contiguous around 1, at least four orders with one on each side of 1; never q = 0.
        directions: of the smallest measure.
        upper, lower: largest excess of ln r above and below its median.
        reason: why none is supported whatever the loads are; empty where that is not so.
        lowest: order below which none is supported.
    """

    q: Array
    load: Array
    mask: NDArray[np.bool_]
    directions: int
    upper: float
    lower: float
    reason: str = ""
    lowest: float = LOWEST_ORDER

    @property
    def orders(self) -> tuple[float, ...]:
        """Supported orders, ascending."""
        return tuple(self.q[self.mask].tolist())

    def holds(self, orders: Array) -> bool:
        """Whether all of some orders of the grid are supported."""
        return bool(np.isin(orders, self.q[self.mask]).all())

    def needed(self, order: float) -> float:
        """About how many directions of the same spread support an order: exp((3 |q| s)^2 / 2); infinite below the lowest."""
        spread = self.upper if order > 0 else self.lower
        exponent = (abs(order) * spread / LARGEST_LOAD) ** 2 / 2
        return math.inf if order < self.lowest or exponent > 700 else math.exp(exponent)

    def lacking(self, orders: Array) -> str:
        """Why some of the orders are not supported, and what would help."""
        if self.reason:
            return self.reason
        if self.directions < MIN_DIRECTIONS:
            return f"{self.directions} directions; moments need {MIN_DIRECTIONS}"
        held = self.q[self.mask]
        supports = f"q {held[0]:g}..{held[-1]:g}" if len(held) else "no orders on both sides of 1"
        worst = max((order for order in orders if order >= self.lowest and order not in held), key=self.needed, default=None)
        if worst is None or self.needed(worst) <= self.directions:
            below = f"; no number of them supports q < {self.lowest:g}" if (orders < self.lowest).any() else ""
            return f"{self.directions} directions support {supports}{below}"
        spread, needed = (self.upper if worst > 0 else self.lower), self.needed(worst)
        about = "more than 1e7" if needed > _BEYOND else f"about {_two_digits(needed)}"
        help_ = "; more directions will not help: report c2" if needed > _HELPLESS else ""
        return (
            f"{self.directions} directions support {supports} (spread of ln r {spread:.2f}); q = {worst:g} needs {about}{help_}"
        )


def support(measures: Sequence[Array], q: Array, reason: str = "", *, gamma: float = 1.0) -> Support:
    """Supported orders of several measures together.

    Args:
        measures: gamma ln r ``[K, N]`` over a window each.
        q: orders ``[Q]``, holding 1.
        reason: why none is supported; empty where that is to be seen.
        gamma: power of the response that the measures are of: an order q is one of gamma q of the response itself.
    """
    lowest = LOWEST_ORDER / max(1.0, gamma)
    deviations = np.array([semi_deviations(log_r) for log_r in measures])
    sizes = np.array([log_r.shape[1] for log_r in measures])
    with np.errstate(invalid="ignore", divide="ignore"):
        sides = np.where(q[:, None] > 0, deviations[:, 0], deviations[:, 1])
        critical = np.sqrt(2 * np.log(sizes))
        load = np.where(q == 0, 0.0, np.max(np.abs(q[:, None]) * sides / critical, axis=1))
    load = np.where(np.isnan(load), np.inf, load)
    directions = int(sizes.min())
    mask = np.zeros(len(q), dtype=np.bool_)
    if not reason and directions >= MIN_DIRECTIONS:
        mask[_around_one(q, (load <= LARGEST_LOAD) & (q >= lowest))] = True
    upper, lower = deviations.max(axis=0)
    return Support(q, load, mask, directions, float(upper), float(lower), reason, lowest)


def semi_deviations(log_r: Array) -> tuple[float, float]:
    """RMS excess of ln r ``[K, N]`` above and below its median, the largest over scales; zeros make the second infinite."""
    with np.errstate(invalid="ignore"):
        excess = log_r - np.median(log_r, axis=1, keepdims=True)
    if np.isnan(excess).any():
        return math.inf, math.inf
    found = []
    for side in (excess > 0, excess < 0):
        count = np.maximum(side.sum(axis=1), 1)
        found.append(float(np.sqrt(np.max(np.sum(np.where(side, excess, 0.0) ** 2, axis=1) / count))))
    return found[0], found[1]


def _around_one(q: Array, usable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Indices of the run of usable orders around 1, q = 0 left out; none where it is too short or one-sided."""
    orders = np.flatnonzero(q != 0)
    one = int(np.flatnonzero(q[orders] == 1)[0])
    low = high = one
    while low > 0 and usable[orders[low - 1]]:
        low -= 1
    while high < len(orders) - 1 and usable[orders[high + 1]]:
        high += 1
    whole = usable[orders[one]] and low < one < high and high - low + 1 >= MIN_ORDERS
    return orders[low : high + 1] if whole else orders[:0]


def _two_digits(value: float) -> str:
    """A count to two significant digits: 4,200."""
    unit = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / unit) * unit:,}"
