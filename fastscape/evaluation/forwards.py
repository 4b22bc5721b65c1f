r"""Quadratic forms of the Hessian by two forwards per direction, with a step chosen and an error estimated from the losses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from fastscape._state import exact_arithmetic
from fastscape.directions import Directions
from fastscape.evaluation.branches import Branches
from fastscape.evaluation.determinism import NondeterministicLossError, unperturbed_loss
from fastscape.evaluation.displacement import Displacement
from fastscape.evaluation.evaluator import PathChoice
from fastscape.evaluation.points import Array
from fastscape.objective import Objective

NAME = "forwards"
_TINY = 20  # units of round-off relative to ||w|| where differences are rounding alone: 2e-6 ||w|| in float32
_START, _LARGEST = 1e-2, 0.3  # first step tried and largest allowed, relative to ||w||
_TRIALS = 6  # steps tried at most in one search
_NEAR = 5.0  # factor on the second difference within which a step is taken as found
_CHECKED = 3  # random directions whose truncation stands for that of all
_LEAST = 1e-2  # of an ulp of L0: least rounding of a loss averaged over samples in float64
_DEVIATIONS = 2.5  # of the rounding in a reported error
_MARGIN = 2.0  # on the largest relative truncation seen
_HOPELESS = 0.1  # reported error, RMS over directions relative to the RMS form, above which the result is refused


@dataclass(frozen=True)
class Differences:
    """Quadratic forms by two forwards: slope, curvature and its error estimates ``[N]``, loss at w, lengths, and how."""

    slope: Array
    curvature: Array
    error: Array
    base: float
    lengths: Array
    choice: PathChoice


def by_forwards(
    objective: Objective, directions: Directions, *, why: str = "", progress: Callable[[int, int], None] | None = None
) -> Differences:
    r"""Slopes and forms from :math:`L(w \pm h d)`, on the pieces of the network that hold at w.

    .. math:: d^T H d \approx \bigl(L(w + h d) + L(w - h d) - 2 L(w)\bigr) / h^2

    The step makes the second difference the geometric mean of its measured rounding and the loss. For random directions it is common to
    all, and the truncation of the first three (from steps h and 2h) stands for that of the others; given directions each
    have their own step, and Richardson's extrapolation.

    Raises:
        ValueError: an estimated error above 10 % of the RMS form.
        NondeterministicLossError: two evaluations at w differ.

    Cost: 2 N + 16 forwards or so for random directions, 4 to 8 N for given ones; memory of the scratch copy of the weights and
    of one byte per element of every ReLU.
    """
    start = time.perf_counter()
    directions.check(objective)
    with _Line(objective, directions) as line:
        shared = directions.separable and len(directions) > 1
        found = (_together if shared else _one_by_one)(line, len(directions), progress)
    curvature, slope, error, words = found
    _refuse(curvature, error, line.dtype)
    seconds = time.perf_counter() - start
    reason = f"{why}{words}; {line.forwards} forwards"
    choice = PathChoice(NAME, 1, {NAME: seconds / len(directions)}, reason)
    return Differences(slope, curvature, error, line.base, line.lengths, choice)


class _Line(AbstractContextManager["_Line"]):
    """Losses along directions, by distance from w."""

    def __init__(self, objective: Objective, directions: Directions) -> None:
        self.objective, self.directions = objective, directions
        self.dtype = torch.promote_types(objective.dtype, torch.float32)  # half precision resolves no second difference
        self.lengths = np.array([directions.length(index) for index in range(len(directions))])
        self.norm = directions.weight_norm or 1.0
        self.base, self.rounding, self.forwards = math.nan, math.nan, 0
        self._selected: int | None = None
        self._stack = ExitStack()

    def __enter__(self) -> _Line:
        with ExitStack() as stack:
            stack.enter_context(exact_arithmetic(self.dtype))
            self._replica = self.objective.replica(self.dtype)
            self._replica.widen_criterion()
            self._displacement = Displacement(self._replica.base, self._replica.scratch)
            self._branches = Branches()
            self._replica.reset()
            recorded, self.base = self._loss(self._branches.recording), self._loss(self._branches.held)
            if recorded != self.base and not math.isnan(self.base):
                unperturbed_loss(self._replica)  # says why
                raise NondeterministicLossError(
                    f"the loss must be deterministic, got {recorded!r} and then {self.base!r} at the same weights and data"
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def _loss(self, mode: Callable[[int], AbstractContextManager[None]]) -> float:
        self.forwards += 1
        parts = []
        for index, weight in enumerate(self.objective.batch_weights):
            with mode(index):
                parts.append(weight * self._replica.batch_loss(index)[0].double())
        return float(torch.stack(parts).sum()) / self.objective.samples

    def differences(self, index: int, distance: float) -> tuple[float, float]:
        """Second and first difference of the loss at w +- distance d / ||d||; both zero for d = 0."""
        if self.lengths[index] == 0:
            return 0.0, 0.0
        if self._selected != index:
            self._displacement.select(self.directions, index)
            self._selected = index
        losses = []
        for sign in (1, -1):
            self._displacement.write(sign * distance / self.lengths[index])
            losses.append(self._loss(self._branches.held))
        plus, minus = losses
        return (plus - self.base) + (minus - self.base), (plus - minus) / 2

    def measure_rounding(self, count: int) -> None:
        """RMS second difference where the weights move by a few roundings."""
        tiny = _TINY * torch.finfo(self.dtype).eps * self.norm
        found = np.array([self.differences(index, tiny)[0] for index in range(min(2, count))])
        least = _LEAST * torch.finfo(self.dtype).eps * abs(self.base)
        with np.errstate(invalid="ignore", over="ignore"):
            self.rounding = float(np.fmax(np.sqrt(np.mean(found**2)), least)) or np.finfo(np.float64).tiny

    @property
    def wanted(self) -> float:
        """Second difference at which rounding and truncation are about equal shares of it."""
        return math.sqrt(self.rounding * max(abs(self.base), self.rounding))

    def search(self, indices: list[int], start: float) -> float:
        """Distance at which the second difference is near the wanted one, trying the directions in turn."""
        distance, largest = start, _LARGEST * self.norm
        for trial in range(_TRIALS):
            found = abs(self.differences(indices[trial % len(indices)], distance)[0])
            if math.isnan(found) or math.isinf(found):
                distance /= 30
                continue
            factor = math.sqrt(self.wanted / max(found, self.rounding / 10))
            distance = min(distance * min(max(factor, 1 / 100), 30.0), largest)
            if 1 / _NEAR < factor**2 < _NEAR or (distance == largest and factor > 1 and trial):
                break
        return distance

    def extrapolated(self, index: int, distance: float) -> tuple[float, float, float, float]:
        """Form, slope, truncation at ``distance`` and error estimate of d / ||d||, from this distance and its double."""
        (near, slope), (far, _) = self.differences(index, distance), self.differences(index, 2 * distance)
        step = distance**2
        truncation = (far / 4 - near) / (3 * step)
        error = abs(truncation) + 1.4 * _DEVIATIONS * self.rounding / step
        return near / step - truncation, slope / distance, truncation, error


_Found = tuple[Array, Array, Array, str]


def _together(line: _Line, count: int, progress: Callable[[int, int], None] | None) -> _Found:
    """One distance for all random directions, truncation from the first few."""
    curvature, slope, error = (np.full(count, math.nan) for _ in range(3))
    checked = list(range(min(_CHECKED, count)))
    line.measure_rounding(count)
    distance = line.search(checked, _START * line.norm)
    truncation = np.empty(len(checked))
    for index in checked:
        curvature[index], slope[index], truncation[index], error[index] = line.extrapolated(index, distance)
    with np.errstate(invalid="ignore", divide="ignore"):
        size = _rms(curvature)
        relative = float(np.nanmax(np.abs(truncation) / np.fmax(np.abs(curvature[checked]), size), initial=0.0))
        rounding = line.rounding / (distance**2 * size)
    factor = _balanced(relative, rounding)
    distance, relative, rounding = distance * factor, relative * factor**2, rounding / factor**2
    for index in range(len(checked), count):
        second, first = line.differences(index, distance)
        curvature[index], slope[index] = second / distance**2, first / distance
        error[index] = _MARGIN * relative * max(abs(curvature[index]), size) + _DEVIATIONS * line.rounding / distance**2
        if progress is not None:
            progress(index + 1, count)
    words = (
        f"two forwards at a distance of {distance / line.norm:.1e} ||w||, rounding {rounding:.1e} and truncation {relative:.1e}"
    )
    return *_of_lengths(line, curvature, slope, error), words


def _balanced(truncation: float, rounding: float) -> float:
    """Factor on the step that makes the truncation (as its square) and the rounding (as its inverse) equal, within 1/8 and 2."""
    if not (truncation > 0 and rounding > 0 and math.isfinite(truncation) and math.isfinite(rounding)):
        return 1.0
    return min(max((rounding / truncation) ** 0.25, 0.125), 2.0)


def _one_by_one(line: _Line, count: int, progress: Callable[[int, int], None] | None) -> _Found:
    """Every direction at its own distance, with Richardson's extrapolation."""
    curvature, slope, error = (np.full(count, math.nan) for _ in range(3))
    line.measure_rounding(count)
    distance = _START * line.norm
    for index in range(count):
        distance = line.search([index], distance)
        curvature[index], slope[index], _, error[index] = line.extrapolated(index, distance)
        if progress is not None:
            progress(index + 1, count)
    return *_of_lengths(line, curvature, slope, error), "two forwards at two distances for every direction, extrapolated"


def _of_lengths(line: _Line, curvature: Array, slope: Array, error: Array) -> tuple[Array, Array, Array]:
    """From unit directions to those of their own length."""
    squares = line.lengths**2
    return curvature * squares, slope * line.lengths, error * squares


def _rms(values: Array) -> float:
    kept = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(kept**2))) if len(kept) else math.nan


def _refuse(curvature: Array, error: Array, dtype: torch.dtype) -> None:
    """Refuse errors near the forms themselves; what is not finite is a result."""
    share, size = _rms(error), _rms(curvature)
    if share > _HOPELESS * size and size > 0:
        remedy = "path=None for exact forms" + ("" if dtype == torch.float64 else ", or an objective with dtype=torch.float64")
        raise ValueError(
            f"path='forwards' must resolve the forms, got an estimated error of {share / size:.0%} of the RMS form; use {remedy}"
        )
