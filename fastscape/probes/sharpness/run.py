"""Stages of the sharpness probe in order, and its result at any time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastscape._checks import counted, first_line
from fastscape._clock import now
from fastscape._state import exact_arithmetic
from fastscape.curvature.operator import hessian
from fastscape.evaluation.agreement import check_same_function
from fastscape.evaluation.arithmetic import arithmetic, measured_in
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.influence import STILL
from fastscape.evaluation.noise import SIGNAL_TO_NOISE, rounding
from fastscape.evaluation.samples import groups_of
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate
from fastscape.numerics.positive import skewed_mean, useful
from fastscape.objective.objective import Objective
from fastscape.objective.replica import Replica
from fastscape.probes.sharpness.ascent import Ascent, ascend
from fastscape.probes.sharpness.balls import BallLoss, Balls, Variant
from fastscape.probes.sharpness.quadratic_model import ModelMaximum, maximise_model
from fastscape.probes.sharpness.result import SharpnessResult
from fastscape.runs.budget import Budget
from fastscape.runs.provenance import objective_meta

_PILOTS = 2  # pairs of random points that tell the size of the average case
_ADDS_UP = 1e-4  # relative deviation of the mean over groups from the loss; float32 leaves 1e-6
_PRODUCT = 4.0  # gradients that a Hessian product takes, with choosing how: 3.4 on a perceptron of 4e6 parameters
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

    def __init__(self, objective: Objective, goals: Goals, budget: Budget) -> None:
        self.objective, self.goals, self.budget = objective, goals, budget
        self.groups: list[Group] = []
        self.starts: tuple[str, ...] = ()
        self.random: list[float] = []
        self.loss = math.nan
        self.noise = {torch.float32: math.nan, torch.float64: math.nan}
        self.dtypes: dict[str, torch.dtype] = {}
        self.fixed: tuple[str, ...] = ()
        self.notes: list[str] = []
        self.evaluations = self.products = 0
        self._began = now()
        self._unit = 0.0  # seconds of a gradient of the whole data
        self._path: str | None = None

    def run(self) -> str:
        """Everything; returns the reason to stop."""
        try:
            self._choose()
            self._average()
            self._worst()
        except KeyboardInterrupt:
            if math.isnan(self.loss) and not self.groups:
                raise
            return "interrupted"
        return "complete" if self._fits() else "deadline"

    # ------------------------------------------------------------------ arithmetic

    @contextmanager
    def _prepared(self, objective: Objective, dtype: torch.dtype, balls: Balls) -> Iterator[tuple[Replica, BallLoss]]:
        with exact_arithmetic(dtype):
            replica = objective.replica(dtype)
            check_same_function(replica)
            try:
                replica.reset()
                yield replica, BallLoss(replica, balls.scale, self.goals.epsilon, float(replica.loss()))
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
            self.loss = unperturbed_loss(replica)
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
                if index >= _PILOTS and not self.budget.admits(took):
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
            if index and not self._fits():
                self.notes.append(f"{len(objectives) - index} of {len(objectives)} groups were not optimised and count as 0")
                return
            self._climb(of, group, balls, index)

    def _climb(self, objective: Objective, group: Group, balls: Balls, number: int) -> None:
        goals, dtype = self.goals, self.dtypes["worst"]
        with self._prepared(objective, dtype, balls) as (replica, function):
            if math.isnan(self.noise[dtype]):
                self.noise[dtype] = rounding(replica)
            began = now()
            gradient = function.value_and_gradient(torch.zeros_like(balls.scale))[1]
            self._unit = now() - began
            group.base, group.first_order = function.base, balls.dual_norm(gradient)
        if goals.products:
            group.model = self._model(objective, gradient, balls)
        with self._prepared(objective, dtype, balls) as (_, function):
            for index, kind in enumerate(self.starts):
                if index and not self._fits():
                    return
                start = self._start(kind, group, gradient, balls, index + number * goals.restarts)
                ascend(function.value_and_gradient, balls, start, goals.steps, stop=self._late, found=group.ascents[index])

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

    def _model(self, objective: Objective, gradient: Tensor, balls: Balls) -> ModelMaximum | None:
        """The maximum of the quadratic model, or ``None`` where the Hessian cannot be multiplied."""
        goals = self.goals
        if not bool(gradient.isfinite().all()) or not self._fits():
            return None
        seconds = _PRODUCT * goals.products * self._unit
        if not self.budget.admits(seconds, (goals.steps + 1) * self._unit):  # one ascent comes before it
            words = "no quadratic model: its products do not fit into the budget"
            if words not in self.notes:
                self.notes.append(words)
            return None
        try:
            operator = hessian(objective.cast(gradient.dtype), path=self._path)  # type: ignore[arg-type]
            found = maximise_model(operator, gradient, balls, goals.epsilon, goals.products, goals.seed)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            words = f"no quadratic model: {type(error).__name__}: {first_line(error)[:120]}"
            if words not in self.notes:
                self.notes.append(words)
            return None
        if self._path is None and operator.choice is not None:
            self._path = operator.choice.name  # of the first group: choosing takes longer than a group's products
        self.products += found.products
        self.notes += [note for note in operator.notes if note not in self.notes]
        return found

    def _late(self) -> bool:
        return not self._fits()

    def _fits(self) -> bool:
        return self.budget.admits(self._unit)

    # ------------------------------------------------------------------ the result

    def result(self, stop_reason: str, name: str, step: int | None) -> SharpnessResult:
        """Result of what is known."""
        goals, groups, average = self.goals, self.groups, self._average_case()
        weights = np.array([group.weight for group in groups])
        worst = np.array([group.worst for group in groups])
        # A random point of all data bounds the mean over groups from below as well.
        known = [value for value in self.random if not math.isnan(value)]
        at_weights = self.loss - self.loss  # 0, or NaN where the loss is not finite
        mean = float(weights @ worst) if len(groups) else at_weights
        parts = {part: measured_in(self.objective, dtype) for part, dtype in self.dtypes.items()}
        words = {part: of.meta["arithmetic"] for part, of in parts.items()}
        same = len(set(words.values())) == 1
        described = words["worst"] if same else "; ".join(f"{part}: {found}" for part, found in words.items())
        settings = dataclasses.asdict(goals) | {"precision": None if goals.precision is None else str(goals.precision)[6:]}
        return SharpnessResult(
            name=name,
            step=step,
            variant=goals.variant,
            epsilon=goals.epsilon,
            loss=self.loss,
            worst=mean if math.isnan(mean) else max([mean, *known]),
            random=average,
            first_order=self._mean([group.first_order for group in groups]),
            quadratic=self._mean([math.nan if group.model is None else group.model.value for group in groups]),
            quadratic_bound=self._mean([math.nan if group.model is None else group.model.bound for group in groups]),
            restarts=self._over_groups([[ascent.best for ascent in group.ascents] for group in groups], len(self.starts)),
            starts=self.starts,
            curves=self._over_groups([[a.values for a in group.ascents] for group in groups], len(self.starts)),
            random_rises=np.array(self.random),
            m=goals.m,
            group_worst=worst,
            nonfinite=sum(a.nonfinite for group in groups for a in group.ascents) + int((~np.isfinite(self.random)).sum()),
            noise=self.noise[self.dtypes.get("worst", torch.float64)],
            meta=objective_meta(self.objective)
            | {
                "seed": goals.seed,
                "settings": settings,
                "arithmetic": described,
                "precision": {part: str(dtype)[6:] for part, dtype in self.dtypes.items()},
                "rounding_noise": {part: self.noise[dtype] for part, dtype in self.dtypes.items()},
                "evaluations": self.evaluations,
                "products": self.products,
                "product_path": self._path,
                "groups": len(groups),
                "seconds": now() - self._began,
                "stop_reason": stop_reason,
            },
            notes=(*dict.fromkeys(note for part in parts.values() for note in part.notes), *self.notes, *self._remarks()),
        )

    def _average_case(self) -> Estimate:
        """Mean over pairs; NaN where steps inside the model, as of an autocast, are as large as what it averages."""
        found = useful(skewed_mean(np.array(self.random[: len(self.random) // 2 * 2]).reshape(-1, 2).mean(axis=1)), "pair")
        dtype = self.dtypes.get("random")
        inside = None if dtype is None else arithmetic(self.objective, dtype)
        stepped = inside is not None and not inside.plain
        least = SIGNAL_TO_NOISE * self.noise.get(dtype, math.nan) / math.sqrt(max(found.n, 1)) if dtype is not None else 0.0
        if stepped and abs(found.value) < least:
            remedy = "take a larger epsilon"
            if inside is not None and inside.autocast is not None and not inside.dropped:
                remedy = "precision='float64' measures without an autocast"
            self.notes.append(
                f"the average case is withheld: a rise of {found.value:.1e} is within 10 times the error of the model's own "
                f"roundings, {least / SIGNAL_TO_NOISE:.1e}; {remedy}"
            )
            return Estimate(
                math.nan, math.nan, (math.nan, math.nan), found.n, withheld="within the error of the model's own roundings"
            )
        return found

    def _remarks(self) -> Iterator[str]:
        if self.fixed:
            names = ", ".join(self.fixed[:3]) + (" ..." if len(self.fixed) > 3 else "")
            yield f"{counted(len(self.fixed), 'parameter')} at zero never moved: {names}"
        seen = [*self.random, *(value for group in self.groups for ascent in group.ascents for value in ascent.values)]
        if 0.0 in seen and not any(value for value in seen if not math.isnan(value)):
            yield STILL
        if self.goals.m is not None and self.objective.batch_norm == "batch":
            yield "batch norm takes the statistics of every group of m samples"
        elif abs(self._mean([group.base for group in self.groups]) - self.loss) > _ADDS_UP * abs(self.loss):  # not of NaN
            yield "the losses of the groups do not average to that of the data: its samples are not the rows of its batches"

    def _mean(self, values: list[float]) -> float:
        """Over groups, weighted by terms."""
        return float(sum(group.weight * value for group, value in zip(self.groups, values, strict=True))) if values else math.nan

    def _over_groups(self, values: object, starts: int) -> Array:
        """Weighted mean over groups of ``[groups, starts, ...]``; -inf, where nothing was found, becomes NaN."""
        table = np.array(values, dtype=np.float64)
        if not table.size:
            return np.full(starts, np.nan)
        with np.errstate(invalid="ignore"):
            weights = np.array([group.weight for group in self.groups])
            mean: Array = np.tensordot(weights, np.where(np.isneginf(table), np.nan, table), axes=1)
        return mean
