"""Responses that stand out of those that rounding was measured on, as beside a pole: held against float64 themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from fastscape._checks import counted
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.directions import Directions
from fastscape.evaluation.evaluator import Evaluator
from fastscape.evaluation.noise import known_from_zero, neighbouring_noise
from fastscape.evaluation.points import Array
from fastscape.response.precision import CALIBRATION, DIFFERENCES, SAFETY, Noise, exact_evaluator

_MOST = 2  # responses at a radius that are evaluated once more
_OUTLIER = 3.0  # times the RMS response of the directions that the error was measured on

Place = tuple[int, int]  # index of a radius, and of a direction
Errors = dict[Place, tuple[float, float]]  # of the even and of the odd response there


def with_largest(
    noise: Noise, evaluator: Evaluator | DifferenceEvaluator, directions: Directions, radii: Array, even: Array, odd: Array
) -> Noise:
    """The noise of all responses ``[K, N]``: those far larger than what it was measured on are held against float64 themselves.

    The error of float32 subtraction is measured on four directions, the relative error of lanes on two; beside a pole of the loss
    it is larger than there, and in the mean over all directions it drowns the others. Trust is withheld at such radii.
    """
    places = standing_out(even, measured_on(evaluator))
    if not places:
        return noise
    errors, evaluations = errors_of(evaluator, directions, places, radii, even, odd)
    return replace(drowned(noise, even, odd, errors), evaluations=noise.evaluations + evaluations)


def measured_on(evaluator: Evaluator | DifferenceEvaluator) -> int:
    """Directions, the first ones, that the error of an evaluator is measured on; 0 where it is the same for all."""
    if isinstance(evaluator, DifferenceEvaluator):
        return DIFFERENCES
    return 0 if evaluator.dtype == torch.float64 else CALIBRATION


def standing_out(even: Array, first: int) -> list[Place]:
    """Responses ``[K, N]`` that stand out of those of the first few directions, at each radius the two largest at most."""
    if not first or even.shape[1] <= first:
        return []
    with np.errstate(invalid="ignore", over="ignore"):
        sizes = np.nan_to_num(np.abs(even), nan=0.0, posinf=np.inf)  # those that overflow stand out; a loss of NaN does not
        apart = sizes > _OUTLIER * np.sqrt(np.mean(np.square(even[:, :first]), axis=1, keepdims=True))
    apart[:, :first] = False
    order = np.argsort(np.where(apart, -sizes, 0.0), axis=1, kind="stable")[:, :_MOST]
    return [(row, column) for row, columns in enumerate(order.tolist()) for column in columns if apart[row, column]]


def errors_of(
    evaluator: Evaluator | DifferenceEvaluator,
    directions: Directions,
    places: Sequence[Place],
    radii: Array,
    even: Array,
    odd: Array,
) -> tuple[Errors, int]:
    """Errors of some of the responses ``[K, N]``, doubled for lanes, and the evaluations that they took elsewhere."""
    if isinstance(evaluator, DifferenceEvaluator):

        def lanes(column: int, at: Array) -> Array:
            return np.stack(evaluator.responses(directions, (column,), at.tolist(), lanes=torch.float64)[:2])[:, :, 0]

        return _apart(lanes, places, radii, even, odd, SAFETY), 0
    try:
        if evaluator.objective.sharding is None:
            with exact_evaluator(evaluator) as exact:

                def subtracted(column: int, at: Array) -> Array:
                    return np.stack(exact.responses(directions, (column,), at.tolist())[:2])[:, :, 0]

                return _apart(subtracted, places, radii, even, odd), exact.evaluations
    except Exception:  # of a loss that does not run in float64, as its calibration has said
        pass
    return {
        (row, column): (float(neighbouring_noise(evaluator, directions, [column], radii[[row]])[0][0]),) * 2
        for row, column in places
    }, 0


def _apart(
    exact: Callable[[int, Array], Array], places: Sequence[Place], radii: Array, even: Array, odd: Array, factor: float = 1.0
) -> Errors:
    found: Errors = {}
    for column in sorted({column for _, column in places}):
        rows = [row for row, of in places if of == column]
        with np.errstate(invalid="ignore", over="ignore"):
            errors = factor * np.abs(np.stack((even[rows, column], odd[rows, column])) - exact(column, radii[rows]))
        found |= {(row, column): (float(a), float(b)) for row, a, b in zip(rows, *errors, strict=True)}
    return found


def drowned(noise: Noise, even: Array, odd: Array, errors: Errors) -> Noise:
    """Noise with errors of single responses in the mean over all ``[K, N]``; trust is withheld where they drown the others."""
    squares, largest = np.zeros((2, len(even))), np.zeros(len(even))
    with np.errstate(invalid="ignore", over="ignore"):
        for (row, _), pair in errors.items():
            squares[:, row] += np.nan_to_num(np.square(pair), nan=0.0, posinf=np.inf)  # NaN: infinite in float64 as well
            largest[row] = np.fmax(largest[row], pair[0])
        rms = np.sqrt(squares / even.shape[1])
    raised = rms > noise.sigma
    if not raised.any():
        return noise
    flat = noise.influence is not None and noise.influence.flat
    pairs = ((even, odd, rms[0]), (odd, even, rms[1]))
    clear = np.stack([known_from_zero(part, other, error, flat=flat) for part, other, error in pairs])
    withheld: NDArray[np.bool_] = raised & ~clear
    calibrated = None if noise.calibrated is None else noise.calibrated & ~withheld
    words = _words(withheld[0], np.abs(even), largest) if withheld[0].any() else ""
    return replace(noise, sigma=np.maximum(noise.sigma, rms[0]), calibrated=calibrated, largest=words)


def _words(lost: NDArray[np.bool_], sizes: Array, errors: Array) -> str:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        times = float(np.max(errors[lost] / np.median(sizes[lost], axis=1)))
    return (
        f"trust is withheld at {counted(int(lost.sum()), 'scale')}: single responses are far larger than the others, as beside a "
        f"pole of the loss, and by the error of one, held against float64, of {times:.2g} times a typical response"
    )
