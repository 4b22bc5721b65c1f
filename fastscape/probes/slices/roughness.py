r"""Roughness of losses along lines and planes: variance, variance about a smooth trend, second differences, local minima.

Along a line of losses L over [-A, A],

.. math:: R = \operatorname{Var}_\alpha L, \qquad R_p = \min_{\deg q \le p} \langle (L - q)^2 \rangle_\alpha

with averages over the interval (not over grid points). R is dominated by the bowl: it is :math:`h^2 A^4 / 45` for
:math:`L = h \alpha^2 / 2`, of which nothing is left in R_2. White noise of variance s^2 in the losses gives s^2 times
:meth:`Trend.noise_share`, near 1, in either: a roughness below that floor is not one of the landscape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from fastscape._checks import counted
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import LEVEL, Estimate
from fastscape.numerics.positive import LEAST, UNKNOWN, skewed_mean
from fastscape.numerics.student import quantile

_COUNTS = "Student's t, at least one more or less on the lines that may have been missed"
_EXACT = 4  # degree of the quadrature: the square of a quadratic
RESOLVED = 4.0  # times the noise floor from which a roughness is called one: the floor is known within a factor of about 2


def quadrature(alphas: Array) -> Array:
    r"""Weights of averages over [alphas[0], alphas[-1]], which sum to 1: exact for polynomials of degree 4 on any grid.

    The trapezoidal weights with the least change that makes them exact, so that h alpha^2 / 2 has the variance
    :math:`h^2 A^4 / 45` to rounding; with fewer than 5 points, exact for what an interpolation through them is.

    Args:
        alphas: strictly ascending ``[A]``, A >= 2.

    Raises:
        ValueError: fewer points, or not ascending.
    """
    if alphas.ndim != 1 or len(alphas) < 2 or not np.all(np.diff(alphas) > 0):
        raise ValueError(f"alphas must be at least two ascending numbers, got {alphas.tolist()[:5]}")
    x = _unit(alphas)
    gaps = np.diff(x) / 2  # of an interval of length 2, whose average has weights of sum 1
    weights = np.zeros(len(x))
    weights[:-1] += gaps / 2
    weights[1:] += gaps / 2
    degree = min(_EXACT, len(x) - 1)
    basis = np.polynomial.legendre.legvander(x, degree)
    wanted = np.eye(degree + 1)[0]  # averages of Legendre polynomials over [-1, 1]
    moments = basis.T @ (weights[:, None] * basis)
    return weights + weights * (basis @ np.linalg.solve(moments, wanted - basis.T @ weights))


class Trend:
    """Variance of losses about the best polynomial of a total degree, over a line or a plane.

    Args:
        axes: the grid: ascending coordinates of each dimension.
        order: largest total degree of the polynomial that is taken out; 0 leaves the variance.

    Raises:
        ValueError: an order that leaves no point, or axes that are not ascending.

    Cost: a QR factorisation of cells x terms; applying it, two products of that size per line.
    """

    def __init__(self, axes: Sequence[Array], order: int) -> None:
        weights = np.ones(1)
        for axis in axes:
            weights = np.multiply.outer(weights, quadrature(axis)).reshape(-1)
        degrees = [degree for degree in itertools.product(range(order + 1), repeat=len(axes)) if sum(degree) <= order]
        if any(len(axis) <= order for axis in axes):
            raise ValueError(f"axes must hold more points than order = {order}, got {min(map(len, axes))}")
        parts = [np.polynomial.legendre.legvander(_unit(axis), order) for axis in axes]
        columns = []
        for degree in degrees:
            column = np.ones(1)
            for part, power in zip(parts, degree, strict=True):
                column = np.multiply.outer(column, part[:, power]).reshape(-1)
            columns.append(column)
        self._weights = weights
        self._scale = np.sqrt(np.maximum(weights, 0.0))
        self._basis, _ = np.linalg.qr(self._scale[:, None] * np.stack(columns, axis=1))

    def variance(self, losses: Array) -> Array:
        """Variance about the trend.

        Args:
            losses: ``[n, cells]``, cells in the order of the axes (the last fastest).

        Returns:
            ``[n]``; NaN where a loss is not finite.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            finite = np.isfinite(losses).all(axis=1)
            centred = losses - (losses @ self._weights)[:, None]  # so that a large constant does not cancel
            scaled = self._scale * centred
            for _ in range(2):  # the second pass removes what rounding of the first left
                scaled = scaled - (scaled @ self._basis) @ self._basis.T
            return np.where(finite, np.einsum("nc,nc->n", scaled, scaled), np.nan)

    @property
    def noise_share(self) -> float:
        """Expected variance about the trend of independent noise of variance 1 in every loss."""
        hat = self._basis @ self._basis.T
        rest = (np.eye(len(hat)) - hat) * self._scale
        return float(np.sum(rest**2))


def second_difference_energy(losses: Array, alphas: Array) -> Array:
    r"""Mean square of second divided differences along lines, :math:`\langle (\partial^2 L / \partial \alpha^2)^2 \rangle`.

    It is h^2 for :math:`h \alpha^2 / 2`; noise of variance s^2 gives 6 s^2 / spacing^4.

    Args:
        losses: ``[n, A]``.
        alphas: ascending ``[A]``, A >= 3.

    Returns:
        ``[n]``, squared loss per alpha^4; NaN where a loss is not finite.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        slopes = np.diff(losses, axis=1) / np.diff(alphas)
        curvature = np.diff(slopes, axis=1) / ((alphas[2:] - alphas[:-2]) / 2)
        energy = np.mean(curvature**2, axis=1)
        return np.where(np.isfinite(losses).all(axis=1), energy, np.nan)


def minima(losses: Array, threshold: float = 0.0) -> int:
    """Number of local minima inside a line or plane that are deeper than ``threshold``.

    The depth of a minimum is how far the loss must rise on the way to a lower one (its persistence; the lowest has none above
    it). Minima on the border of the grid are left out: what lies beyond is not known. Losses that are NaN count as walls.

    Args:
        losses: ``[A]`` or ``[A1, A2]``.
        threshold: in units of the loss, such as 4 times its noise.

    Cost: sorting the cells.
    """
    values = np.where(np.isnan(losses), np.inf, losses)
    lowest_near = ndimage.minimum_filter(values, size=3, mode="nearest")
    bottoms = np.argwhere((values == lowest_near) & np.isfinite(values))
    if len(bottoms) < 2:  # a smooth basin, or none: 20 times quicker than joining cells on a 41 x 41 grid
        return sum(_inside(tuple(bottom), values.shape) for bottom in bottoms)
    return _deep(values, threshold, {tuple(map(int, bottom)) for bottom in bottoms})


def _deep(values: Array, threshold: float, bottoms: set[tuple[int, ...]]) -> int:
    """Minima deeper than the threshold: cells join in ascending order (a merge tree) until one basin holds all ``bottoms``."""
    parent: dict[tuple[int, ...], tuple[int, ...]] = {}
    found = basins = 0
    lowest: tuple[int, ...] | None = None

    def root(cell: tuple[int, ...]) -> tuple[int, ...]:
        while parent[cell] != cell:
            parent[cell] = parent[parent[cell]]
            cell = parent[cell]
        return cell

    inside = np.zeros(values.shape, dtype=bool)
    inside[tuple(slice(1, -1) for _ in values.shape)] = True
    order = np.lexsort((inside.reshape(-1), values.reshape(-1)))  # of equals the border first: a plateau that reaches it is open
    steps = [step for step in itertools.product((-1, 0, 1), repeat=values.ndim) if any(step)]
    for flat in order:
        cell = tuple(int(i) for i in np.unravel_index(flat, values.shape))
        if not values[cell] < math.inf:
            break
        if not bottoms and basins == 1:  # every later cell only widens it
            break
        bottoms.discard(cell)
        parent[cell] = cell
        basins += 1
        lowest = cell if lowest is None else lowest
        for step in steps:
            near = tuple(a + b for a, b in zip(cell, step, strict=True))
            if near not in parent:
                continue
            first, second = sorted((root(cell), root(near)), key=lambda c: (values[c], inside[c]))
            if first == second:
                continue
            parent[second] = first  # the basin of the higher minimum ends here
            basins -= 1
            if values[cell] - values[second] > threshold and _inside(second, values.shape):
                found += 1
    return found + int(lowest is not None and _inside(lowest, values.shape))


def mean_estimate(values: Array) -> Estimate:
    """Mean of a non-negative quantity over directions, see :func:`skewed_mean`; values that are not finite are left out.

    ``n`` counts the values used; with fewer than four there is no interval.
    """
    return skewed_mean(values[np.isfinite(values)])


def mean_count(counts: Array) -> Estimate:
    """Mean of a whole number over directions, such as minima, with Student's t interval.

    Where all n are equal their spread is 0 and says nothing: then, and at least, the interval allows for one more or less on
    :math:`1 - 0.025^{1/n}` of the lines, the largest share of others that n lines miss in 2.5 % of the cases. Not below 0.
    """
    number = len(counts)
    mean = float(counts.mean()) if number else math.nan
    if number < LEAST:
        return Estimate(mean, math.nan, UNKNOWN, number, _COUNTS, f"{counted(number, 'direction')}; at least {LEAST}")
    stderr = float(counts.std(ddof=1)) / math.sqrt(number)
    half = max(quantile(number) * stderr, 1 - (0.5 - LEVEL / 200) ** (1 / number))
    return Estimate(mean, stderr, (max(mean - half, 0.0), mean + half), number, _COUNTS)


def _inside(cell: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return all(0 < index < size - 1 for index, size in zip(cell, shape, strict=True))


def _unit(alphas: Array) -> Array:
    """The grid mapped to [-1, 1]."""
    middle, half = (alphas[0] + alphas[-1]) / 2, (alphas[-1] - alphas[0]) / 2
    mapped: Array = (alphas - middle) / half
    return mapped
