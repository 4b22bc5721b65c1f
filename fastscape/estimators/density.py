r"""Spectral density from Gauss quadratures of random probes' spectral measures."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from fastscape.estimators.intervals import Estimate
from fastscape.estimators.scaling import Array
from fastscape.estimators.spectra import Density
from fastscape.estimators.trace import mean_estimate

__all__ = ["Density", "bulk_edges", "density", "negative_mass"]

_BULK = 6.0  # standard deviations: a Marchenko-Pastur bulk ends within 2 + sqrt(gamma) of them, a semicircle within 2
_ZERO = 1e-6  # Ritz values nearer to zero than this share of the largest count as zero: rounding of float32 products
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
        width: sigma; default the range of the nodes over the number that one probe has, what M nodes can tell apart.
        grid: where to evaluate, ascending ``[G]``; default ``points`` values to 4 widths beyond the nodes.
        points: G of the default grid.
        zero: |theta| up to this is not negative; default 1e-6 of the largest.

    Returns:
        :class:`Density`. The band is the pointwise Student t interval of the mean over probes, cut at 0. Outliers are the nodes
        further than six standard deviations from the mean of the bulk, the bulk being what remains without them.

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
    spread = float(inner.max() - inner.min())
    if width is None:
        scale = float(np.abs(inner).max())
        width = max(spread / nodes.shape[1], 1e-6 * scale) or 1.0
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width must be positive and finite, got {width!r}")
    if grid is None:
        grid = np.linspace(inner.min() - _MARGIN * width, inner.max() + _MARGIN * width, points)
    curves = np.stack(
        [_smooth(row[keep], mass[keep], grid, width) for row, mass, keep in zip(nodes, weights, finite, strict=True)]
    )
    values, half = curves.mean(axis=0), np.full(len(grid), math.nan)
    if len(curves) > 1:
        half = float(stats.t.ppf(0.975, len(curves) - 1)) * curves.std(axis=0, ddof=1) / math.sqrt(len(curves))
    below, above = bulk_edges(nodes, weights)
    return Density(
        nodes=nodes,
        weights=weights,
        grid=grid,
        values=values,
        low=np.maximum(values - half, 0.0),
        high=values + half,
        width=float(width),
        negative_mass=negative_mass(nodes, weights, zero),
        outliers=_count_outside(nodes, below, above),
    )


def _smooth(nodes: Array, weights: Array, grid: Array, width: float) -> Array:
    steps = (grid[:, None] - nodes) / width
    result: Array = np.exp(-0.5 * steps**2) @ weights / (width * math.sqrt(2 * math.pi))
    return result


def negative_mass(nodes: Array, weights: Array, zero: float | None = None) -> Estimate:
    """Share of the eigenvalues below ``-zero``, with Student's t interval over probes, cut to [0, 1].

    Args:
        nodes: ``[P, M]``.
        weights: ``[P, M]``.
        zero: default 1e-6 of the largest |node|: Ritz values of a null space are rounding of either sign.
    """
    if zero is None:
        zero = _ZERO * float(np.nanmax(np.abs(nodes)))
    masses = np.sum(np.where(nodes < -zero, weights, 0.0), axis=1)
    estimate = mean_estimate(masses)
    low, high = (float(np.clip(bound, 0.0, 1.0)) for bound in estimate.interval)
    return Estimate(estimate.value, estimate.stderr, (low, high), estimate.n)


def bulk_edges(nodes: Array, weights: Array) -> tuple[float, float]:
    """Mean of the bulk minus and plus six of its standard deviations.

    The bulk is what remains when nodes beyond the edges are left out, repeated until no more are.
    """
    finite = np.isfinite(nodes) & (weights > 0)
    values, mass = nodes[finite], weights[finite]
    inside = np.ones(len(values), dtype=bool)
    while True:
        centre = float(np.average(values[inside], weights=mass[inside]))
        spread = math.sqrt(float(np.average((values[inside] - centre) ** 2, weights=mass[inside])))
        low, high = centre - _BULK * spread, centre + _BULK * spread
        rounding = 1e-9 * float(np.abs(values).max())  # a bulk of one repeated eigenvalue has no spread of its own
        kept = inside & (values >= low - rounding) & (values <= high + rounding)
        if np.array_equal(kept, inside):
            return low - rounding, high + rounding
        inside = kept


def _count_outside(nodes: Array, low: float, high: float) -> int:
    """Nodes outside the bulk: of a shared quadrature as they are, else the median over probes."""
    counts = np.sum((nodes < low) | (nodes > high), axis=1)
    return int(np.median(counts))
