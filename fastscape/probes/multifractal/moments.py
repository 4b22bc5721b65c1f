r"""Moments of a measure over directions, in the log domain.

At every scale the responses r_i of the directions are normalised to a measure :math:`p_i = r_i / \sum_j r_j`. Its
moments are computed from ln r by log-sum-exp: :math:`|q| \cdot \mathrm{range}(\ln p)` can exceed 700, where
``p ** q`` overflows, and a floor under p would change the measure.

Zeros: a direction without response has ln r = -inf. It carries no mass for q > 0, and no moment exists for q <= 0,
which is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastscape.numerics.arrays import Array


def log_sum(values: Array) -> Array:
    """Ln sum exp of ``values`` along the last axis, kept; -inf for nothing but -inf, NaN kept.

    SciPy's does the same for arrays of every library, and takes longer to find out which than to add up a few hundred numbers.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        top = values.max(axis=-1, keepdims=True, initial=-np.inf)
        top = np.where(np.isfinite(top), top, 0.0)
        result: Array = np.log(np.sum(np.exp(values - top), axis=-1, keepdims=True)) + top
    return result


@dataclass(frozen=True)
class Moments:
    r"""Moments at every scale, arrays ``[K scales, Q orders]``.

    Attributes:
        log_z: :math:`\ln Z_q = \ln \sum_i p_i^q`, the log partition function.
        mean_log: :math:`A = \sum_i \mu_i \ln p_i` with :math:`\mu_i = p_i^q / Z_q` (Chhabra-Jensen).
        entropy: :math:`F = \sum_i \mu_i \ln \mu_i = q A - \ln Z_q`.
        n_eff: :math:`1 / \sum_i \mu_i^2 = Z_q^2 / Z_{2q}`, how many directions carry the moment.
    """

    log_z: Array
    mean_log: Array
    entropy: Array
    n_eff: Array


def log_magnitude(response: Array) -> Array:
    """Ln |response|, -inf for a zero, NaN kept."""
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Array = np.log(np.abs(response))
    return result


def log_measure(log_r: Array, floor: float | None = None) -> Array:
    """Ln p_i = ln r_i - ln sum_j r_j along the last axis; ``floor`` clips p from below without renormalising."""
    with np.errstate(invalid="ignore"):
        log_p: Array = log_r - log_sum(log_r)
    return log_p if floor is None else np.maximum(log_p, np.log(floor))


def moments(log_p: Array | Sequence[Array], q: Array) -> Moments:
    """Moments of the measures ``log_p[k]``.

    Args:
        log_p: log measure ``[K, N]``, or a list of K vectors of different lengths (box counting).
        q: orders ``[Q]``.
    """
    rows = [_moments_at(np.asarray(row, dtype=np.float64), q) for row in log_p]
    log_z, mean_log, entropy, n_eff = (np.stack(part) for part in zip(*rows, strict=True))
    return Moments(log_z, mean_log, entropy, n_eff)


def _moments_at(log_p: Array, q: Array) -> tuple[Array, Array, Array, Array]:
    massive = log_p > -np.inf
    massive |= np.isnan(log_p)
    finite = log_p[massive]
    powers = q[:, None] * finite  # [Q, N]
    with np.errstate(invalid="ignore"):
        log_z = log_sum(powers)[:, 0]
        log_mu = powers - log_z[:, None]
        mu = np.exp(log_mu)
        mean_log = np.sum(mu * finite, axis=1)
        entropy = np.sum(mu * log_mu, axis=1)
        n_eff = np.exp(-log_sum(2 * log_mu)[:, 0])
    if not massive.all():
        undefined = q <= 0
        for part in (log_z, mean_log, entropy, n_eff):
            part[undefined] = np.nan
    return log_z, mean_log, entropy, n_eff
