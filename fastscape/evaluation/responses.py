"""Even and odd finite-scale responses of the loss, with their noise."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fastscape.directions import Directions
from fastscape.evaluation.evaluator import Evaluator, PathChoice, PathName
from fastscape.evaluation.losses import Precision, checked_dtype, checked_radii
from fastscape.evaluation.noise import noise_float64, passes_gate, second_difference, signed_radii
from fastscape.objective import Objective

CALIBRATION = 4  # directions evaluated in float64 as well, to measure the noise of a lower precision


class PrecisionWarning(UserWarning):
    """Some of the requested scales are rounding noise in the requested precision."""


@dataclass(frozen=True)
class Responses:
    r"""Responses of a loss to symmetric perturbations, arrays ``[K radii, N directions]`` in float64.

    Attributes:
        even: :math:`\Delta_2 = L(w + \epsilon d) - 2 L(w) + L(w - \epsilon d)`, signed.
        odd: :math:`\Delta_1 = (L(w + \epsilon d) - L(w - \epsilon d)) / 2`.
        base: L(w).
        radii: the radii as given, ``[K]``.
        eps_abs: distances in parameter space, ``radii * ||d||`` (its mean over directions under ``scale="none"``).
        eps_rel: ``eps_abs / ||w||``.
        weight_norm: ||w||.
        noise: RMS rounding error of ``even`` at each radius, ``[K]``.
        trusted: radii where at least 90 % of the directions stand 10 times above the noise, ``[K]`` bool.
        precision: arithmetic of the forward passes.
        narrow: an operation of the model that is narrower than float64 and sets the noise; empty if none.
        path: the evaluation path, its measured alternatives and the reason.
        evaluations: loss evaluations done, calibration included.
        seconds: wall time.
    """

    even: NDArray[np.float64]
    odd: NDArray[np.float64]
    base: float
    radii: NDArray[np.float64]
    eps_abs: NDArray[np.float64]
    eps_rel: NDArray[np.float64]
    weight_norm: float
    noise: NDArray[np.float64]
    trusted: NDArray[np.bool_]
    precision: str
    narrow: str
    path: PathChoice
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Noise:
    """Rounding noise of a set of scales.

    Attributes:
        sigma: RMS error of the even responses ``[K]``.
        calibrated: the gate's verdict on even and on odd responses ``[2, K]``, where measured against float64.
        narrow: the operation inside a float64 model that is narrower; empty if none.
        evaluations: done in float64 for the calibration.
    """

    sigma: NDArray[np.float64]
    calibrated: NDArray[np.bool_] | None
    narrow: str
    evaluations: int

    def trusted(self, even: NDArray[np.float64]) -> NDArray[np.bool_]:
        """The gate's verdict per scale: from the calibration, or else from the even responses ``[K, N]`` themselves."""
        return self.calibrated[0] if self.calibrated is not None else passes_gate(even, self.sigma)


def measure_noise(evaluator: Evaluator, directions: Directions, radii: NDArray[np.float64]) -> Noise:
    """Noise of the evaluator's precision at each radius.

    float64: a model and a measured floor, the same at every radius. Lower precisions: RMS difference from float64 over
    the first four directions, evaluated in both.
    """
    indices = range(min(CALIBRATION, len(directions)))
    if evaluator.dtype == torch.float64:
        sigma, narrow = noise_float64(evaluator, directions, indices)
        return Noise(np.full(len(radii), sigma), None, narrow, 0)
    points = signed_radii(radii)
    measured = second_difference(evaluator.losses(directions, indices, points))
    with Evaluator(evaluator.objective, torch.float64, path="loop", gate=False) as exact:
        reference = second_difference(exact.losses(directions, indices, points))
        evaluations = exact.evaluations
    with np.errstate(invalid="ignore", over="ignore"):
        errors = [np.sqrt(np.mean((measured[part] - reference[part]) ** 2, axis=1)) for part in (0, 1)]
    verdicts = np.stack([passes_gate(reference[part], errors[part]) for part in (0, 1)])
    return Noise(errors[0], verdicts, "", evaluations)


def warn_if_noise(precision: str, radii: NDArray[np.float64], trusted: NDArray[np.bool_]) -> None:
    """Warn about the radii that a precision below float64 cannot resolve."""
    if precision != "float64" and not trusted.all():
        lost = radii[~trusted]
        warnings.warn(
            f"precision={precision!r}: {len(lost)} of {len(radii)} radii ({lost.min():.1e} .. {lost.max():.1e}) are rounding "
            "noise on this model; use precision='float64'",
            PrecisionWarning,
            stacklevel=3,  # the caller of fs.responses
        )


def responses(
    objective: Objective,
    directions: Directions,
    radii: ArrayLike,
    *,
    precision: Precision | None = None,
    path: PathName | None = None,
    memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Responses:
    r"""Even and odd responses of the loss along every direction at every radius.

    .. math:: \Delta_2 = L(w + \epsilon d) - 2 L(w) + L(w - \epsilon d), \qquad
              \Delta_1 = \tfrac12 \left( L(w + \epsilon d) - L(w - \epsilon d) \right)

    As :math:`\epsilon \to 0`, :math:`\Delta_2 / \epsilon^2 \to d^T H d` and :math:`\Delta_1 / \epsilon \to g^T d`
    (below the first kink, for piecewise linear networks).

    Args:
        objective: the loss L.
        directions: N directions d.
        radii: K positive, strictly ascending radii, in units of ``||d||``.
        precision: ``"float64"`` (default) or ``"float32"``. float32 is rounding noise over most radii of interest; its
            noise is measured on four directions against float64, and untrusted radii are named in a warning.
        path: ``"loop"``, ``"vmap"``, or ``None`` for the one that measures faster on this model.
        memory: bytes that batched evaluation may take.
        progress: called with (directions done, N).

    Returns:
        A :class:`Responses`; NaN and inf are kept.

    Raises:
        ValueError: bad radii, precision or path.
        NondeterministicLossError: two evaluations at w differ.

    Warns:
        PrecisionWarning: radii that the precision cannot resolve.

    Cost: 2 K N forwards over the data (batched path: (2 K + 1) N), and one copy of the probed parameters.

    Source: the even response is the quantity that Török & Bartha's multifractal probe analyses.
    """
    steps = checked_radii(radii)
    name = precision or "float64"
    dtype = checked_dtype(name)
    start = time.perf_counter()
    points = signed_radii(steps)
    columns: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]] = []
    with Evaluator(objective, dtype, path=path, memory=memory) as evaluator:
        choice = evaluator.prepare(directions, points)
        for indices in blocks(len(directions), choice.chunk):
            columns.append(second_difference(evaluator.losses(directions, indices, points)))
            if progress is not None:
                progress(indices[-1] + 1, len(directions))
        noise = measure_noise(evaluator, directions, steps)
        evaluations = evaluator.evaluations + noise.evaluations
        norms = [directions.length(index) for index in range(len(directions))] if directions.scale == "none" else []
    even, odd = (np.concatenate([column[part] for column in columns], axis=1) for part in (0, 1))
    trusted = noise.trusted(even)
    warn_if_noise(name, steps, trusted)
    length = float(np.mean(norms)) if norms else {"unit": 1.0, "relative": directions.weight_norm}[directions.scale]
    eps_abs, weight_norm = steps * length, objective.norm
    return Responses(
        even=even,
        odd=odd,
        base=float(columns[0][2][0]),
        radii=steps,
        eps_abs=eps_abs,
        eps_rel=relative(eps_abs, weight_norm),
        weight_norm=weight_norm,
        noise=noise.sigma,
        trusted=trusted,
        precision=name,
        narrow=noise.narrow,
        path=choice,
        evaluations=evaluations,
        seconds=time.perf_counter() - start,
    )


def relative(eps_abs: NDArray[np.float64], weight_norm: float) -> NDArray[np.float64]:
    """Distances relative to ||w||; NaN where all weights are zero."""
    with np.errstate(invalid="ignore"):
        return eps_abs / weight_norm if weight_norm else np.full(len(eps_abs), np.nan)


def blocks(count: int, size: int) -> list[Sequence[int]]:
    """Consecutive index ranges of at most ``size`` that cover ``count``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
