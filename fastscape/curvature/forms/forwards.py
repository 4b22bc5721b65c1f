r"""Quadratic forms of the Hessian by two forwards per direction, with a step chosen and an error estimated from the losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from fastscape._clock import now
from fastscape._state import exact_arithmetic, left_on_failure, torch_generators
from fastscape.directions import Directions
from fastscape.evaluation.arithmetic import replica_arithmetic
from fastscape.evaluation.branches import Branches
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.displacement import displacement_of
from fastscape.evaluation.points import Array
from fastscape.evaluation.rounding import output_sensitivity
from fastscape.evaluation.trial import PathChoice
from fastscape.objective.examination import streamed_replica, streams
from fastscape.objective.objective import Objective

NAME = "forwards"
_TINY = 20  # units of round-off relative to ||w|| where differences are rounding alone: 2e-6 ||w|| in float32
_START, _LARGEST = 2.5e-2, 0.3  # first step tried and largest allowed, relative to ||w||
_TRIALS = 6  # steps tried at most in one search
_NEAR = 5.0  # factor on the second difference within which a step is taken as found
_COARSE = 2  # the same, of a narrower dtype inside: 20 of its units are a long way
_ROUNDED = 4  # pairs of losses there: their scatter tells the rounding, their mean is a better L(w) than one evaluation
_CHECKED = 5  # random directions whose truncation stands for that of all; of 3 all were small in one set of eight
_DEVIATIONS = float(stats.t.ppf(0.975, _ROUNDED))  # of the rounding in a reported error: that scatter has so many degrees
_ROUGH = 1e-3  # share of the RMS form above which rounding, or truncation, moves the directions checked out, or in
_MARGIN = 2.0  # on the largest relative truncation seen in a direction of its own
_LARGEST_ERROR = 0.1  # reported error, RMS over directions relative to the RMS form, above which the result is refused


@dataclass(frozen=True)
class Differences:
    """Quadratic forms by two forwards: slope, curvature and its error estimates ``[N]``, loss at w, lengths, how, cost."""

    slope: Array
    curvature: Array
    error: Array
    base: float
    lengths: Array
    choice: PathChoice
    forwards: int


def by_forwards(
    objective: Objective, directions: Directions, *, why: str = "", progress: Callable[[int, int], None] | None = None
) -> Differences:
    r"""Slopes and forms from :math:`L(w \pm h d)`, on the pieces of the network that hold at w.

    .. math:: d^T H d \approx \bigl(L(w + h d) + L(w - h d) - 2 L(w)\bigr) / h^2

    The step makes the second difference the geometric mean of its measured rounding and the loss. For random directions it is
    common to all, balanced by the truncation of the first three (from steps h and 2h), which stands for that of the others;
    given directions each have their own step, and Richardson's extrapolation.

    Raises:
        ValueError: an estimated error above 10 % of the RMS form, or an operation with kinks and without a rule, named: many
            kinks within a step look like curvature at every step, so that no comparison of steps would show them.
        NondeterministicLossError: two evaluations at w differ.

    Cost: 2 N + 18 to 44 forwards for random directions, 6 to 10 N for given ones; memory of the scratch copy of the weights and
    of one byte per element of every ReLU.
    """
    start = now()
    directions.check(objective)
    with _Line(objective, directions) as line:
        shared = (directions.separable or directions.rank is not None) and len(directions) > 1
        found = (_together if shared else _one_by_one)(line, len(directions), progress)
    curvature, slope, error, words = found
    _refuse(curvature, error, line.dtype, exact=not why)
    seconds = now() - start
    reason = f"{why}{words}; {line.forwards} forwards"
    choice = PathChoice(NAME, 1, {NAME: seconds / len(directions)}, reason)
    return Differences(slope, curvature, error, line.base, line.lengths, choice, line.forwards)


class _Line(AbstractContextManager["_Line"]):
    """Losses along directions, by distance from w."""

    def __init__(self, objective: Objective, directions: Directions) -> None:
        self.objective, self.directions = objective, directions
        self.dtype = torch.promote_types(objective.dtype, torch.float32)  # half precision resolves no second difference
        self.lengths = np.array([directions.length(index) for index in range(len(directions))])
        self.norm = directions.weight_norm or 1.0
        self.base, self.rounding, self.forwards = math.nan, math.nan, 0
        self._widened, self._sensitivity = False, 0.0
        self._unit, self._tiny = torch.finfo(self.dtype).eps, _TINY
        self._selected: int | None = None
        self._known: dict[tuple[int, float], tuple[float, float]] = {}
        self._block = exact_arithmetic(self.dtype)

    def __enter__(self) -> _Line:
        with left_on_failure(self._block):
            objective = self.objective
            self._replica = streamed_replica(objective, self.dtype) if streams(objective) else objective.replica(self.dtype)
            self._displacement = displacement_of(self._replica)
            self._replica.reset()
            self._replica.settle()  # a second attempt would be recorded beside the first
            narrow = replica_arithmetic(self._replica).narrow
            if narrow is not None:
                self._unit, self._tiny = torch.finfo(narrow).eps, _COARSE
            self._replica.reset()
            before = torch_generators()
            recorded, self.base = self._widened_losses()
            drawn = before != torch_generators()  # which may have no effect at w alone
            if drawn or (recorded != self.base and not math.isnan(self.base)):
                unperturbed_loss(self._replica)  # refuses and says why, unless held pieces round otherwise: hardswish does
        return self

    def __exit__(self, *details: Any) -> None:
        self._block.__exit__(*details)

    def _widened_losses(self) -> tuple[float, float]:
        """L(w) as its pieces are recorded and on them, with a criterion in float64 unless that holds tensors of one dtype."""
        plain = self._replica.criterion
        self._replica.widen_criterion()
        self._branches = Branches()
        try:
            return self._branches.settled(self._loss)
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            if plain is None:
                raise
        self._replica.take_criterion(plain)
        self._branches = Branches()
        return self._branches.settled(self._loss)

    def _loss(self, mode: Callable[[int], AbstractContextManager[None]]) -> float:
        self.forwards += 1
        parts, recording = [], mode == self._branches.recording
        if recording:
            self._sensitivity = 0.0
        for index, weight in enumerate(self.objective.batch_weights):
            with mode(index):
                loss, outputs = self._replica.batch_loss(index)
            parts.append(weight * loss.double())
            self._widened = loss.dtype == torch.float64 != self.dtype
            if recording:
                self._sensitivity += weight / self.objective.samples * output_sensitivity(self._replica, index, outputs)
        return float(torch.stack(parts).sum()) / self.objective.samples

    def differences(self, index: int, distance: float) -> tuple[float, float]:
        """Second and first difference of the loss at w +- distance d / ||d||, evaluated once; both zero for d = 0."""
        if self.lengths[index] == 0:
            return 0.0, 0.0
        if (index, distance) not in self._known:
            plus, minus = self._losses(index, distance)
            self._known[index, distance] = (plus - self.base) + (minus - self.base), (plus - minus) / 2
        return self._known[index, distance]

    def _losses(self, index: int, distance: float) -> list[float]:
        if self._selected != index:
            self._displacement.select(self.directions, index)
            self._selected = index
        losses = []
        for sign in (1, -1):
            self._displacement.write(sign * distance / self.lengths[index])
            losses.append(self._loss(self._branches.held))
        return losses

    def measure_rounding(self) -> None:
        """Deviation of a second difference by rounding, and a mean L(w), from weights moved by a few roundings.

        The rounding of one L(w) would be in all forms alike: half of their error on a ResNet-18. The slope cancels in each pair.
        Whatever the scatter on this processor, a loss is not taken to be better than its dtype, or a narrower one inside,
        allows: rounded once, uniformly, or, where it is a mean taken in float64, the outputs of every sample rounded once and
        carried to their mean.
        """
        tiny = self._tiny * self._unit * self.norm
        moving = np.flatnonzero(self.lengths)
        if not len(moving):
            self.rounding = np.finfo(np.float64).tiny
            return
        pairs = [self._losses(int(moving[pair % len(moving)]), tiny * (1 + pair / 2)) for pair in range(_ROUNDED)]
        centres = np.array([self.base, *(plus / 2 + minus / 2 for plus, minus in pairs)])
        weights = np.array([1.0] + [2.0] * _ROUNDED)  # losses in each
        with np.errstate(invalid="ignore", over="ignore"):
            self.base = float(weights @ centres / weights.sum())
            measured = math.sqrt(float(weights @ (centres - self.base) ** 2) / _ROUNDED)
            moved = self._sensitivity / math.sqrt(self.objective.samples) if self._widened else abs(self.base)
            one = float(np.fmax(measured, self._unit * moved / math.sqrt(12)))
            self.rounding = math.sqrt(2 + 4 / weights.sum()) * one or np.finfo(np.float64).tiny

    @property
    def wanted(self) -> float:
        """Second difference at which rounding and truncation are about equal shares of it."""
        return math.sqrt(self.rounding * max(abs(self.base), self.rounding))

    def search(self, indices: list[int], start: float) -> float:
        """Distance at which the second difference is near the wanted one, trying the directions in turn.

        Steps are powers of 2, so that what was tried is often half of a pair.
        """
        distance, largest = start, _LARGEST * self.norm
        for trial in range(_TRIALS):
            found = abs(self.differences(indices[trial % len(indices)], distance)[0])
            if math.isnan(found) or math.isinf(found):
                distance /= 32
                continue
            factor = math.sqrt(self.wanted / max(found, self.rounding / 10))
            distance = min(distance * 2.0 ** round(math.log2(min(max(factor, 1 / 128), 32.0))), largest)
            if 1 / _NEAR < factor**2 < _NEAR or (distance == largest and factor > 1 and trial):
                break
        return distance

    def at_two(self, index: int, distance: float) -> _Pair:
        """Forms and slope of d / ||d|| from this distance and its double."""
        (near, slope), (far, _) = self.differences(index, distance), self.differences(index, 2 * distance)
        step = distance**2
        return _Pair(near / step, far / (4 * step), slope / distance, self.rounding / step)

    def doubled(self, index: int, distance: float, pair: _Pair) -> _Pair:
        """The pair of twice the distance, of which one half is known."""
        far = self.differences(index, 4 * distance)[0] / (4 * distance) ** 2
        return _Pair(pair.far, far, pair.slope, pair.rounding / 4)

    def halved(self, index: int, distance: float, pair: _Pair) -> _Pair:
        """The pair of half the distance."""
        near, slope = self.differences(index, distance / 2)
        return _Pair(near / (distance / 2) ** 2, pair.near, slope / (distance / 2), pair.rounding * 4)


@dataclass(frozen=True)
class _Pair:
    """Forms from one distance and from its double, and the rounding of the first (a quarter of it in the second)."""

    near: float
    far: float
    slope: float
    rounding: float

    @property
    def truncation(self) -> float:
        """Of ``near``; that of ``far`` is four times it."""
        return (self.far - self.near) / 3

    def best(self, truncation: float) -> tuple[float, float]:
        """Form and error estimate: extrapolated, or from the double distance where rounding dominates.

        ``truncation`` is a bound on that of ``near``.
        """
        extrapolated = max(abs(self.truncation), truncation) + 1.4 * _DEVIATIONS * self.rounding
        doubled = _MARGIN * 4 * truncation + _DEVIATIONS * self.rounding / 4
        return (self.far, doubled) if doubled < extrapolated else (self.near - self.truncation, extrapolated)


_Found = tuple[Array, Array, Array, str]


def _together(line: _Line, count: int, progress: Callable[[int, int], None] | None) -> _Found:
    """One distance for all random directions, truncation from the first few."""
    curvature, slope, error = (np.full(count, math.nan) for _ in range(3))
    checked = list(range(min(_CHECKED, count)))
    line.measure_rounding()
    distance = line.search(checked, _START * line.norm)
    pairs = [line.at_two(index, distance) for index in checked]
    size, relative, rounding = _shares(pairs)
    while rounding > _ROUGH and relative < rounding and distance < _LARGEST * line.norm / 4:
        pairs = [line.doubled(index, distance, pair) for index, pair in zip(checked, pairs, strict=True)]
        distance *= 2
        size, relative, rounding = _shares(pairs)
    while relative / 4 > _ROUGH and 16 * rounding < relative:
        pairs = [line.halved(index, distance, pair) for index, pair in zip(checked, pairs, strict=True)]
        distance /= 2
        size, relative, rounding = _shares(pairs)
    for index, pair in zip(checked, pairs, strict=True):
        slope[index] = pair.slope
        curvature[index], error[index] = pair.best(relative * max(abs(pair.far), size))
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


def _shares(pairs: list[_Pair]) -> tuple[float, float, float]:
    """RMS form, and the largest truncation and the rounding of the nearer distance relative to it."""
    size = _rms(np.array([pair.far for pair in pairs]))
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.array([abs(pair.truncation) / np.fmax(abs(pair.far), size) for pair in pairs])
        relative = float(np.fmax.reduce(shares, initial=0.0))
        return size, relative, float(np.float64(pairs[0].rounding) / size)


def _balanced(truncation: float, rounding: float) -> float:
    """Factor on the step that makes the truncation (as its square) and the rounding (as its inverse) equal, within 1/8 and 2."""
    if not (truncation > 0 and rounding > 0 and math.isfinite(truncation) and math.isfinite(rounding)):
        return 1.0
    return min(max(math.sqrt(math.sqrt(rounding / truncation)), 0.125), 2.0)


def _one_by_one(line: _Line, count: int, progress: Callable[[int, int], None] | None) -> _Found:
    """Every direction at its own distance, with Richardson's extrapolation."""
    curvature, slope, error = (np.full(count, math.nan) for _ in range(3))
    line.measure_rounding()
    distance = _START * line.norm
    for index in range(count):
        distance = line.search([index], distance)
        pair = line.at_two(index, distance)
        slope[index] = pair.slope
        wider = line.doubled(index, distance, pair)  # one truncation of one direction may vanish by chance
        truncation = float(np.fmax(abs(pair.truncation), abs(wider.truncation) / 4))
        curvature[index], error[index] = pair.best(truncation)
        if progress is not None:
            progress(index + 1, count)
    return *_of_lengths(line, curvature, slope, error), "two forwards at three distances for every direction, extrapolated"


def _of_lengths(line: _Line, curvature: Array, slope: Array, error: Array) -> tuple[Array, Array, Array]:
    """From unit directions to those of their own length."""
    squares = line.lengths**2
    return curvature * squares, slope * line.lengths, error * squares


def _rms(values: Array) -> float:
    kept = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(kept**2))) if len(kept) else math.nan


def _refuse(curvature: Array, error: Array, dtype: torch.dtype, *, exact: bool) -> None:
    """Refuse errors near the forms themselves; what is not finite is a result. ``exact``: another path may follow the model."""
    share, size = _rms(error), _rms(curvature)
    if share > _LARGEST_ERROR * size and size > 0:
        remedy = "method=None for exact forms" if exact else "products of fs.hessian(objective)"
        remedy += "" if dtype == torch.float64 else ", or an objective with dtype=torch.float64"
        raise ValueError(
            f"method='forwards' must resolve the forms, got an estimated error of {share / size:.0%} of the RMS form; "
            f"use {remedy}"
        )
