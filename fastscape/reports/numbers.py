"""Numbers for people: one formatter for estimates, in three states, wherever they are shown."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from fastscape.numerics.estimate import Estimate
from fastscape.numerics.positive import BY_MODEL

_UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

SIGNIFICANT = 0.05


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: significant digits, words for what is missing."""
    if value is None or math.isnan(value):
        return "n/a"
    return f"{value:.{digits}g}"


def interval(estimate: Estimate | None, digits: int | None = None, unit: str = "") -> str:
    """An estimate for people, in one of three states; the same on a terminal, in JSON and on a page.

    ``value [low, high]``; ``value, interval n/a (reason; remedy)`` where the interval is withheld, ``n/a`` for the value too
    where there is none; and a bound, ``>= low`` or ``<= high``, where only one end is known. A positive number whose interval
    begins at zero is said not to be distinguishable from it.

    Args:
        estimate: what is shown.
        digits: significant ones of the value; ``None`` rounds all three numbers to two digits of the interval's width.
        unit: written behind the numbers.
    """
    if estimate is None:
        return "n/a"
    value, (low, high) = estimate.value, estimate.interval
    if math.isnan(value):
        return f"n/a ({estimate.withheld})" if estimate.withheld else "n/a"
    if estimate.withheld:
        return f"{number(value)}{unit}, interval n/a ({estimate.withheld})"
    if math.isnan(low) or math.isnan(high) or (math.isinf(low) and math.isinf(high) and low != high):
        return f"{number(value)}{unit}, interval n/a"
    if math.isinf(high) and low < high:
        return f">= {number(low)}{unit}"
    if estimate.method == BY_MODEL:
        return f">= {number(low)} (<= {number(high)} in the quadratic model)"
    if math.isinf(low) and low < high:
        return f"<= {number(high)}{unit}"
    tail = f"{unit}: not distinguishable from 0" if low == 0 < value else unit
    if digits is not None:
        return f"{number(value, digits)} [{number(low)}, {number(high)}]{tail}"
    width = high - low
    if not width > 0:
        return f"{number(value)} [{number(low)}, {number(high)}]{unit}"
    decimals = max(0, 1 - math.floor(math.log10(width)))
    if decimals > 6:
        return f"{value:.2e} [{low:.2e}, {high:.2e}]{tail}"
    return f"{value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]{tail}"


def cell(estimate: Estimate | None) -> str:
    """As :func:`interval`, for a row of a table, where a reason has no room: ``value [n/a]`` where the interval is withheld."""
    if estimate is None or not estimate.withheld:
        return interval(estimate)
    return "n/a" if math.isnan(estimate.value) else f"{number(estimate.value)} [n/a]"


def with_error(value: float, error: float) -> str:
    """``value ± error``, both rounded to two digits of the error."""
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{number(value, 6)} ± {number(error, 2)}"
    decimals = 1 - math.floor(math.log10(error))
    if decimals > 8 or 0 < abs(value) < 1e-3:
        digits = min(max(2, decimals + math.floor(math.log10(abs(value) or error))), 8)
        return f"{value:.{digits}e} ± {error:.1e}"
    return f"{value:.{max(decimals, 0)}f} ± {error:.{max(decimals, 0)}f}"


def p_text(p: float) -> str:
    """A p-value for people."""
    return "n/a" if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def p_words(p: float) -> str:
    """A p-value in a sentence: ``p = 0.012``, ``p < 0.001``."""
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def spanned(values: Sequence[int]) -> str:
    """``3``, or ``3 to 5``."""
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def wall_time(seconds: float | None, budget: float | None) -> str:
    """Seconds that a run took, and its budget."""
    return "n/a" if seconds is None else f"{seconds:.1f} s" + (f" of a budget of {budget:g} s" if budget else "")


def readable(text: str) -> str:
    """Text that every file and terminal holds: lone surrogates and control characters become replacement characters."""
    return _UNREADABLE.sub("\N{REPLACEMENT CHARACTER}", text)
