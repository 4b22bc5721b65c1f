r"""Intervals of positive quantities: means of few skewed values, variances, quotients; and when an interval says too little.

For n independent values with mean m and coefficient of variation c (standard deviation over mean),

.. math:: \Bigl[m\,e^{-s},\; m\,e^{s\sqrt{1 + 2c^2}}\Bigr], \qquad s = t_{0.975,\,n-1}\,c / \sqrt{n},

covers at least 90 % from n = 4 for log-normal, chi-square and squared chi-square populations, where Student's t covers 59 to
95 %: a sample that has missed its upper tail has too small a mean *and* too small a spread, so that the upper arm must be the
longer one. It is equivariant: multiplying the values by a constant multiplies the ends.

An interval of 4 values is honest and may be useless: its ends are a factor of 25 apart for chi-squares with one degree of
freedom. None is shown where they are more than a factor of 10 apart, but the number of values that would do; and none below 8
values altogether, because looking at the width selects the samples whose spread came out too small (of those chi-squares the
8 % of the intervals of 4 values that are narrow enough cover 73 %, and of 8 values 90 %).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from fastscape._checks import counted
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate
from fastscape.numerics.student import around, quantile

LEAST = 4  # values that an interval needs at all
FEW = 8  # below which none is published: the narrow ones are the wrong ones
WIDEST = 10.0  # of the ends' quotient: a wider interval is not worth printing
USEFUL = 3.0  # factor between mean and upper end that "about N" is computed for
_HOPELESS = 1000.0  # times the values there are, beyond which a number of them is no advice
_LARGEST = 700.0  # exponent that float64 holds
UNKNOWN = (math.nan, math.nan)

BY_MODEL = "lower end: the best that was found; upper end: bound of the quadratic model only"
SIGNED = "Student's t"
METHOD = "log scale, upper arm times sqrt(1 + 2 cv^2)"


def skewed_mean(values: Array, exact: float = 0.0, unsampled: float = 1.0) -> Estimate:
    r"""``exact`` plus the mean of non-negative independent values ``[n]``, with an interval on the logarithmic scale.

    Args:
        values: at least 4 for an interval; NaN and inf go through and leave none. Where one is negative the quantity has a sign,
            and the interval is Student's t.
        exact: a part that is known without error, not negative.
        unsampled: share :math:`1 - n/N` of the population that was not seen; its root shrinks the interval.

    Returns:
        an :class:`Estimate`; ``[exact, exact]`` where all values are zero.

    Cost: two passes over the values.

    Source: the form of Cox's interval of a log-normal mean (Land, 1971), without its assumption; the upper arm from the measured
    coverage of seventeen populations (``make coverage``).
    """
    known = np.asarray(values, dtype=np.float64)
    count = len(known)
    with np.errstate(invalid="ignore", over="ignore"):
        mean = float(known.mean()) if count else math.nan
        stderr = float(known.std(ddof=1)) * math.sqrt(unsampled / count) if count > 1 else math.nan
    if count < LEAST:
        return Estimate(exact + mean, stderr, UNKNOWN, count, METHOD, f"{counted(count, 'value')}; at least {LEAST}")
    if np.any(known < 0):
        return around(exact + mean, stderr, count, SIGNED)
    low, high = arms(stderr / mean if mean else 0.0, spread(known), count)
    return Estimate(exact + mean, stderr, (exact + mean * low, exact + mean * high), count, METHOD)


def arms(relative: float, variation: float, count: int) -> tuple[float, float]:
    r"""Ends of the interval over its value: :math:`e^{-s}` and :math:`e^{s \sqrt{1 + 2 c^2}}` with s = t times ``relative``.

    Args:
        relative: standard error over value.
        variation: c, of one of the values.
        count: n, for Student's t with n - 1 degrees of freedom.
    """
    step = quantile(count) * relative
    return math.exp(-step), math.exp(min(step * math.sqrt(1 + 2 * variation**2), _LARGEST))


def spread(values: Array) -> float:
    """Coefficient of variation, standard deviation (n - 1) over mean; 0 where the mean is zero."""
    with np.errstate(invalid="ignore", over="ignore"):
        mean = float(values.mean())
        return float(values.std(ddof=1)) / mean if mean else 0.0


def useful(found: Estimate, noun: str = "value", least: int = FEW) -> Estimate:
    r"""The estimate of a positive number as it is published: ``withheld`` says where its interval tells too little to be shown.

    That is below ``least`` values, and where the ends are more than a factor of 10 apart. The reason names the number of values
    that would put the upper end within a factor of 3, :math:`(1.96\, c / \ln 3)^2 (1 + 2 c^2)` and at least 8 for a mean: of any
    interval :math:`n\,(1.96 \ln(u/m) / (t_{n-1} \ln 3))^2`, from its upper end u. Half an interval, without an upper end, is a
    bound and is shown; so is the interval of a quantity that has a sign. The numbers stay in :attr:`Estimate.interval`, for
    whoever compares them with a threshold.

    Args:
        found: with an interval.
        noun: what ``n`` counts.
        least: values below which none is shown.
    """
    low, high = found.interval
    if found.method == SIGNED or low <= 0 or math.isinf(high) or not found.value > 0:
        return found
    if found.n < least:
        return dataclasses.replace(found, withheld=f"{counted(found.n, noun)}; at least {least}")
    if not high > WIDEST * low:  # also of NaN
        return found
    arm = math.log(high / found.value) / quantile(found.n)
    enough = rounded(max(found.n * (1.96 * arm / math.log(USEFUL)) ** 2, FEW, found.n + 1))
    return dataclasses.replace(found, withheld=f"{counted(found.n, noun)}; about {enough} for a factor of {USEFUL:g}")


def within(found: Estimate, span: float, noun: str = "value") -> Estimate:
    """The estimate of a number that is not negative, its interval not shown where it is wider than what it can differ by.

    That is ``span``. The reason names the number of values that would bring a symmetric interval's half-width to half of the
    value, so that its ends are a factor of 3 apart.
    """
    low, high = found.interval
    if not (high - low > span and found.value > 0):  # also of NaN
        return found
    factor = (2 * (high - found.value) / found.value) ** 2
    if factor > _HOPELESS:
        return dataclasses.replace(found, withheld=f"{counted(found.n, noun)} cannot tell it from 0")
    enough = rounded(max(found.n * factor, FEW, found.n + 1))
    return dataclasses.replace(found, withheld=f"{counted(found.n, noun)}; about {enough} for a factor of {USEFUL:g}")


def shown_ends(found: Estimate) -> tuple[float, float]:
    """The interval as figures and tables draw it: NaN where it is withheld."""
    return UNKNOWN if found.withheld else found.interval


def scaled(found: Estimate, factor: float) -> Estimate:
    """``factor`` times an estimate, factor >= 0."""
    low, high = found.interval
    return dataclasses.replace(
        found, value=factor * found.value, stderr=factor * found.stderr, interval=(factor * low, factor * high)
    )


def quotient(numerator: Estimate, denominator: Estimate) -> tuple[float, float]:
    r"""Interval of a positive number over one that may not stand above zero, from the intervals of both.

    .. math:: l = \frac{c}{ab + \sqrt{(ab)^2 - cd}}, \quad c = l_a (2a - l_a),\; d = u_b (2b - u_b), \qquad
              u = \frac{ab + \sqrt{(ab)^2 - cd}}{d}, \quad c = u_a (2a - u_a),\; d = l_b (2b - l_b)

    for a in :math:`[l_a, u_a]` and b in :math:`[l_b, u_b]`. The arms of either may differ, which a delta method does not know;
    where the denominator's interval reaches zero the upper end is infinite, and where it lies below zero there is no interval.

    Source: Donner & Zou, "Closed-form confidence intervals for functions of the normal mean and standard deviation" (2012).
    """
    a, b = numerator.value, denominator.value
    (a_low, a_high), (b_low, b_high) = numerator.interval, denominator.interval
    if not all(map(math.isfinite, (a, b, a_low, a_high, b_low, b_high))):
        return UNKNOWN
    if b_high <= 0:
        return UNKNOWN
    if a == 0:
        return 0.0, 0.0
    if a_low == a_high and b_low == b_high:  # both are known exactly: the formula's rounding is not theirs
        exact = a * (1 / b)
        return exact, exact
    over = a_low * (2 * a - a_low)
    lowest = over / (a * b + math.sqrt(max((a * b) ** 2 - over * b_high * (2 * b - b_high), 0.0)))
    if b_low <= 0:
        return lowest, math.inf
    under = b_low * (2 * b - b_low)
    return lowest, (a * b + math.sqrt(max((a * b) ** 2 - a_high * (2 * a - a_high) * under, 0.0))) / under


def rounded(count: float) -> str:
    """A number of values that is known roughly: two digits, without an exponent."""
    digits = max(0, math.floor(math.log10(count)) - 1) if count >= 1 else 0
    return f"{math.ceil(count / 10**digits) * 10**digits:,}"
