r"""Search of the step at which a function of one variable becomes positive: doubling, halving, then bisection.

The function is :math:`\Delta(\eta) = L(w + \eta u) - L(w)`, zero at 0. What is searched is decided by the signs at the steps
tried so far alone, so that a search can be left and gone on with at any of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastscape.numerics.estimate import Estimate
from fastscape.numerics.student import around

Outcome = Literal["found", "undecided", "never rises", "rises at once", "unfinished", "undefined"]

SURE = 2.0  # standard errors of a difference beyond which its sign means anything
_DOUBLED = 4  # steps by factors of 2; after them by 8, so that a guess that is off by 1e6 costs ten
_FAR = 8.0
_FLAT = 3  # steps within rounding of L(w) after which no smaller one is taken to lower the loss
_HOPELESS = 4  # steps in a row within the error of their differences: of smaller ones both shrink alike


@dataclass(frozen=True)
class Tried:
    r"""One step.

    Attributes:
        eta: its length in units of the update.
        difference: :math:`\Delta(\eta)`; NaN and inf are rises.
        stderr: of the difference over samples; NaN where it is not known.
        noise: of its rounding.
    """

    eta: float
    difference: float
    stderr: float
    noise: float

    @property
    def rises(self) -> bool:
        """Whether the loss is larger than at w, or not a number."""
        return not self.difference <= 0

    @property
    def resolved(self) -> bool:
        """Whether the sign is more than rounding."""
        return not abs(self.difference) <= self.noise

    @property
    def decided(self) -> bool:
        """Whether the sign would be the same on other samples: beyond two standard errors, and beyond rounding."""
        return self.resolved and not abs(self.difference) <= SURE * self.stderr


@dataclass(frozen=True)
class Limits:
    """Where to begin, the smallest and the largest step, and half the width of the bracket over its middle at the end."""

    guess: float
    smallest: float
    largest: float
    tolerance: float


def bracket(tried: Sequence[Tried]) -> tuple[Tried | None, Tried | None]:
    """The largest step below the smallest at which the loss rises, and that one; ``None`` where there is none."""
    upper = min((each for each in tried if each.rises), key=lambda each: each.eta, default=None)
    below = [each for each in tried if upper is None or each.eta < upper.eta]
    return max(below, key=lambda each: each.eta, default=None), upper


def next_step(tried: Sequence[Tried], limits: Limits) -> float | None:
    """The step to try next; ``None`` where no other would tell more."""
    lower, upper = bracket(tried)
    factor = 2.0 if len(tried) <= _DOUBLED else _FAR
    if lower is None and upper is None:
        return min(max(limits.guess, limits.smallest), limits.largest)
    if upper is None:
        assert lower is not None
        return None if lower.eta >= limits.largest else min(lower.eta * factor, limits.largest)
    if not falls(tried):
        least = min(each.eta for each in tried)
        hopeless = len(tried) >= _HOPELESS and not any(each.decided for each in tried[-_HOPELESS:])
        flat = sum(not each.resolved for each in tried) >= _FLAT
        return None if hopeless or flat or least <= limits.smallest else max(least / factor, limits.smallest)
    assert lower is not None
    if _narrow(lower, upper, limits) or not (lower.resolved or upper.resolved):
        return None
    if upper.eta > 4 * lower.eta:
        return math.sqrt(lower.eta * upper.eta)
    middle = (lower.eta + upper.eta) / 2
    return middle if lower.eta < middle < upper.eta else None


def falls(tried: Sequence[Tried]) -> bool:
    """Whether the loss is lower at some step, by more than rounding."""
    return any(each.resolved and not each.rises for each in tried)


def _narrow(lower: Tried, upper: Tried, limits: Limits) -> bool:
    return upper.eta - lower.eta <= limits.tolerance * (upper.eta + lower.eta)


def crossing(tried: Sequence[Tried], count: int) -> Estimate | None:
    r"""The root of :math:`\Delta` within the bracket, its interval over ``count`` samples; ``None`` without a bracket.

    :math:`\Delta(\eta) / \eta` is taken to be linear between the ends, as it is of a quadratic loss, whose root is then exact.
    The standard error is that of :math:`\Delta` at the root over its slope there.
    """
    lower, upper = bracket(tried)
    if lower is None or upper is None:
        return None
    a, b = lower.difference / lower.eta, upper.difference / upper.eta
    width = upper.eta - lower.eta
    if not math.isfinite(b - a) or b == a:
        return around((lower.eta + upper.eta) / 2, math.nan, count)
    share = -a / (b - a)
    root = lower.eta + share * width
    error = (1 - share) * lower.stderr + share * upper.stderr
    return around(root, error * width / (root * (b - a)), count)


def outcome(tried: Sequence[Tried], limits: Limits, root: Estimate | None) -> Outcome:
    """What the steps tried so far amount to."""
    if next_step(tried, limits) is not None:
        return "unfinished"
    if bracket(tried)[1] is None:
        return "never rises"
    if not falls(tried):
        least = min((each for each in tried if each.resolved), key=lambda each: each.eta, default=None)
        return "rises at once" if least is not None and least.decided else "undecided"
    assert root is not None
    return "undecided" if root.interval[0] <= 0 else "found"


def inverse(root: Estimate) -> Estimate:
    r""":math:`\lambda_c = 2 / \eta_c`, its interval open above where that of :math:`\eta_c` reaches 0."""
    low, high = root.interval
    ends = (2 / high if high > 0 else math.nan, 2 / low if low > 0 else math.inf if low <= 0 else math.nan)
    return Estimate(2 / root.value, 2 * root.stderr / root.value**2, ends, root.n, root.method)
