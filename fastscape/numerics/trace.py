r"""Traces of a symmetric matrix from quadratic forms of random probes: plain, and deflated by a basis.

For probes v with :math:`E[v v^\top] = I` (signs, :math:`v_i = \pm 1`), :math:`E[v^\top H v] = \mathrm{tr} H` and
:math:`E\|Hv\|^2 = \mathrm{tr} H^2`. With an orthonormal basis Q and :math:`\tilde v = (I - QQ^\top) v`,
:math:`\mathrm{tr} H = \mathrm{tr}(Q^\top H Q) + E[\tilde v^\top H \tilde v]`, whose variance is that of what Q leaves.
Intervals of the trace, which has a sign, are of Student's t over probes; those of squares, variances and ranks are of
:mod:`fastscape.numerics.positive`. The noise of the data is a separate number (:func:`data_stderr`).

Of two estimators of the same trace, the one that happens to have the smaller error must not be picked: its interval is then too
short (81 % of the trace of a spiked matrix, asked 95). Which one is taken is decided before the probes are looked at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from scipy import stats
from torch import Tensor

from fastscape._checks import counted
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate
from fastscape.numerics.gram_schmidt import gram
from fastscape.numerics.positive import UNKNOWN
from fastscape.numerics.student import mean_estimate, quantile

_MOST = 1 << 30  # probes; more are asked for by a target of zero only
_FEW = 10  # probes below which their own spread gives a variance no interval
_LEAST = 3  # with a kurtosis that is known
_JACKKNIFE = "jackknife of the logarithm over probes"
_CHI_SQUARE = "chi-square with the degrees of freedom of the forms' kurtosis"
_MEANINGFUL = 0.5  # |tr H| / tr |H| below which the effective rank of an indefinite matrix says nothing


def hutchinson(forms: Array, exact: float = 0.0) -> Estimate:
    r"""Trace of H from quadratic forms :math:`v_j^\top H v_j` ``[n]``.

    For a deflated estimate, ``exact`` is tr(Q'HQ) and the forms are those of probes without their part in Q, drawn
    independently of Q.

    Returns:
        an :class:`Estimate` in units of the loss over squared parameters, ``n`` probes; variance of the mean is
        :math:`2 (\|H\|_F^2 - \sum_i h_{ii}^2) / n` for signs.

    Source: Hutchinson (1989); Meyer, Musco, Musco & Woodruff, "Hutch++: optimal stochastic trace estimation" (2021).
    """
    return mean_estimate(np.asarray(forms, dtype=np.float64), exact)


def probes_needed(forms: Array, half_width: float) -> int:
    """Probes in all for a 95 % interval of this half-width, from the spread of those there are (at least 2)."""
    spread = float(np.std(forms, ddof=1)) if len(forms) > 1 else math.nan
    if not math.isfinite(spread):
        raise ValueError(f"forms must hold at least 2 finite values, got {len(forms)} with standard deviation {spread}")
    low, high = 1, 2  # low never reaches it: one probe has no interval
    while high < _MOST and not _reaches(high, spread, half_width):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _reaches(middle, spread, half_width) else (middle, high)
    return high


def _reaches(n: int, spread: float, half_width: float) -> bool:
    return quantile(n) * spread <= half_width * math.sqrt(n)


def effective_rank(
    forms: Array, squares: Array, *, exact: float = 0.0, exact_square: float = 0.0, absolute: float | None = None
) -> tuple[Estimate, str | None]:
    r"""Effective rank :math:`(\mathrm{tr} H)^2 / \mathrm{tr} H^2` with a jackknife interval of its logarithm over probes.

    Args:
        forms: v'Hv ``[n]``.
        squares: ||Hv||^2 of the same probes ``[n]``.
        exact: part of tr(H) known from a basis, added to the mean of the forms.
        exact_square: part of tr(H^2) known from a basis.
        absolute: tr |H| (from a quadrature), to tell how much of the trace cancels.

    Returns:
        the :class:`Estimate`, and a flag in words or ``None``: for a positive semidefinite H the number lies in [1, rank]; it
        means little, and its interval is withheld, where the trace is negative or its interval holds zero, or where \|tr H\| is
        below half of tr \|H\|: among the runs whose trace happens to stand above zero the intervals cover 76 %.
    """
    n = len(forms)
    first, second = exact + np.asarray(forms), exact_square + np.asarray(squares)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(np.mean(first) ** 2 / np.mean(second)) if n else math.nan
        relative = math.nan
        if n > 1:
            without = np.log(((first.sum() - first) / (n - 1)) ** 2 / ((second.sum() - second) / (n - 1)))
            relative = math.sqrt((n - 1) / n * float(np.sum((without - without.mean()) ** 2)))
    estimate = _on_logarithm(value, relative, n)
    trace = mean_estimate(np.asarray(forms), exact)
    low, high = trace.interval
    flag = None
    if n and not np.any(second):
        flag = None  # H is zero, and nothing cancels
    elif trace.value < 0:
        flag = "the trace is negative"
    elif low <= 0 <= high:
        flag = "the interval of the trace holds zero"
    elif absolute is not None and abs(trace.value) < _MEANINGFUL * absolute:
        flag = f"|tr H| is {abs(trace.value) / absolute:.2g} of tr |H|"
    if flag:
        estimate = dataclasses.replace(estimate, withheld=f"{flag}: curvature of both signs cancels")
        flag = f"effective rank means little: {flag}, positive and negative curvature cancel; use the Gauss-Newton operator"
    return estimate, flag


def _on_logarithm(value: float, relative: float, n: int) -> Estimate:
    """A positive value with Student's t interval of its logarithm, whose standard error is ``relative``."""
    if not (math.isfinite(relative) and value > 0):
        return Estimate(value, value * relative, UNKNOWN, n, _JACKKNIFE)
    factor = math.exp(min(quantile(n) * relative, 700.0))
    return Estimate(value, value * relative, (value / factor, value * factor), n, _JACKKNIFE)


def directional_variance(forms: Array, kurtosis: float | None = None, square: Estimate | None = None) -> Estimate:
    r"""Variance of v'Hv over probes, :math:`2 (\|H\|_F^2 - \sum_i h_{ii}^2)` for signs, with a chi-square interval.

    For forms of kurtosis kappa the sample variance has the relative variance :math:`(\kappa - (n-3)/(n-1)) / n`; the interval is
    that of a chi-square with :math:`\nu = 2n / (\kappa - (n-3)/(n-1))` degrees of freedom, which is exact for normal forms
    (nu = n - 1). Where the jackknife finds more, that is taken: few probes seldom show the tail of forms that a few eigenvalues
    dominate, so that their own spread alone must not decide. The upper end is at most twice that of tr(H^2).

    Args:
        forms: ``[n]``.
        kurtosis: of a form, where the eigenvalues tell it: :math:`3 + 12 \sum \lambda^4 / (\sum \lambda^2)^2`, 3 to 15.
            Without it 3 is taken, and there is no interval below 10 probes; with it, none below 3.
        square: tr(H^2), of which twice bounds the variance.

    Source: Satterthwaite, "An approximate distribution of estimates of variance components" (1946).
    """
    forms, n = np.asarray(forms, dtype=np.float64), len(forms)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        value = float(np.var(forms, ddof=1)) if n > 1 else math.nan
        heavy = (3.0 if kurtosis is None else kurtosis) - 1
        least = _FEW if kurtosis is None else _LEAST
        if not math.isfinite(value) or n < least:
            return Estimate(value, math.nan, UNKNOWN, n, _CHI_SQUARE, f"{counted(n, 'probe')}; at least {least}")
        if value == 0:
            return Estimate(0.0, 0.0, (0.0, 0.0), n, _CHI_SQUARE)
        without = np.log([np.var(np.delete(forms, i), ddof=1) for i in range(n)])
        jackknife = float((n - 1) / n * np.sum((without - without.mean()) ** 2))
        error = max(jackknife if math.isfinite(jackknife) else 0.0, (heavy + 2 / (n - 1)) / n)
        low, high = value * 2 / error / stats.chi2.ppf([0.975, 0.025], 2 / error)
    if square is not None and math.isfinite(square.interval[1]):
        high = max(min(high, 2 * square.interval[1]), value)
    return Estimate(value, value * math.sqrt(error), (float(low), float(high)), n, _CHI_SQUARE)


def layer_forms(vectors: Tensor, images: Tensor, layers: Mapping[str, slice]) -> Array:
    r"""Forms by layer, :math:`v_l^\top (Hv)_l` ``[L, K]`` in float64, of vectors and products ``[D, K]``.

    Their mean over probes estimates the trace of each parameter's diagonal block; for deflated probes, ``vectors`` are the
    probes g as drawn and ``images`` the products of (I - QQ') g, and the sums over the basis are exact.

    Cost: D K^2 multiplications, without copies.
    """
    return np.diagonal(layer_grams(vectors, images, layers), axis1=1, axis2=2).copy()


def layer_grams(vectors: Tensor, images: Tensor, layers: Mapping[str, slice]) -> Array:
    r"""Products of all pairs by layer, :math:`v_{jl}^\top (Hv_k)_l` ``[L, K, K]`` in float64, of vectors ``[D, K]``."""
    rows, products = vectors.T, images.T.to(vectors.dtype)
    return np.array([gram(rows[:, part], products[:, part]) for part in layers.values()]).reshape(-1, len(rows), len(rows))


def data_stderr(forms: Array, weights: Array) -> float | None:
    r"""Standard error of the trace over the batches of data, from each batch's own forms; ``None`` with one batch.

    For batch traces :math:`T_b` with weights w_b (sum one) and :math:`T = \sum_b w_b T_b`, the ratio estimator's
    :math:`\sqrt{\tfrac{B}{B-1} \sum_b w_b^2 (T_b - T)^2}`; of every squared difference the variance that the probes alone give it
    is subtracted, so that probe noise does not count as data noise.

    Args:
        forms: v'H_b v ``[B, K]``.
        weights: share of each batch ``[B]``.

    Source: Cochran, "Sampling techniques" (1977), chapter 6.
    """
    batches, probes = forms.shape
    if batches < 2 or not probes:
        return None
    share = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    with np.errstate(invalid="ignore"):
        differences = forms - share @ forms
        squares = differences.mean(axis=1) ** 2
        if probes > 1:
            squares = squares - differences.var(axis=1, ddof=1) / probes
        total = float(np.sum(share**2 * squares))
    return math.sqrt(batches / (batches - 1) * max(total, 0.0)) if math.isfinite(total) else math.nan
