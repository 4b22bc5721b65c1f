r"""Scalars that summarise tau(q): M_tau and its companions."""

from __future__ import annotations

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.probes.multifractal.exponents import Exponents

AUTHORS_Q = np.array([-3, -2, -1.5, -1, -0.5, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4])
MIN_DIRECTIONS = 10.0  # a moment carried by fewer is biased by more than about 10 %


def m_tau(tau: Array, q: Array) -> Array:
    r"""Moment-scaling variability, RMS deviation of tau from its straight line over the grid.

    .. math:: M_\tau = \Big( \tfrac1Q \sum_q (\tau(q) - a - b q)^2 \Big)^{1/2}

    with (a, b) the unweighted least squares line over the grid. Zero if and only if tau is linear on it.

    Args:
        tau: ``[..., Q]``.
        q: at least three orders ``[Q]``.

    Returns:
        ``[...]``. Source: Török & Bartha.
    """
    if len(q) < 3:
        return np.full(tau.shape[:-1], np.nan)
    basis = _line_basis(q)
    with np.errstate(invalid="ignore"):
        residual = tau - (tau @ basis) @ basis.T
        result: Array = np.sqrt(np.mean(residual**2, axis=-1))
    return result


def off_line(q: Array) -> Array:
    """Projector ``[Q, Q]`` off the straight lines in q: M_tau is the RMS of its product with tau."""
    basis = _line_basis(q)
    return np.eye(len(q)) - basis @ basis.T


def _line_basis(q: Array) -> Array:
    basis, _ = np.linalg.qr(np.stack([np.ones_like(q), q], axis=1))
    return basis


def kappa(q: Array) -> float:
    """M_tau of the function q^2 on a grid: M_tau of c (q^2 - q) is abs(c) kappa."""
    return float(m_tau(q**2, q))


def spectrum_scalars(spectrum: Exponents, tau_local: Array) -> dict[str, float]:
    """The scalars of one spectrum; orders q = 0 are left out of the fits.

    Args:
        spectrum: exponents.
        tau_local: local slopes of ln Z_q ``[K - 1, Q]``.

    Returns:
        ``m_tau``; ``m_tau_pos`` on q > 0; ``lambda_tau`` = M_tau / kappa (free of the grid); ``m_tau_valid`` and
        ``lambda_tau_valid`` on the orders whose moments are carried by at least 10 directions; ``alpha_width`` =
        alpha(q_min) - alpha(q_max); ``alpha_std_q``; ``f_width``; ``local_tau_curvature`` = mean absolute second difference
        of the local slopes along scales; ``tau_sign_changes`` along q.
    """
    q, tau = spectrum.q, spectrum.tau
    grid, positive = q != 0, q > 0
    valid = grid & (spectrum.n_eff >= MIN_DIRECTIONS)
    curvature = np.abs(np.diff(tau_local, n=2, axis=0)) if len(tau_local) > 2 else np.empty((0, len(q)))
    clear = tau[np.abs(tau) > 1e-12]
    value, value_valid = float(m_tau(tau[grid], q[grid])), float(m_tau(tau[valid], q[valid]))
    return {
        "m_tau": value,
        "m_tau_pos": float(m_tau(tau[positive], q[positive])),
        "lambda_tau": value / kappa(q[grid]),
        "m_tau_valid": value_valid,
        "lambda_tau_valid": value_valid / kappa(q[valid]) if valid.sum() >= 3 else float("nan"),
        "alpha_width": float(spectrum.alpha[np.argmin(q)] - spectrum.alpha[np.argmax(q)]),
        "alpha_std_q": float(np.std(spectrum.alpha[grid])),
        "f_width": float(np.ptp(spectrum.f)),
        "local_tau_curvature": float(np.mean(curvature)) if curvature.size else float("nan"),
        "tau_sign_changes": float(np.count_nonzero(np.diff(np.sign(clear)))),
    }
