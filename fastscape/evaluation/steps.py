"""Steps that a model rounds its values to, seen in the losses around a point: narrow dtypes, quantisations, hidden casts.

A loss with steps is a smooth one plus an error that is another number as soon as the weights move by what the steps resolve.
Fourth differences over equal spacing leave nothing of what is smooth, so their size is that of the error, whatever made it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastscape.evaluation.arithmetic import Arithmetic
from fastscape.evaluation.points import Array, second_difference, signed_radii
from fastscape.objective.replica import Replica

Lines = Callable[[Sequence[float]], Array]  # losses [n, P] along n lines at P distances relative to the weights
Write = Callable[[], None]

# Independent errors of deviation s give a fourth difference sqrt(70) s and an even response sqrt(6) s, 0.29 of that; errors that
# change the more often the farther the weights move, 0.45. The larger, doubled, is stated: one error in twenty exceeds it.
EVEN = 0.9
SINGLE = 0.18  # of one loss: 1 / sqrt(70), and half as much again for having been measured on few lines
_NARROW_UNITS = (0.5, 2.0)  # units of the narrowest dtype by which weights move where its roundings are measured
STEPS = (1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1)  # distances over which a loss is looked at for steps
COARSE = (1e-4, 1e-3, 1e-2, 1e-1)  # the same where a loss is rounded to float32 or narrower, or few evaluations are wanted
_GROWTH, _MISSING = 2.0, 1.5  # times what a continuous loss gives: it gives at most 1 and, where it has kinks, 0.5
_CLEAR = 10.0  # times the noise above which a difference tells something
_POWER = 0.5  # decades by which a power law may miss over four decades of distance


def around(replica: Replica, write: Write, draws: int) -> Lines:
    """Losses around the weights that ``write`` writes, every number of which moves by a Gaussian share of itself.

    Memory: nothing beside the replica; the shares are drawn anew at every distance.
    """

    def at(draw: int, distance: float) -> float:
        write()
        if distance:
            replica.alter(partial(_shifted, draw, distance))
        return float(replica.loss())

    def losses(distances: Sequence[float]) -> Array:
        return np.array([[at(draw, distance) for distance in distances] for draw in range(draws)])

    return where_defined(losses)


def _shifted(draw: int, distance: float, index: int, slot: Tensor) -> None:
    generator = torch.Generator(slot.device).manual_seed(draw + (index << 8))
    share = torch.empty(slot.shape, dtype=torch.float32, device=slot.device).normal_(generator=generator)
    wide = torch.promote_types(slot.dtype, torch.float32)
    slot.copy_(slot.to(wide) * (1 + distance * share.to(wide)))


def where_defined(lines: Lines) -> Lines:
    """The lines with NaN where the model refuses the weights, as one does that takes the scale of a distribution from them."""

    def losses(distances: Sequence[float]) -> Array:
        try:
            return lines(distances)
        except Exception as error:
            first = error
        base = lines([0.0])  # what fails at w itself is raised
        columns = [base if distance == 0 else np.full(base.shape, np.nan) for distance in distances]
        failed = False
        for index, distance in enumerate(distances):
            try:
                columns[index] = lines([distance])
            except Exception:
                failed = True
        if not failed:
            raise first  # of a model that raises now and then
        return np.concatenate(columns, axis=1)

    return losses


def narrow_error(lines: Lines, found: Arithmetic) -> float:
    """RMS fourth difference by roundings to a dtype that is narrower than that of the weights; 0 without one.

    The weights move by 1/2 and 2 units of that dtype, far enough that its roundings on both sides are their own. Where few
    numbers are rounded none may fall otherwise: the unit relative to the loss is taken then.
    """
    if found.narrow is None:
        return 0.0
    unit = torch.finfo(found.narrow).eps
    measured = unit_error(lines, unit / 2)
    modelled = unit * abs(float(lines([0.0])[0, 0])) / math.sqrt(max(found.elements, 1)) / EVEN
    return modelled if measured < 0.01 * modelled else measured


def unit_error(lines: Lines, unit: float) -> float:
    """Largest RMS fourth difference over weights that move by 1/2 and 2 units relative to themselves."""
    return max(rms(_fourth(lines(_five(step * unit)))) for step in _NARROW_UNITS)


def step_errors(lines: Lines, distances: Array, *, level: bool = False) -> Array:
    """RMS fourth differences of a loss with steps of unknown size, over half of each distance; or the ``level`` of the steps.

    Below the distances where they drown the even response no step may be seen, or few, though all are there: they have the
    largest error of those distances, the level.
    """
    wide = np.array([*distances, *STEPS])
    order = np.argsort(wide)
    losses = [lines(_five(distance / 2)) for distance in wide[order]]
    found = np.fmax.accumulate([rms(_fourth(five)) for five in losses])
    rises = np.array([rms(five[:, 3] + five[:, 4] - 2 * five[:, 0]) for five in losses])
    drowned = max(found[rises < _CLEAR * EVEN * found], default=0.0)
    if level:
        return np.array(drowned)
    errors = np.empty(len(wide))
    errors[order] = np.fmax(found, drowned)
    return errors[: len(distances)]


def steps_found(lines: Lines, noise: float, floor: float = 0.0, distances: Sequence[float] = STEPS) -> bool:
    r"""Whether a loss goes in steps that are larger than the noise of its even responses, as no continuous function does.

    Of a continuous loss the even response over r does not grow as r falls, and the slope
    :math:`(L(w + r d) - L(w - r d)) / 2r` of tiny r is that of small r, but for what bends in between, which the even response
    there shows too. Steps make the first grow, and leave tiny r the slope of what is not rounded. A loss that is rough by one
    power of r from ``floor``, its even response at 1e-11, upwards is no staircase.
    """
    radii = np.array(distances)
    even, odd, _ = second_difference(torch.from_numpy(lines(signed_radii(radii))))
    if not (np.isfinite(even).all() and np.isfinite(odd).all()):
        return False
    rises = np.array([rms(row) for row in even])
    bent = np.array([rms(row) for row in odd - (radii / radii[0])[:, None] * odd[0]])
    clear = _CLEAR * noise
    if math.isnan(clear):
        return False
    if floor > clear and rises[0] > 0 and rises[3] > 0 and abs(math.log10(rises[0] ** 2 / floor / rises[3])) < _POWER:
        return False
    slope = clear * radii / radii[0]  # of what tiny r predicts
    growing = [
        rises[k] > clear and rises[k] / radii[k] > _GROWTH * max(rises[k + 1 :] / radii[k + 1 :]) for k in range(len(radii) - 1)
    ]
    decades = [(j, int(np.searchsorted(radii, 9 * radii[j]))) for j in range(1, len(radii) - 2)]
    missing = [
        min(bent[j] - slope[j], bent[k] - slope[k] - _MISSING * rises[k]) > 0 and bent[j] / radii[j] > bent[k] / radii[k] / 2
        for j, k in decades
    ]
    return any(growing) or any(missing)


def rms(values: Array) -> float:
    """Root of the mean square."""
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.sqrt(np.mean(values**2)))


def _five(step: float) -> list[float]:
    return [0.0, step, -step, 2 * step, -2 * step]


def _fourth(losses: Array) -> Array:
    """Fourth differences of losses ``[n, 5]`` at 0, +-h, +-2h."""
    weights = np.array([6.0, -4.0, -4.0, 1.0, 1.0])
    with np.errstate(invalid="ignore", over="ignore"):
        found: Array = (losses - losses[:, :1]) @ weights
    return found
