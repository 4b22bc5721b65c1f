r"""Statistics over directions with their influence functions, under any weights of the directions.

With :math:`m_q(k) = \sum_i w_i r_{ki}^q`, the weights :math:`a_k` of a slope (sum a = 0, sum a x = 1) and
:math:`\tau(q) = S[\ln m_q] - q S[\ln m_1]`, direction i has the influence

.. math:: \psi_i(\tau(q)) = \sum_k a_k \Big( \frac{r_{ki}^q}{m_q(k)} - q \frac{r_{ki}}{m_1(k)} \Big), \quad
          \psi_i(\alpha(q)) = \sum_k a_k \Big( \frac{r_{ki}^q (\ln r_{ki} - A_q)}{m_q(k)} - \frac{r_{ki}}{m_1(k)} \Big)

with :math:`A_q` the mean of ln r under :math:`r^q`, and :math:`\psi(f) = q \psi(\alpha) - \psi(\tau)`; a combination of tau(q)
has the same combination of influences, :math:`M_\tau` with the weights :math:`P \tau / (Q M_\tau)`, where P projects off (1, q).

Every statistic maps a :class:`Weighted` sample to its values ``[b]`` and influences ``[b, N]``, one row per set of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastscape.numerics.arrays import Array
from fastscape.probes.multifractal.bootstrap import Ints
from fastscape.probes.multifractal.lines import slope_weights
from fastscape.probes.multifractal.moments import log_sum
from fastscape.probes.multifractal.scalars import off_line

Statistic: TypeAlias = "Callable[[Weighted], tuple[Array, Array]]"


class Sample:
    """One measure over one window of scales, prepared for many sets of weights.

    Args:
        log_r: ln r ``[K, N]``; -inf for a zero, never NaN or +inf.
        x: ln eps ``[K]``.
        q: orders of the moments to resample ``[Q]``, positive where there are zeros.
        floor: smallest r as a share of the sum over all directions; the total is that of the r without it.
    """

    def __init__(self, log_r: Array, x: Array, q: Array, floor: float | None = None) -> None:
        self.q, self.slope, self.width = q, slope_weights(x), float(x[-1] - x[0])
        alive = ~np.isneginf(log_r)
        self.alive = alive.astype(np.float64)
        self.whole = bool(alive.all())
        with np.errstate(all="ignore"):
            self.centre = np.where(alive, log_r, 0.0).sum(axis=1) / alive.sum(axis=1)
        self.offset = np.where(alive, log_r - self.centre[:, None], 0.0)
        self.usable = alive.all(axis=0)
        self.h = np.where(self.usable, self.slope @ self.offset + self.slope @ self.centre, 0.0)
        raised = log_r
        if floor is not None:
            raised = np.maximum(log_r, log_sum(log_r) + np.log(floor))
        powers = q[:, None, None] * raised
        self.top = powers.max(axis=2, initial=-np.inf)
        self.powers = np.exp(powers - self.top[:, :, None])  # [Q, K, N]
        self.logged = self.powers * np.where(np.isneginf(raised), 0.0, raised)
        largest = log_r.max(axis=1)
        self.total, self.total_top = np.exp(log_r - largest[:, None]), largest

    def under(self, counts: Ints) -> Weighted:
        """The sample in which direction i counts ``counts[b, i]`` times."""
        return Weighted(self, counts)


class Weighted:
    """A sample under several sets of weights; what several statistics need is computed once."""

    def __init__(self, sample: Sample, counts: Ints) -> None:
        self.sample, self.counts = sample, counts
        self.weights: Array = counts / counts.shape[1]
        self._known: dict[tuple[str, int], tuple[Array, Array]] = {}

    @cached_property
    def share(self) -> Array:
        """Weight of the directions with a response ``[b, K]``."""
        return self.weights @ self.sample.alive.T

    @cached_property
    def mean(self) -> Array:
        """Mean of ln r, less the centre of the sample ``[b, K]``."""
        result: Array = self.weights @ self.sample.offset.T / self.share
        return result

    @cached_property
    def variance(self) -> Array:
        """Variance of ln r ``[b, K]``."""
        second: Array = self.weights @ (self.sample.offset**2).T / self.share
        return np.maximum(second - self.mean**2, 0.0)

    @cached_property
    def moments(self) -> Array:
        """Mean of r^q, relative to its largest term in the sample ``[b, Q, K]``."""
        return self._means(self.sample.powers)

    @cached_property
    def totals(self) -> Array:
        """Mean of r, relative to its largest in the sample ``[b, K]``."""
        result: Array = self.weights @ self.sample.total.T
        return result

    @cached_property
    def zeta_one(self) -> Array:
        """Slope of ln sum r ``[b]``."""
        result: Array = (np.log(self.totals) + self.sample.total_top) @ self.sample.slope
        return result

    @cached_property
    def tau(self) -> Array:
        """Mass exponents ``[b, Q]``."""
        zeta: Array = (np.log(self.moments) + self.sample.top) @ self.sample.slope
        return zeta - self.sample.q * self.zeta_one[:, None]

    @cached_property
    def mean_log(self) -> Array:
        """A_q, the mean of ln r under r^q ``[b, Q, K]``."""
        return self._means(self.sample.logged) / self.moments

    def _means(self, values: Array) -> Array:
        """Weighted means ``[b, Q, K]`` of values ``[Q, K, N]``."""
        orders, scales, size = values.shape
        result: Array = (self.weights @ values.reshape(orders * scales, size).T).reshape(-1, orders, scales)
        return result

    @cached_property
    def of_total(self) -> Array:
        """Influence of the slope of ln sum r ``[b, N]``."""
        result: Array = (self.sample.slope / self.totals) @ self.sample.total
        return result

    def of_tau(self, weights: Array) -> Array:
        """Influence of the combination sum_q weights[b, q] tau(q) ``[b, N]``."""
        used = np.flatnonzero(weights.any(axis=0))
        coefficients = weights[:, used, None] * self.sample.slope / self.moments[:, used]
        rows = self.sample.powers[used].reshape(-1, self.counts.shape[1])
        result: Array = coefficients.reshape(len(weights), -1) @ rows
        return result - (weights @ self.sample.q)[:, None] * self.of_total

    def tau_at(self, order: int) -> tuple[Array, Array]:
        """Tau at one order."""
        if ("tau", order) not in self._known:
            q, powers = self.sample.q[order], self.sample.powers[order]
            influence = (self.sample.slope / self.moments[:, order]) @ powers - q * self.of_total
            self._known["tau", order] = self.tau[:, order], influence
        return self._known["tau", order]

    def alpha_at(self, order: int) -> tuple[Array, Array]:
        """Alpha at one order."""
        if ("alpha", order) not in self._known:
            sample, mean_log = self.sample, self.mean_log[:, order]
            coefficients = sample.slope / self.moments[:, order]
            influence = coefficients @ sample.logged[order] - (coefficients * mean_log) @ sample.powers[order]
            self._known["alpha", order] = mean_log @ sample.slope - self.zeta_one, influence - self.of_total
        return self._known["alpha", order]

    def of_variances(self, coefficients: Array) -> Array:
        """Influence of sum_k coefficients[b, k] Var(ln r_k) ``[b, N]``."""
        c, m, sample = coefficients / self.share, self.mean, self.sample
        result: Array = c @ sample.offset**2 - 2 * (c * m) @ sample.offset
        return result + self.of_presence(c * (m**2 - self.variance))

    def of_presence(self, coefficients: Array) -> Array:
        """Sum over k of coefficients[b, k] for the directions with a response ``[b, N]``, or ``[b, 1]`` where all have one."""
        return coefficients.sum(axis=1, keepdims=True) if self.sample.whole else coefficients @ self.sample.alive


def c1(found: Weighted) -> tuple[Array, Array]:
    """Slope of the mean of ln r."""
    sample = found.sample
    coefficients = sample.slope / found.share
    influence = coefficients @ sample.offset - found.of_presence(coefficients * found.mean)
    return (found.mean + sample.centre) @ sample.slope, influence


def c2(found: Weighted) -> tuple[Array, Array]:
    """Slope of the variance of ln r."""
    coefficients = np.broadcast_to(found.sample.slope, found.mean.shape)
    return found.variance @ found.sample.slope, found.of_variances(coefficients)


def log_spread_ratio(found: Weighted) -> tuple[Array, Array]:
    """Logarithm of the fine over the coarse standard deviation of ln r, from the line through its logarithm."""
    sample = found.sample
    values = -sample.width / 2 * np.log(found.variance) @ sample.slope
    return values, found.of_variances(-sample.width / 2 * sample.slope / found.variance)


def _exponents(found: Weighted) -> tuple[Array, Array, Array, Array]:
    """Share, mean and variance ``[b, 1]`` of h, and h less its mean ``[b, N]``, zero for directions without one."""
    sample = found.sample
    usable = sample.usable.astype(np.float64)
    share = (found.weights @ usable)[:, None]
    centre = sample.h.sum() / usable.sum()
    offset = np.where(sample.usable, sample.h - centre, 0.0)
    mean = (found.weights @ offset)[:, None] / share
    deviation = (offset - mean) * usable
    variance = np.einsum("bi,bi,bi->b", found.weights, deviation, deviation)[:, None] / share
    return share, mean + centre, variance, deviation


def h_mean(found: Weighted) -> tuple[Array, Array]:
    """Mean over directions of h."""
    share, mean, _, deviation = _exponents(found)
    return mean[:, 0], deviation / share


def h_std(found: Weighted) -> tuple[Array, Array]:
    """Standard deviation over directions of h."""
    share, _, variance, deviation = _exponents(found)
    std = np.sqrt(variance)
    return std[:, 0], (deviation**2 - variance * found.sample.usable) / (2 * std * share)


def m_tau_on(orders: NDArray[np.bool_]) -> Statistic:
    """M_tau on some of the sample's orders, a mask ``[Q]``."""

    def m_tau(found: Weighted) -> tuple[Array, Array]:
        residual = found.tau[:, orders] @ off_line(found.sample.q[orders])
        value = np.sqrt(np.mean(residual**2, axis=1))
        weights = np.zeros_like(found.tau)
        weights[:, orders] = residual / (orders.sum() * np.maximum(value, np.finfo(float).tiny))[:, None]
        return value, found.of_tau(weights)

    return m_tau


def tau_at(order: int) -> Statistic:
    """Tau at the sample's order of this index."""
    return lambda found: found.tau_at(order)


def alpha_at(order: int) -> Statistic:
    """Alpha at the sample's order of this index."""
    return lambda found: found.alpha_at(order)


def f_at(order: int) -> Statistic:
    """F = q alpha - tau at the sample's order of this index."""

    def f(found: Weighted) -> tuple[Array, Array]:
        (alpha, of_alpha), (tau, of_tau) = found.alpha_at(order), found.tau_at(order)
        q = found.sample.q[order]
        return q * alpha - tau, q * of_alpha - of_tau

    return f


def alpha_between(first: int, last: int) -> Statistic:
    """Alpha at one of the sample's orders less alpha at another."""

    def width(found: Weighted) -> tuple[Array, Array]:
        (low, of_low), (high, of_high) = found.alpha_at(first), found.alpha_at(last)
        return low - high, of_low - of_high

    return width
