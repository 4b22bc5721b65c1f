r"""Refinement of the maximum of a function of one variable: bisection of the interval that may hide the most."""

from __future__ import annotations

import math

import numpy as np

from fastscape.numerics.arrays import Array

_SAFETY = 2.0  # of the curvature seen: it may be larger between the points
_NARROW = 1e-6  # of the whole range: intervals that are not divided further


def coarse_to_fine(points: int) -> list[float]:
    """``points`` equidistant numbers in [0, 1] with both ends, in an order whose every beginning is spread out: 0, 1, 1/2 ..."""
    order, width = [0, points - 1], points - 1
    while len(order) < points:
        width = max(1, width // 2)
        order += [index for index in range(0, points, width) if index not in order]
    return [index / (points - 1) for index in order]


def peaks(x: Array, f: Array) -> Array:
    r"""Largest value that f may reach within each interval ``[P - 1]``.

    The parabola over the chord of the interval with the larger downward curvature M of the two divided differences that contain
    it, times a safety factor of 2: :math:`\max_u f_0 + (f_1 - f_0) u / h + \tfrac{M}{2} u (h - u)`, exact for a parabola of
    that M. Intervals with an end that is not finite have -inf.

    Args:
        x: ascending ``[P]``.
        f: values ``[P]``.
    """
    width = np.diff(x)
    with np.errstate(invalid="ignore", over="ignore"):
        slope = np.diff(f) / width
        bend = 2 * np.diff(slope) / (width[1:] + width[:-1])  # second derivatives at the inner points
    down = np.maximum(0.0, -np.where(np.isfinite(bend), bend, 0.0))
    curvature = _SAFETY * np.maximum(np.append(down, 0.0), np.insert(down, 0, 0.0))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        place = np.clip(width / 2 + np.where(curvature > 0, slope / curvature, np.inf * np.sign(slope)), 0.0, width)
        place = np.where(np.isfinite(place), place, 0.0)
        top = f[:-1] + slope * place + curvature / 2 * place * (width - place)
    usable = np.isfinite(f[:-1]) & np.isfinite(f[1:]) & (width > _NARROW * (x[-1] - x[0]))
    found: Array = np.where(usable, np.fmax(top, np.fmax(f[:-1], f[1:])), -math.inf)
    return found


def refine(x: Array, functions: tuple[Array, ...]) -> tuple[float, float]:
    """The midpoint of the interval in which one of the functions may exceed its largest value by most, and by how much.

    Args:
        x: ascending ``[P]``.
        functions: values ``[P]`` each; NaN allowed.

    Returns:
        the midpoint and the excess, 0 where nothing is left to find (or a value is infinite).
    """
    best = (math.nan, 0.0)
    for f in functions:
        known = f[~np.isnan(f)]
        if not len(known) or not math.isfinite(known.max()):
            continue
        excess = peaks(x, f) - known.max()
        widest = int(np.argmax(excess))
        if excess[widest] > best[1]:
            best = float((x[widest] + x[widest + 1]) / 2), float(excess[widest])
    return best
