r"""Straight lines through log-log points: the slope operator S of every exponent, and local slopes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastscape.numerics.arrays import Array


@dataclass(frozen=True)
class Line:
    """Least-squares lines, one per trailing index of the data.

    Attributes:
        slope, intercept: coefficients.
        stderr: OLS standard error of the slope, sqrt(SSR / (n - 2) / Sxx). A measure of fit only: scales share their
            directions, so it underestimates the sampling deviation 3 to 4 times.
        r2: 1 - SSR / SST; NaN where the data are constant (a perfectly common scaling has no R^2).
    """

    slope: Array
    intercept: Array
    stderr: Array
    r2: Array


def slope_weights(x: Array) -> Array:
    """Coefficients a of the unweighted slope S[y] = sum_k a_k y_k ``[K]``: sum a = 0 and sum a x = 1."""
    centred: Array = x - x.mean()
    return centred / (centred @ centred)


def slope(x: Array, y: Array, weights: Array | None = None) -> Array:
    r"""S[Y] = sum_k w_k (x_k - xbar)(Y_k - Ybar) / sum_k w_k (x_k - xbar)^2 along axis 0 of ``y`` ``[K, ...]``."""
    w = np.ones_like(x) if weights is None else weights
    centred = x - np.average(x, weights=w)
    with np.errstate(invalid="ignore", over="ignore"):
        result: Array = np.tensordot(w * centred / np.sum(w * centred**2), y - y[:1], axes=(0, 0))
    return result


def fit_line(x: Array, y: Array, weights: Array | None = None) -> Line:
    """Fit ``y[k, ...] = intercept + slope x[k]`` along axis 0.

    Args:
        x: abscissae ``[K]``.
        y: ordinates ``[K, ...]``.
        weights: optional positive weights ``[K]``, the same for every trailing index.
    """
    w = np.ones_like(x) if weights is None else weights
    b = slope(x, y, weights)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = np.average(y, axis=0, weights=w)
        x_mean = np.average(x, weights=w)
        shape = (-1,) + (1,) * (y.ndim - 1)
        wide, xs = w.reshape(shape), (x - x_mean).reshape(shape)
        residual = np.sum(wide * (y - mean - b * xs) ** 2, axis=0)
        total = np.sum(wide * (y - mean) ** 2, axis=0)
        stderr = np.sqrt(residual / (len(x) - 2) / np.sum(w * (x - x_mean) ** 2)) if len(x) > 2 else np.full_like(b, np.nan)
        r2 = np.where(total <= 1e-24 * np.maximum(1.0, mean**2), np.nan, 1 - residual / total)
    return Line(slope=b, intercept=mean - b * x_mean, stderr=stderr, r2=r2)


def local_slopes(x: Array, y: Array) -> Array:
    """Slopes between neighbouring scales, ``[K - 1, ...]``, at the geometric means of the radii."""
    steps = np.diff(x).reshape((-1,) + (1,) * (y.ndim - 1))
    with np.errstate(invalid="ignore"):
        result: Array = np.diff(y, axis=0) / steps
    return result
