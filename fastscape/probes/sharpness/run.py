"""Stages of the sharpness probe in order, and its result at any time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastscape._checks import first_line
from fastscape._clock import now
from fastscape._state import exact_arithmetic
from fastscape.curvature.operator import hessian
from fastscape.evaluation.agreement import check_same_function
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.noise import SIGNAL_TO_NOISE, rounding
from fastscape.evaluation.samples import groups_of
from fastscape.objective.objective import Objective
from fastscape.objective.replica import Replica
from fastscape.probes.sharpness.ascent import Ascent, ascend
from fastscape.probes.sharpness.balls import BallLoss, Balls, Variant
from fastscape.probes.sharpness.quadratic_model import ModelMaximum, maximise_model
from fastscape.runs.anytime import Anytime, Deadline
from fastscape.runs.budget import Budget
from fastscape.runs.evaluations import Evaluations

_PILOTS = 2  # pairs of random points that tell the size of the average case
_PRODUCT = 4.0  # gradients that a Hessian product takes, with choosing how: 3.4 on a perceptron of 4e6 parameters
_NO_TIME = "its products do not fit into the budget"
_FAR = 1 << 31  # index of the first random start: far from the points of the average case


@dataclass(frozen=True)
class Goals:
    """Request of the user; see :func:`fastscape.sharpness`."""

    epsilon: float
    variant: Variant
    m: int | None
    restarts: int
    steps: int
    samples: int
    products: int
    eta: float
    seed: int
    precision: torch.dtype | None


@dataclass
class Group:
    """State of one group of samples: ``weight`` is its share of the terms."""

    weight: float
    ascents: list[Ascent]
    base: float = math.nan
    first_order: float = math.nan
    model: ModelMaximum | None = None

    @property
    def worst(self) -> float:
        """The best of all points: 0, at w itself, or more; NaN where every value was NaN."""
        known = [ascent.best for ascent in self.ascents if ascent.best > -math.inf]
        if known or not any(ascent.nonfinite for ascent in self.ascents):
            return max([0.0, *known])
        return math.nan


class SharpnessRun:
    """One run; its attributes hold what is known, whatever ends it."""

    def __init__(self, objective: Objective, goals: Goals, budget: Budget, evaluations: Evaluations) -> None:
        self.objective, self.goals = objective, goals
        self._ball = (goals.variant, goals.epsilon, goals.eta, goals.m)
        self.work = Anytime(budget, evaluations=evaluations)  # a unit is a gradient of the whole data
        self.groups: list[Group] = []
        self.starts: tuple[str, ...] = ()
        self.random: list[float] = []
        self.loss = math.nan
        self.noise = {torch.float32: math.nan, torch.float64: math.nan}
        self.dtypes: dict[str, torch.dtype] = {}
        self.fixed: tuple[str, ...] = ()
        self.notes: list[str] = []
        self.evaluations = self.products = 0
        self.began = now()
        self.path: str | None = None

    def run(self) -> None:
        """Everything, until it ends; :attr:`work` has the reason."""
        with self.work.ends(self._known, errors=self._known):
            self._choose()
            self._average()
            self._worst()
            self.work.need()

    def _known(self, _error: Exception | None = None) -> bool:
        return not math.isnan(self.loss) or len(self.groups) > 0

    # ------------------------------------------------------------------ arithmetic

    @contextmanager
    def _prepared(
        self, objective: Objective, dtype: torch.dtype, balls: Balls, group: int = -1
    ) -> Iterator[tuple[Replica, BallLoss]]:
        kept = self.work.evaluations.of(*self._ball, group, str(dtype))
        with exact_arithmetic(dtype):
            replica = objective.replica(dtype)
            check_same_function(replica)
            try:
                replica.reset()
                yield replica, BallLoss(replica, balls.scale, self.goals.epsilon, float(replica.loss()), kept)
            finally:
                self.evaluations += replica.evaluations

    def _balls(self, dtype: torch.dtype) -> Balls:
        balls = Balls(self.objective, self.goals.variant, self.goals.eta, dtype)
        self.fixed = balls.fixed
        return balls

    def _choose(self) -> None:
        """The gate, and the dtype of each part: the model's where its differences stand above rounding."""
        own = torch.float64 if self.objective.dtype == torch.float64 else torch.float32
        wanted, balls = self.goals.precision or own, self._balls(self.goals.precision or own)
        with self._prepared(self.objective, wanted, balls) as (replica, function):
            self.loss = self.work.evaluations.same_loss(unperturbed_loss(replica))
            self.noise[wanted] = noise = rounding(replica)
            self.dtypes = dict.fromkeys(("worst", "random"), wanted)
            if wanted == torch.float64 or self.goals.precision is not None:
                return
            gradient = function.value_and_gradient(torch.zeros_like(balls.scale))[1]
            rise = function.value(balls.unit(gradient))
            typical = np.mean([self._pair(function, balls, index) for index in range(_PILOTS)])
        for part, size in (("worst", rise), ("random", float(typical))):
            if abs(size) < SIGNAL_TO_NOISE * noise:  # not of NaN: more digits would not help
                self.dtypes[part] = torch.float64
        wide = [part for part, dtype in self.dtypes.items() if dtype != wanted]
        if wide and not self._runs_in_float64():
            self.dtypes = dict.fromkeys(self.dtypes, wanted)
        elif wide:
            parts = {"worst": "the worst case", "random": "the average case"}
            self.notes.append(
                f"{' and '.join(parts[part] for part in wide)} in float64: differences of {str(wanted)[6:]} losses would drown "
                f"in rounding noise of {noise:.1e}"
            )

    def _runs_in_float64(self) -> bool:
        """Whether the model can be evaluated in float64; a note says why not."""
        try:
            with self._prepared(self.objective, torch.float64, self._balls(torch.float64)):
                return True
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:  # such as a dtype that the model fixes
            why = f"{type(error).__name__}: {first_line(error)[:120]}"
            self.notes.append(f"differences may drown in rounding noise, and the model cannot run in float64: {why}")
            return False

    # ------------------------------------------------------------------ the parts

    def _average(self) -> None:
        dtype, goals = self.dtypes["random"], self.goals
        balls = self._balls(dtype)
        with self._prepared(self.objective, dtype, balls) as (replica, function):
            if math.isnan(self.noise[dtype]):
                self.noise[dtype] = rounding(replica)
            took = 0.0
            for index in range(goals.samples // 2):
                if index >= _PILOTS and not self.work.fits(took):
                    self.notes.append(f"{len(self.random)} of {goals.samples} random points were evaluated (deadline)")
                    return
                began = now()
                self.random += self._pair(function, balls, index)
                took = now() - began

    def _pair(self, function: BallLoss, balls: Balls, index: int) -> list[float]:
        """Rises at u and -u: what is odd in u cancels in their mean, and with it nearly all of the variance."""
        point = balls.random(self.goals.seed, index)
        return [function.value(point), function.value(-point)]

    def _worst(self) -> None:
        goals, dtype = self.goals, self.dtypes["worst"]
        objectives = [self.objective] if goals.m is None else groups_of(self.objective, goals.m)
        balls = self._balls(dtype)
        model = ("quadratic model",) if goals.products else ()
        kinds = ("first order", *model)[: goals.restarts]
        self.starts = (*kinds, *["random"] * (goals.restarts - len(kinds)))
        empty = goals.steps + 1
        self.groups = [
            Group(of.samples / self.objective.samples, [Ascent(np.full(empty, np.nan)) for _ in self.starts]) for of in objectives
        ]
        for index, (of, group) in enumerate(zip(objectives, self.groups, strict=True)):
            if index and not self.work.fits():
                self.notes.append(f"{len(objectives) - index} of {len(objectives)} groups were not optimised and count as 0")
                return
            self._climb(of, group, balls, index)

    def _climb(self, objective: Objective, group: Group, balls: Balls, number: int) -> None:
        goals, dtype = self.goals, self.dtypes["worst"]
        with self._prepared(objective, dtype, balls, number) as (replica, function):
            if math.isnan(self.noise[dtype]):
                self.noise[dtype] = rounding(replica)
            began = now()
            gradient = function.value_and_gradient(torch.zeros_like(balls.scale))[1]
            self.work.unit = now() - began
            group.base, group.first_order = function.base, balls.dual_norm(gradient)
        if goals.products:
            group.model = self._model(objective, gradient, balls, number)
        with self._prepared(objective, dtype, balls, number) as (_, function):
            for index, kind in enumerate(self.starts):
                if index and not self.work.fits():
                    return
                start = self._start(kind, group, gradient, balls, index + number * goals.restarts)
                ascend(
                    function.value_and_gradient,
                    balls,
                    start,
                    goals.steps,
                    stop=lambda: not self.work.fits(),
                    found=group.ascents[index],
                )

    def _start(self, kind: str, group: Group, gradient: Tensor, balls: Balls, number: int) -> Tensor:
        """A point of the balls; random where the kind has none: a zero gradient, or a model that was not finite."""
        point: Tensor | None = None
        if kind == "first order":
            point = balls.unit(gradient)
        elif kind == "quadratic model" and group.model is not None and group.model.point is not None:
            point = group.model.point.to(gradient.dtype)
        if point is None or not bool(point.any()):
            point = balls.random(self.goals.seed, _FAR + number)
        return point

    def _model(self, objective: Objective, gradient: Tensor, balls: Balls, number: int) -> ModelMaximum | None:
        """The maximum of the quadratic model, or ``None`` where the Hessian cannot be multiplied."""
        goals = self.goals
        if not bool(gradient.isfinite().all()) or not self.work.fits():
            return None
        seconds = _PRODUCT * goals.products * self.work.unit
        ascent = (goals.steps + 1) * self.work.unit  # comes before it
        if not self.work.fits(seconds, ascent):
            return self._without_model(_NO_TIME)
        try:
            with self.work.budget.part(ascent).limiting():
                operator = hessian(objective.cast(gradient.dtype), method=self.path, distributed=False)  # type: ignore[arg-type]
                operator.recorded(self.work.evaluations.of("model", *self._ball, number))
                found = maximise_model(operator, gradient, balls, goals.epsilon, goals.products, goals.seed)
        except Deadline:
            return self._without_model(_NO_TIME)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            return self._without_model(f"{type(error).__name__}: {first_line(error)[:120]}")
        if self.path is None and operator.choice is not None:
            self.path = operator.choice.name  # of the first group: choosing takes longer than a group's products
        self.products += found.products
        self.notes += [note for note in operator.notes if note not in self.notes]
        return found

    def _without_model(self, why: str) -> ModelMaximum | None:
        words = f"no quadratic model: {why}"
        if words not in self.notes:
            self.notes.append(words)
        return None
