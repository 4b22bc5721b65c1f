r"""Noise of minibatch gradients from squared deviations of sample gradients, and the temperature of SGD.

For sample gradients g_i with mean :math:`\bar g` over n samples,
:math:`\Sigma_1 = \sum_i (g_i - \bar g)(g_i - \bar g)^\top / (n - 1)` is unbiased for the covariance of one sample's gradient, and
that of a minibatch of B is :math:`\Sigma_B = \Sigma_1 / B \cdot (1 - B/N)` for sampling without replacement from a population of
N. Nothing here needs the gradients themselves: squared deviations and products with the mean are enough.

A unit is a sample, or a group of b samples whose mean gradient is known; :math:`b\,\|g_k - \bar g\|^2` has the same expectation
for every b, which makes the between-group mean square the two-batch-size estimator of McCandlish et al. averaged over groups.

Source: McCandlish et al., "An empirical model of large-batch training" (2018), section 2.2 and appendix A.1; Mandt, Hoffman &
Blei, "Stochastic gradient descent as approximate Bayesian inference" (2017), section 3; Efron & Stein (1981) for the jackknife.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate, widened
from fastscape.numerics.positive import UNKNOWN, quotient, skewed_mean
from fastscape.numerics.student import around, quantile

_ROUNDING = 4.0  # units of rounding in a sum of squares of gradients
_QUOTIENT = "quotient of the intervals of trace and squared gradient"
_BALANCED = "||g||^2 is below zero, as of samples more balanced than independent draws; draw other samples"
_FIELLER = "Fieller's, of a quotient of independent estimates"


@dataclass(frozen=True)
class Units:
    r"""Statistics of K units (samples, or groups of samples).

    Attributes:
        spread: estimates of tr Sigma_1 times (K - 1) / K by each unit: :math:`b_k\|g_k - \bar g\|^2` ``[K]``.
        shift: squared length of what a unit adds to the mean, times K: :math:`\|\rho_k (g_k - \bar g)\|^2` with rho its weight
            over the mean weight ``[K]``.
        along: :math:`\bar g \cdot \rho_k (g_k - \bar g)` ``[K]``.
        mean_square: :math:`\|\bar g\|^2`.
        samples: n in all units.
        population: N that they were drawn from without replacement; infinite for independent draws.
        unit: relative rounding of gradients.
    """

    spread: Array
    shift: Array
    along: Array
    mean_square: float
    samples: int
    population: float = math.inf
    unit: float = 0.0

    def rounding(self, spread: float) -> float:
        """Uncertainty by rounding of gradients of a sum of squared deviations from a mean that may be far longer."""
        return _ROUNDING * self.unit * (spread + math.sqrt(spread * self.mean_square))

    @property
    def unsampled(self) -> float:
        """1 - n / N, the share of the population that was not seen."""
        return max(0.0, 1 - self.samples / self.population)


def noise_trace(spread: Array, unsampled: float = 1.0) -> Estimate:
    r"""Tr Sigma_1 from the squared deviations ``[K]`` of units: their sum over K - 1.

    It is the mean of :math:`K/(K-1)` times them, with the interval of :func:`skewed_mean`, because squared deviations are
    skewed; it shrinks by :math:`\sqrt{1 - n/N}` as the population is exhausted. NaN and inf go through.
    """
    count = len(spread)
    if count < 2:
        return Estimate(math.nan, math.nan, UNKNOWN, count)
    return skewed_mean(spread * (count / (count - 1)), unsampled=unsampled)


def mean_square(units: Units) -> Estimate:
    r"""Unbiased :math:`\|g\|^2` of the population: :math:`\|\bar g\|^2 - \mathrm{tr}\Sigma_1 (1 - n/N) / n`; may be negative.

    The jackknife's interval covers 92 to 99 % for gradients near or at zero whose noise has three or more dimensions, 80 % for
    one (60 normal samples).
    """
    value, replicates = _mean_square(units)
    return widened(jackknifed(value, replicates, units.unsampled), _square_rounding(units))


def noise_scale(units: Units) -> Estimate:
    r"""Gradient noise scale :math:`B_{simple} = \mathrm{tr}\Sigma_1 / \|g\|^2`: the batch at which noise and gradient are equal.

    The interval is that of a quotient of both intervals (:func:`quotient`). Where that of :math:`\|g\|^2` reaches zero there is a
    lower end only, the upper one is infinite, and so is a value whose denominator is not positive; where that of :math:`\|g\|^2`
    lies below zero, which no independent draws explain, there is no interval.
    """
    square, squares = _mean_square(units)
    numerator = noise_trace(units.spread, units.unsampled)
    numerator = widened(numerator, units.rounding(numerator.value))
    denominator = widened(jackknifed(square, squares, units.unsampled), _square_rounding(units))
    with np.errstate(invalid="ignore", divide="ignore"):
        stderr = _spread(_without_each_trace(units.spread) / squares, units.unsampled) if square > 0 else math.nan
    withheld = _BALANCED if denominator.interval[1] <= 0 else ""
    return Estimate(
        numerator.value * _inverse(square), stderr, quotient(numerator, denominator), len(squares), _QUOTIENT, withheld
    )


def batch_factor(batch_size: int, population: float = math.inf) -> float:
    """Sigma_B over Sigma_1: (1 - B/N) / B for sampling without replacement from N, 1/B where N is infinite."""
    return (1 - batch_size / population) / batch_size


def effective_rate(learning_rate: float, momentum: float = 0.0, dampening: float = 0.0) -> float:
    r"""Learning rate of the SGD that momentum amounts to over many steps: :math:`\eta (1 - damp) / (1 - \mu)`; Nesterov's too."""
    return learning_rate * (1 - dampening if momentum else 1.0) / (1 - momentum)


def gibbs_factor(temperature: float) -> float:
    r"""The factor 1 / (2 T) of the exponent in :math:`p(w) \propto \exp\bigl(-(w - w^*)^\top H (w - w^*) / (2T)\bigr)`.

    The stationary law of :math:`dw = -\nabla L\,dt + \sqrt{2T}\,dW` is :math:`\exp(-L/T)`, and L is
    :math:`\tfrac12 (w - w^*)^\top H (w - w^*)` near a minimum; without the 1/2 the variance T/h would come out as T/(2h).
    """
    return _inverse(2 * temperature)


def ratio(numerator: Estimate, denominator: Estimate) -> Estimate:
    """Quotient of two independent estimates with Fieller's interval; unbounded where the denominator may be zero."""
    a, b, sa, sb = numerator.value, denominator.value, numerator.stderr, denominator.stderr
    count = min(numerator.n, denominator.n)
    if not (math.isfinite(a) and math.isfinite(b) and b != 0):
        return Estimate(math.nan, math.nan, UNKNOWN, count)
    value = a / b
    stderr = math.hypot(sa / b, value * sb / b)
    t = quantile(count)
    bias = (t * sb / b) ** 2
    if not bias < 1:  # also NaN
        interval = UNKNOWN if math.isnan(bias) else (-math.inf, math.inf)
        return Estimate(value, stderr, interval, count, _FIELLER)
    half = t / abs(b) * math.sqrt(sa**2 * (1 - bias) + (value * sb) ** 2)
    return Estimate(value, stderr, ((value - half) / (1 - bias), (value + half) / (1 - bias)), count, _FIELLER)


def jackknifed(value: float, replicates: Array, unsampled: float = 1.0) -> Estimate:
    """``value`` with the interval of its leave-one-out replicates ``[K]``, times the square root of the unsampled share."""
    return around(value, _spread(replicates, unsampled), len(replicates), "jackknife")


def _without_each_trace(spread: Array) -> Array:
    """Leave-one-out values of the trace: removing a unit takes K / (K - 1) of its squared deviation from the sum."""
    count = len(spread)
    if count < 3:
        return np.full(count, np.nan)
    with np.errstate(invalid="ignore"):
        return np.asarray((np.sum(spread) - count / (count - 1) * spread) / (count - 2))


def _mean_square(units: Units) -> tuple[float, Array]:
    count, unsampled = len(units.spread), units.unsampled
    trace = noise_trace(units.spread).value
    value = units.mean_square - (trace / units.samples * unsampled if unsampled else 0.0)
    left = units.samples * (count - 1) / count
    squares = units.mean_square - 2 * units.along / (count - 1) + units.shift / (count - 1) ** 2 if count > 1 else units.along
    return value, squares - _without_each_trace(units.spread) / left * unsampled


def _square_rounding(units: Units) -> float:
    trace = noise_trace(units.spread).value
    return _ROUNDING * units.unit * (units.mean_square + math.sqrt(units.mean_square * trace / units.samples))


def _spread(replicates: Array, unsampled: float) -> float:
    count = len(replicates)
    if count < 2:
        return math.nan
    with np.errstate(invalid="ignore"):
        return math.sqrt((count - 1) ** 2 / count * float(np.var(replicates, ddof=1)) * unsampled)


def _inverse(value: float) -> float:
    """1 / value; infinite where it is zero or negative, NaN where it is NaN."""
    return math.nan if math.isnan(value) else 1 / value if value > 0 else math.inf
