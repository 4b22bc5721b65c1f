r"""How much of a response is rounding: noise models, calibration, and the gate that decides.

A second difference of losses computed in arithmetic of unit round-off u carries an absolute error of about

.. math:: \sigma = 8 u (L_0 + G), \qquad G = \operatorname{mean}_b \|\partial \ell_b / \partial z_b\| \, \|z_b\|

(z_b the outputs for sample b; for cross-entropy the gradient is ``softmax - onehot``), independent of the radius. The
model was within 0.5 to 20 times of the measured RMS on six networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape._replica import Replica
from fastscape.directions import Directions
from fastscape.evaluation.arithmetic import Arithmetic, replica_arithmetic
from fastscape.evaluation.evaluator import Evaluator
from fastscape.evaluation.points import Array, second_difference, signed_radii

_FLOOR_RADIUS = 1e-11  # of ||w||: true responses are below 1e-19 there, weights still move by 1e5 ulp in float64
_NARROW_UNITS = (0.5, 2.0)  # units of the narrowest dtype by which weights move where its roundings are measured
_OF_FOURTH = 0.9  # stated error of an even response, in RMS fourth differences: see narrow_floor
_STEPS = (1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1)  # of ||w||, over which a loss is looked at for steps
_JUMPS = 3.0  # times what a continuous loss would give
_HIDDEN = "steps that no dtype shows, such as a hidden cast or a quantisation"
SIGNAL_TO_NOISE = 10.0
SHARE_ABOVE = 0.9


def passes_gate(
    even: NDArray[np.float64], noise: NDArray[np.float64], holds: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Scales ``[K]`` where at least 90 % of the reference responses ``[K, m]`` are 10 or more times the noise ``[K]``.

    ``holds [K, m]``: where a response that is exactly zero is known to be so; see :func:`zeros_hold`.
    """
    with np.errstate(invalid="ignore"):
        clear = np.abs(even) >= SIGNAL_TO_NOISE * noise[:, None]
    if holds is not None:
        clear &= holds
    passed: NDArray[np.bool_] = clear.mean(axis=1) >= SHARE_ABOVE
    return passed


def zeros_hold(response: Array, other: Array, *, flat: bool) -> NDArray[np.bool_]:
    """Where a response ``[K, m]`` may be believed although it is zero: ``[K, m]``, true where it is not zero.

    No loss is known to be flat by not having moved: it may be saturated, or the direction may leave out what moves it. A zero
    holds beside an odd response (or even one, for odd zeros) that is none, as of a loss that is linear there, and where the
    gradient is zero as well (``flat``).
    """
    return np.asarray((response != 0) | (other != 0) | flat)


def rounding_model(replica: Replica) -> float:
    """8 u (L0 + G) with u of the replica's dtype, or of the loss where a model narrows it; G needs visible outputs."""
    objective = replica.objective
    replica.reset()
    total = sensitivity = 0.0
    for index, weight in enumerate(objective.batch_weights):
        loss, outputs = replica.batch_loss(index)
        total += weight * float(loss)
        if outputs is not None and objective.criterion is not None and outputs.is_floating_point():
            with torch.enable_grad():
                leaf = outputs.detach().requires_grad_(True)
                value = replica.module._pair(leaf, replica.batches[index][1])  # type: ignore[misc]
                gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
            if gradient is not None:
                per_term = gradient.double().flatten(2) if gradient.ndim > 2 else gradient.double()
                size = outputs.double().flatten(2) if outputs.ndim > 2 else outputs.double()
                dim = 1 if gradient.ndim > 1 else 0
                sensitivity += weight * float((_norm(per_term, dim) * _norm(size, dim)).sum())
    unit = max(torch.finfo(replica.dtype).eps, torch.finfo(loss.dtype).eps) / 2
    return 8 * unit * (abs(total) + sensitivity) / objective.samples


def _norm(values: Tensor, dim: int) -> Tensor:
    return values.abs() if values.ndim == 1 else values.square().sum(dim).sqrt()


def narrow_floor(evaluator: Evaluator, directions: Directions, indices: Sequence[int]) -> tuple[float, Arithmetic]:
    r"""Error of even responses by roundings to a dtype that is narrower than the evaluator's, and the arithmetic; 0 without one.

    The weights move by 1/2 and 2 units of that dtype, far enough that its roundings on both sides are their own, and the fourth
    difference over five such points leaves nothing of a smooth loss. Independent roundings of deviation s give it
    :math:`\sqrt{70}\, s`, and an even response :math:`\sqrt 6\, s = 0.29` of that; roundings that fall otherwise the more often the
    farther the weights move, 0.45. The larger, doubled, is stated: one error in twenty is larger than twice its deviation.
    Where few numbers are rounded none may fall otherwise: the unit relative to the loss is taken then.
    """
    found = replica_arithmetic(evaluator.replica)
    if found.narrow is None:
        return 0.0, found
    unit = torch.finfo(found.narrow).eps / 2
    scale = _relative(directions, indices)
    losses = [evaluator.losses(directions, indices, _five(step * unit * scale)).numpy() for step in _NARROW_UNITS]
    measured = _OF_FOURTH * max(_rms(_fourth(five)) for five in losses)
    modelled = 2 * unit * abs(float(losses[0][0, 0])) / np.sqrt(found.elements)
    return float(modelled if measured < 0.01 * modelled else measured), found


def measured_floor(evaluator: Evaluator, directions: Directions, indices: Sequence[int]) -> float:
    """RMS even response over a tiny relative radius, where only rounding is left."""
    steps = signed_radii([_FLOOR_RADIUS * _relative(directions, indices)])
    return _rms(second_difference(evaluator.losses(directions, indices, steps))[0])


def noise_float64(
    evaluator: Evaluator, directions: Directions, indices: Sequence[int], radii: Array
) -> tuple[NDArray[np.float64], str]:
    """Noise of float64 responses at each radius, and the operation behind it where it is not the rounding of float64.

    The largest of the rounding model, the floor measured at 1e-11 ||w||, and :func:`narrow_floor` where an operation is
    narrower than float64: such steps round alike on both sides at 1e-11. Quantisations, and steps that no dtype shows but the
    losses do (:func:`steps_found`), have the noise of :func:`step_noise` besides.
    """
    modelled, floor = rounding_model(evaluator.replica), measured_floor(evaluator, directions, indices)
    narrow, found = narrow_floor(evaluator, directions, indices)
    sigma = float(np.fmax(np.fmax(modelled, floor), narrow))
    noise, reason = np.full(len(radii), sigma), found.step
    if math.isnan(sigma):
        return noise, reason
    if not found.rounds and not steps_found(evaluator, directions, indices, float(np.fmax(modelled, narrow))):
        return noise, reason
    hidden = f"roundings in {found.rounds}" if found.rounds else _HIDDEN
    return np.fmax(noise, step_noise(evaluator, directions, indices, radii)), "; ".join(filter(None, (reason, hidden)))


def step_noise(evaluator: Evaluator, directions: Directions, indices: Sequence[int], radii: Array) -> Array:
    """Error of even responses of a loss with steps of unknown size, at each radius.

    As in :func:`narrow_floor`, of fourth differences over half of the radius. Below the radii where they drown the even
    response no step may be seen, or few, though all are there: they have the largest error of those radii.
    """
    wide = np.array([*radii, *(np.array(_STEPS) * _relative(directions, indices))])
    order = np.argsort(wide)
    losses = [evaluator.losses(directions, indices, _five(radius / 2)).numpy() for radius in wide[order]]
    found = np.maximum.accumulate([_OF_FOURTH * _rms(_fourth(five)) for five in losses])
    rises = np.array([_rms(five[:, 3] + five[:, 4] - 2 * five[:, 0]) for five in losses])
    drowned = found[rises < SIGNAL_TO_NOISE * found]
    noise = np.empty(len(wide))
    noise[order] = np.fmax(found, max(drowned, default=0.0))
    return noise[: len(radii)]


def steps_found(evaluator: Evaluator, directions: Directions, indices: Sequence[int], noise: float) -> bool:
    r"""Whether a loss goes in steps that are larger than its noise, which no continuous function of the weights does.

    Of a continuous loss the even response over r does not grow as r falls, and the slope
    :math:`(L(w + r d) - L(w - r d)) / 2r` of tiny r is that of small r, but for what bends in between, which the even response
    there shows too. Steps make the first grow, and leave tiny r the slope of what is not rounded.
    """
    radii = np.array(_STEPS) * _relative(directions, indices)
    even, odd, _ = second_difference(evaluator.losses(directions, indices, signed_radii(radii)))
    if not (np.isfinite(even).all() and np.isfinite(odd).all()):
        return False
    rises = np.array([_rms(row) for row in even])
    bent = np.array([_rms(row) for row in odd - (radii / radii[0])[:, None] * odd[0]])
    clear = SIGNAL_TO_NOISE * noise
    slope = clear * radii / radii[0]  # of what tiny r foretells
    growing = [
        rises[k] > clear and rises[k] / radii[k] > _JUMPS * max(rises[k + 1 :] / radii[k + 1 :]) for k in range(1, len(radii) - 1)
    ]
    missing = [
        bent[k - 1] > slope[k - 1] and bent[k] > slope[k] + _JUMPS * rises[k] and bent[k - 1] / radii[k - 1] > bent[k] / radii[k] / _JUMPS
        for k in range(2, len(radii))
    ]
    return any(growing) or any(missing)


def _relative(directions: Directions, indices: Sequence[int]) -> float:
    """The radius at which a direction is as long as the weights."""
    length = directions.length(indices[0])
    return directions.weight_norm / length if directions.weight_norm > 0 and length > 0 else 1.0


def _five(step: float) -> list[float]:
    return [0.0, step, -step, 2 * step, -2 * step]


def _fourth(losses: Array) -> Array:
    """Fourth differences of losses ``[n, 5]`` at 0, +-h, +-2h."""
    weights = np.array([6.0, -4.0, -4.0, 1.0, 1.0])
    with np.errstate(invalid="ignore", over="ignore"):
        found: Array = (losses - losses[:, :1]) @ weights
    return found


def _rms(values: Array) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.sqrt(np.mean(values**2)))
