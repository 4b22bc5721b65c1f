r"""The largest of many means over the same samples, with an interval that knows that it was looked for.

The maximum over a path is found at the point where the *estimated* mean is largest, so the error of that one point says too
little. Here all points share one band,

.. math:: m_p \in \hat m_p \pm c\, \hat\sigma_p \quad \text{for all } p \text{ at once, with probability } 95\,\%,

whose maximum bounds the maximum of the true means, whichever point it is at. c is the quantile of
:math:`\max_p |Z_p| / \hat\sigma_p` for Z of the covariance of the samples' own residuals (over the square root of an independent
:math:`\chi^2_{n-1}/(n-1)`), so that points with nearly equal losses count once, not many times: 1.96 for one point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import LEVEL, Estimate

_DRAWS = 4000  # of the supremum: its 95 % quantile is then known to about 1 %
_METHOD = "simultaneous band over the points of the path"
_RANK = 1e-12  # share of the largest eigenvalue of the correlations below which they are rounding


@dataclass(frozen=True)
class Band:
    """Means of P quantities with a simultaneous 95 % band.

    Attributes:
        values: means ``[P]``.
        stderr: of each alone ``[P]``; NaN where it is not known.
        critical: c, half-widths in standard errors; NaN where no point has one.
        n: samples.
    """

    values: Array
    stderr: Array
    critical: float
    n: int

    @property
    def low(self) -> Array:
        """Lower ends ``[P]``."""
        return self.values - self._half()

    @property
    def high(self) -> Array:
        """Upper ends ``[P]``."""
        return self.values + self._half()

    def _half(self) -> Array:
        half: Array = np.where(self.stderr == 0, 0.0, self.critical * self.stderr)  # exact values have no error, whatever c is
        return half


def band(values: Array, parts: Array | None, weights: Array, *, seed: int = 0) -> Band:
    """A simultaneous band around weighted means of the same samples.

    Args:
        values: the means ``[P]``.
        parts: what samples contribute ``[P, N]``; ``None`` where it is not known, which leaves NaN.
        weights: of the samples ``[N]``; 0 leaves one out.
        seed: of the draws.

    Returns:
        the band; points that are not finite have no standard error and do not widen the others.

    Cost: P^2 N, and 4000 P^2 for the draws.

    Source: Gaussian multiplier bootstrap of a maximum: Chernozhukov, Chetverikov & Kato (2013), with residuals of weighted means.
    """
    used = weights > 0
    n = int(used.sum())
    nothing = np.full(len(values), np.nan)
    if parts is None or n < 2:
        return Band(values, nothing, math.nan, n)
    share = weights[used] / weights[used].sum()
    kept = parts[:, used]
    known = np.isfinite(kept).all(axis=1) & np.isfinite(values)
    residuals = share * (kept[known] - (kept[known] @ share)[:, None])
    stderr = nothing.copy()
    stderr[known] = np.sqrt(n / (n - 1) * np.einsum("pn,pn->p", residuals, residuals))
    moving = stderr[known] > 0
    if not moving.any():
        return Band(values, stderr, math.nan, n)
    scaled = residuals[moving] / np.linalg.norm(residuals[moving], axis=1, keepdims=True)
    roots, vectors = np.linalg.eigh(scaled @ scaled.T)  # correlations of the means
    strong = roots > _RANK * roots[-1]
    factor = vectors[:, strong] * np.sqrt(roots[strong])
    rng = np.random.default_rng(seed)
    draws = np.abs(rng.standard_normal((_DRAWS, factor.shape[1])) @ factor.T).max(axis=1)
    draws /= np.sqrt(rng.chisquare(n - 1, _DRAWS) / (n - 1))
    return Band(values, stderr, float(np.quantile(draws, LEVEL / 100)), n)


def maximum(found: Band, least: float = -math.inf) -> tuple[Estimate, int]:
    """The largest of the means, and where it is; NaN means are left out.

    Args:
        found: a band.
        least: a value that the maximum is known to reach; the interval is cut there.
    """
    usable = ~np.isnan(found.values)
    if not usable.any():
        return Estimate(math.nan, math.nan, (math.nan, math.nan), found.n), 0
    place = int(np.argmax(np.where(usable, found.values, -np.inf)))
    value, stderr = float(found.values[place]), float(found.stderr[place])
    low, high = found.low[usable], found.high[usable]
    ends = (math.nan, math.nan) if math.isnan(stderr) else (max(float(np.nanmax(low)), least), float(np.nanmax(high)))
    return Estimate(value, stderr, ends, found.n, _METHOD), place


def largest_of_lesser(found: Band) -> Estimate:
    """Max over p of min(first_p, second_p), for a band of all first quantities followed by all second ones ``[2 P]``.

    The function rises with every argument, so the band's ends give the interval's. It is cut at 0, which it cannot be below
    where one of the two is zero at each end.
    """
    values, stderr = found.values.reshape(2, -1), found.stderr.reshape(2, -1)
    lesser = values.min(axis=0)  # NaN where one is
    if np.isnan(lesser).all():
        return Estimate(math.nan, math.nan, (math.nan, math.nan), found.n)
    place = int(np.nanargmax(lesser))
    which = int(np.argmin(values[:, place]))
    error = float(stderr[which, place])
    if math.isnan(error):
        return Estimate(float(lesser[place]), math.nan, (math.nan, math.nan), found.n)
    low, high = (float(np.nanmax(ends.reshape(2, -1).min(axis=0))) for ends in (found.low, found.high))
    return Estimate(float(lesser[place]), error, (max(0.0, low), max(0.0, high)), found.n, _METHOD)
