"""Rounding in responses: calibration, floors that are measured, and the gate that decides."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fastscape.directions import Directions
from fastscape.evaluation.arithmetic import replica_arithmetic
from fastscape.evaluation.effort import HEAVY, multiplications
from fastscape.evaluation.evaluator import Evaluator
from fastscape.evaluation.points import Array, Radii, second_difference, signed_radii
from fastscape.evaluation.rounding import rounding_model as rounding_model
from fastscape.evaluation.steps import (
    COARSE,
    EVEN,
    SINGLE,
    STEPS,
    Lines,
    Write,
    around,
    narrow_error,
    rms,
    step_errors,
    steps_found,
    where_defined,
)
from fastscape.objective.replica import Replica

_FLOOR_RADIUS = 1e-11  # of ||w||: true responses are below 1e-19 there, weights still move by 1e5 ulp in float64
_HIDDEN = "steps that no dtype shows, such as a hidden cast or a quantisation"
_DRAWS = 4  # displacements of the weights over which the error of one loss is measured
_SECOND = math.sqrt(6)  # the rounding model is of a second difference, one of whose losses carries a sixth of its variance
_NEIGHBOUR = 20  # roundings of the weights between neighbours, whose losses round independently
SIGNAL_TO_NOISE = 10.0
SHARE_ABOVE = 0.9


def passes_gate(even: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Scales ``[K]`` where at least 90 % of the reference responses ``[K, m]`` are 10 or more times the noise ``[K]``."""
    return _mostly(_clear(even, noise))


def known_from_zero(response: Array, other: Array, noise: Array, *, flat: bool) -> NDArray[np.bool_]:
    """:func:`passes_gate` for responses ``[K, m]`` of which some are exactly zero, beside the ``other`` (odd or even) ones.

    That a loss has not moved does not show that it is flat: it may be saturated, or the directions may leave out what moves it.
    A zero is known beside another response that is none, as of a loss that is linear there; and where nothing has moved and
    the gradient is exactly zero as well (``flat``).
    """
    if flat and not response.any() and not other.any():
        return np.ones(len(response), dtype=np.bool_)
    return _mostly(_clear(response, noise) & ((response != 0) | (other != 0)))


def _clear(response: Array, noise: Array) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(response) >= SIGNAL_TO_NOISE * noise[:, None])


def _mostly(clear: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(clear.mean(axis=1) >= SHARE_ABOVE)


def along(evaluator: Evaluator, directions: Directions, indices: Sequence[int]) -> Lines:
    """Losses along directions."""
    scale = relative(directions, indices)

    def losses(distances: Sequence[float]) -> Array:
        found: Array = evaluator.losses(directions, indices, [distance * scale for distance in distances]).numpy()
        return found

    return where_defined(losses)


def relative(directions: Directions, indices: Sequence[int]) -> float:
    """The radius at which a direction is as long as the weights."""
    length = directions.length(indices[0])
    return directions.weight_norm / length if directions.weight_norm > 0 and length > 0 else 1.0


def measured_floor(evaluator: Evaluator, directions: Directions, indices: Sequence[int]) -> float:
    """RMS even response over a tiny relative radius, where only rounding is left."""
    steps = signed_radii([_FLOOR_RADIUS * relative(directions, indices)])
    return rms(second_difference(evaluator.losses(directions, indices, steps))[0])


def noise_float64(
    evaluator: Evaluator, directions: Directions, indices: Sequence[int], radii: Array
) -> tuple[NDArray[np.float64], str]:
    """Noise of float64 responses at each radius, and the operation behind it where it is not the rounding of float64.

    The largest of the rounding model, the floor measured at 1e-11 ||w||, and the error of an operation that is narrower than
    float64, which rounds alike on both sides at 1e-11 (:func:`narrow_error`). Quantisations, and steps that no dtype shows but
    the losses do (:func:`steps_found`), have an error at each radius besides.
    """
    modelled, floor = rounding_model(evaluator.replica), measured_floor(evaluator, directions, indices)
    lines, found = along(evaluator, directions, indices), replica_arithmetic(evaluator.replica)
    narrow = EVEN * narrow_error(lines, found)
    noise, reason = np.full(len(radii), np.fmax(np.fmax(modelled, floor), narrow)), found.step
    if np.isnan(noise).any():
        return noise, reason
    heavy = multiplications(evaluator.objective) > HEAVY  # one direction has to tell whether a loss goes in steps
    few = along(evaluator, directions, indices[:1]) if heavy else lines
    if not (found.rounds or _in_steps(few, lines, float(np.fmax(modelled, narrow)), floor)):
        return noise, reason
    hidden = f"roundings in {found.rounds}" if found.rounds else _HIDDEN
    errors = EVEN * step_errors(lines, radii / relative(directions, indices))
    return np.fmax(noise, errors), "; ".join(filter(None, (reason, hidden)))


def _in_steps(few: Lines, lines: Lines, noise: float, floor: float = 0.0, distances: Sequence[float] = STEPS) -> bool:
    """:func:`steps_found` of a few lines, borne out by more: on one, kinks and curvature may cancel at all but one distance."""
    found = steps_found(few, noise, floor, distances)
    return found and (few is lines or steps_found(lines, noise, floor, distances))


def narrow_noise(evaluator: Evaluator, directions: Directions, indices: Sequence[int]) -> tuple[float, str]:
    """Error of even responses by operations that are narrower than the evaluator's dtype, and the narrowest; 0 without one."""
    found = replica_arithmetic(evaluator.replica)
    return EVEN * narrow_error(along(evaluator, directions, indices), found), found.step


def step_noise(replica: Replica, write: Write) -> float:
    """RMS error of one loss by steps inside the model: narrower dtypes, quantisations, and what no dtype shows; 0 without any.

    Whether there are any is found once for an objective and dtype, from nine losses, and 36 more where those show some; their
    size at every call, where there are.

    Args:
        replica: whose scratch weights are displaced.
        write: writes the weights around which to look.
    """
    return _step_noise(replica, write, None)


def rounding(replica: Replica) -> float:
    """Error of a second difference at the objective's weights: the rounding model, or steps inside the model where larger."""
    modelled = rounding_model(replica)
    return float(np.fmax(modelled, _SECOND * _step_noise(replica, replica.reset, modelled)))


def _step_noise(replica: Replica, write: Write, modelled: float | None) -> float:
    found, known = replica_arithmetic(replica), replica.objective.known
    lines = around(replica, write, _DRAWS)
    error = narrow_error(lines, found)
    key = "steps", replica.dtype
    if key not in known:
        least = rounding_model(replica) if modelled is None else modelled
        line = around(replica, write, 1)
        known[key] = bool(found.rounds) or _in_steps(line, lines, max(least, EVEN * error), distances=COARSE)
    if known[key]:
        error = max(error, float(step_errors(lines, np.zeros(0), level=True)))
    return SINGLE * error


def neighbouring_noise(
    evaluator: Evaluator, directions: Directions, indices: Sequence[int], radii: Radii
) -> tuple[NDArray[np.float64], str]:
    r"""RMS rounding error of even responses ``[K]`` without wider arithmetic, and the narrower operation behind it, if any.

    .. math:: \sigma^2(L_r) = \tfrac16 \langle (L_{r+s} - 2 L_r + L_{r-s})^2 \rangle, \qquad
              \sigma^2(\Delta_2) = \sigma^2(L_r) + \sigma^2(L_{-r}) + 4 \sigma^2(L_0)

    with losses at radii r and at neighbours s = 20 u ||w|| away: weights move by 20 of their roundings, and the second difference
    of the loss itself is a few hundred u^2. Where an operation is narrower than the weights, s is two of its roundings. A second
    difference that is not negligible counts as noise. At least a rounding of the loss, and doubled: on eight networks that run in
    both dtypes the RMS was 0.6 to 2 times that of the differences from float64.

    Cost: 3 evaluations at 2 K + 1 points for each direction.
    """
    found = replica_arithmetic(evaluator.replica)
    step = _NEIGHBOUR * torch.finfo(evaluator.dtype).eps if found.narrow is None else 2 * torch.finfo(found.narrow).eps
    step *= directions.weight_norm / directions.length(indices[0]) if directions.weight_norm > 0 else 1.0
    rows = np.array(signed_radii(radii))
    below, here, above = (evaluator.losses(directions, indices, (rows + shift).tolist()).numpy() for shift in (-step, 0.0, step))
    unit = torch.finfo(found.narrow or evaluator.dtype).eps
    with np.errstate(invalid="ignore", over="ignore"):
        variance = np.fmax(np.mean((below - 2 * here + above) ** 2, axis=0) / 6, np.mean((unit * here) ** 2, axis=0) / 48)
        plus, minus = np.split(variance[1:], 2)
        sigma: NDArray[np.float64] = 2 * np.sqrt(plus + minus + 4 * variance[0])
    return sigma, found.step
