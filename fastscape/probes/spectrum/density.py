r"""Spectral density from Gauss quadratures of random probes' spectral measures."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate
from fastscape.numerics.spectra import Density
from fastscape.numerics.student import mean_estimate, quantile

__all__ = ["Density", "density", "negative_mass", "outliers"]

_BRACKETS = "Student's t over probes, widened by the nodes on either side of zero"
_APART = 3.0  # widths between groups of nodes; within uniform, normal and Marchenko-Pastur bulks at most 2 were seen
_ZERO = 1e-6  # Ritz values nearer to zero than this share of the largest count as zero: rounding of float32 products
BAND_NODES = 20  # of a probe, from which there is a band
_MARGIN = 4.0  # widths of the smoothing beyond the outermost nodes


def density(
    nodes: Array,
    weights: Array,
    *,
    width: float | None = None,
    grid: Array | None = None,
    points: int = 400,
    zero: float | None = None,
) -> Density:
    r"""Smoothed spectral density :math:`\rho(t) = \frac1P \sum_{pj} w_{pj} N(t; \theta_{pj}, \sigma^2)` with a band over probes.

    Args:
        nodes: Gauss nodes ``[P, M]``, or ``[M]`` where all probes share them (block quadrature); NaN nodes have weight 0.
        weights: ``[P, M]``, rows sum to one.
        width: sigma; default the range of the nodes over M, or the distance between nodes averaged by their weights where that is
            more: the nodes of a block of P vectors come in groups of P, so that it is that to the P-th next.
        grid: where to evaluate, ascending ``[G]``; default ``points`` values to 4 widths beyond the nodes.
        points: G of the default grid.
        zero: |theta| up to this is not negative; default 1e-6 of the largest.

    Returns:
        :class:`Density`. The band is the pointwise Student t interval of the mean over probes, cut at 0; NaN below 20 nodes,
        where it covered 34 % of the density of a Marchenko-Pastur bulk: the quadratures of all probes are then off in the same
        way, which no spread between them shows. Outliers: see :func:`outliers`.

    Raises:
        ValueError: shapes that do not match, or a width that is not positive.

    Source: Ghorbani, Krishnan & Xiao (2019); Ubaru, Chen & Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos
    quadrature" (2017).
    """
    weights = np.atleast_2d(np.asarray(weights, dtype=np.float64))
    nodes = np.broadcast_to(np.asarray(nodes, dtype=np.float64), weights.shape).copy()
    finite = np.isfinite(nodes) & np.isfinite(weights)
    if not finite.any():
        raise ValueError(f"nodes must hold a finite value, got {nodes.size} that are NaN or inf")
    inner = nodes[finite]
    if width is None:
        width = max(_resolution(nodes, weights), 1e-6 * float(np.abs(inner).max())) or 1.0
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width must be positive and finite, got {width!r}")
    if grid is None:
        grid = np.linspace(inner.min() - _MARGIN * width, inner.max() + _MARGIN * width, points)
    curves = np.stack(
        [_smooth(row[keep], mass[keep], grid, width) for row, mass, keep in zip(nodes, weights, finite, strict=True)]
    )
    values, half = curves.mean(axis=0), np.full(len(grid), math.nan)
    if len(curves) > 1 and finite.sum(axis=1).min() >= BAND_NODES:
        half = quantile(len(curves)) * curves.std(axis=0, ddof=1) / math.sqrt(len(curves))
    return Density(
        nodes=nodes,
        weights=weights,
        grid=grid,
        values=values,
        low=np.maximum(values - half, 0.0),
        high=values + half,
        width=float(width),
        negative_mass=negative_mass(nodes, weights, zero),
        outliers=outliers(nodes, weights, float(width)),
    )


def _resolution(nodes: Array, weights: Array) -> float:
    """Default width of the smoothing."""
    rows, masses, stride = nodes, weights, 1
    if len(nodes) > 1 and _shared(nodes):
        rows, masses, stride = nodes[:1], weights.mean(axis=0, keepdims=True), len(nodes)
    spread, distance = 0.0, []
    for row, mass in zip(rows, masses, strict=True):
        order = np.argsort(row[np.isfinite(row)])
        values, weight = row[np.isfinite(row)][order], mass[np.isfinite(row)][order]
        last = len(values) - 1
        index = np.arange(len(values))
        steps = (values[np.minimum(index + stride, last)] - values[np.maximum(index - stride, 0)]) / 2
        distance.append(float(np.sum(weight * steps)))
        spread = max(spread, float(values[-1] - values[0]))
    return float(max(spread / nodes.shape[1], 2 / math.pi * np.mean(distance)))  # pi / 2: of nodes amid a uniform bulk


def _shared(nodes: Array) -> bool:
    return bool(np.array_equal(nodes, np.broadcast_to(nodes[:1], nodes.shape), equal_nan=True))


def _smooth(nodes: Array, weights: Array, grid: Array, width: float) -> Array:
    steps = (grid[:, None] - nodes) / width
    result: Array = np.exp(-0.5 * steps**2) @ weights / (width * math.sqrt(2 * math.pi))
    return result


def negative_mass(nodes: Array, weights: Array, zero: float | None = None) -> Estimate:
    r"""Share of the eigenvalues below ``-zero``, from the distribution function that the quadratures bracket.

    At node j the spectral distribution lies between :math:`\sum_{i<j} w_i` and :math:`\sum_{i \le j} w_i`; the value interpolates
    their means. The interval is Student's t over probes, widened by the weights of the nodes on either side of zero (P of them
    each for a block of P vectors), and cut to [0, 1]: where most eigenvalues lie within one node of zero it says that their
    sign is not known.

    Args:
        nodes: ``[P, M]``.
        weights: ``[P, M]``.
        zero: default 1e-6 of the largest |node|: Ritz values of a null space are rounding of either sign.

    Source: Karlin & Studden, "Tchebycheff systems" (1966), for the Chebyshev-Markov-Stieltjes inequalities.
    """
    if zero is None:
        zero = _ZERO * float(np.nanmax(np.abs(nodes)))
    stride = len(nodes) if _shared(nodes) else 1
    found = np.array([_below(row, mass, zero, stride) for row, mass in zip(nodes, weights, strict=True)])
    estimate = mean_estimate(found[:, 0])
    low, high = found[:, 1].mean(), found[:, 2].mean()
    bounds = np.clip([np.fmin(estimate.interval[0], low), np.fmax(estimate.interval[1], high)], 0.0, 1.0)
    return dataclasses.replace(estimate, interval=(float(bounds[0]), float(bounds[1])), method=_BRACKETS)


def _below(nodes: Array, weights: Array, zero: float, stride: int) -> tuple[float, float, float]:
    """Mass below ``-zero``: interpolated, at least, and at most; a node within ``zero`` of 0 is a null space and not below."""
    finite = np.isfinite(nodes)
    order = np.argsort(nodes[finite])
    values, mass = nodes[finite][order], weights[finite][order]
    total = np.concatenate([[0.0], np.cumsum(mass)])
    first = int(np.searchsorted(values, -zero))
    null = first < len(values) and values[first] <= zero
    low = float(total[max(first - stride, 0)])
    high = float(total[first if null else min(first + stride, len(values))])
    if null or first in (0, len(values)):
        return float(total[first]), low, high
    return float(np.interp(-zero, values, total[:-1] + mass / 2)), low, high


def outliers(nodes: Array, weights: Array, width: float) -> int:
    """Nodes apart from the bulk; the median over probes that have their own.

    Neighbours that are at most three widths apart belong together; the bulk is the group with the largest weight, and every
    node of another group is an outlier.

    Args:
        nodes: ``[P, M]``.
        weights: ``[P, M]``.
        width: of the smoothing.
    """
    rows = [(nodes[0], weights.mean(axis=0))] if _shared(nodes) else list(zip(nodes, weights, strict=True))
    return int(np.median([_outside(row, mass, width) for row, mass in rows]))


def _outside(nodes: Array, weights: Array, width: float) -> int:
    finite = np.isfinite(nodes)
    order = np.argsort(nodes[finite])
    values, mass = nodes[finite][order], weights[finite][order]
    groups = np.split(np.arange(len(values)), np.flatnonzero(np.diff(values) > _APART * width) + 1)
    bulk = max(groups, key=lambda group: float(mass[group].sum()))
    return len(values) - len(bulk)
