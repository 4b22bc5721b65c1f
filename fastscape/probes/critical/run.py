"""Work of the critical sharpness in order, and its result at any time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscape._checks import counted, first_line
from fastscape.curvature.forms.quadratic import quadratic_forms
from fastscape.directions import Directions
from fastscape.evaluation.arithmetic import measured_in
from fastscape.evaluation.influence import STILL
from fastscape.numerics.estimate import Estimate, unknown
from fastscape.objective.objective import Objective, untrained
from fastscape.probes.critical.losses import StepLosses
from fastscape.probes.critical.result import CriticalSharpnessResult
from fastscape.probes.critical.search import Limits, Outcome, Tried, bracket, crossing, inverse, next_step, outcome
from fastscape.probes.critical.update import Asked, Update
from fastscape.runs.anytime import Anytime, Deadline
from fastscape.runs.budget import Budget
from fastscape.runs.progress import Progress, reporter
from fastscape.runs.provenance import objective_meta

_REACH = 100.0  # times ||w||: the farthest that a loss is followed while it does not rise
_BEYOND = 1e6  # guesses, where the weights are zero
_FORM = 12.0  # forwards that a quadratic form is taken to need
_USUAL = 6  # steps, for the progress
_NO_TIME = "no directional curvature: it does not fit into the budget"
_NONE = Estimate(math.nan, math.nan, (math.nan, math.nan), 0)


@dataclass(frozen=True)
class Goals:
    """Request of the user; see :func:`fastscape.critical_sharpness`."""

    guess: float | None
    tolerance: float
    curvature: bool
    dtype: torch.dtype


class CriticalRun:
    """One run; its attributes hold what is known, whatever ends it."""

    def __init__(
        self,
        objective: Objective,
        goals: Goals,
        budget: Budget,
        name: str,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.objective, self.goals, self.name = objective, goals, name
        self.work = Anytime(budget)  # a unit is a forward of all data
        self.tried: list[Tried] = []
        self.update: Update | None = None
        self.limits: Limits | None = None
        self.loss = self.slope = self.curvature = self.error = self.noise = math.nan
        self.notes: list[str] = [words] if (words := untrained(objective)) else []
        self._counts: dict[str, Any] = {"steps": 0, "evaluations": 0, "gradients": 0}
        self._unit, self._count = "samples", 0
        self._report = reporter(progress)

    def run(self, asked: Asked) -> None:
        """Everything, until it ends; :attr:`work` has the reason."""
        with self.work.ends(lambda: self.tried, errors=lambda _: self.tried):
            loss, self.update = asked.make()
            self._counts["gradients"] = int(asked.update is None)
            if self.update is None:
                self.loss = self.objective.loss() if asked.relative_to is not None else loss
                return
            self._search(self.update)
            if self.goals.curvature and math.isfinite(self.loss):
                self._curve(self.update)

    def _search(self, update: Update) -> None:
        with StepLosses(self.objective, update.tensors, self.goals.dtype) as losses:
            try:
                self.loss, self.noise = losses.loss, losses.noise
                self._unit, self._count = losses.unit, losses.count
                if math.isfinite(self.loss):
                    self.limits = self._within(update, losses.farthest)
                    for eta in self.work.stream(self._steps(self.limits), losses.seconds, "step"):
                        self.tried.append(losses.at(eta))
                        self._tell()
            finally:
                self._counts |= {"steps": losses.steps, "evaluations": losses.evaluations}

    def _within(self, update: Update, farthest: float) -> Limits:
        guess = self.goals.guess or update.guess
        size = self.objective.norm / update.norm
        smallest = torch.finfo(self.goals.dtype).eps * (size or guess)
        largest = min(max(_REACH * size or _BEYOND * guess, 2 * guess), farthest)
        return Limits(guess, smallest, largest, self.goals.tolerance)

    def _steps(self, limits: Limits) -> Iterator[float]:
        while (eta := next_step(self.tried, limits)) is not None:
            yield eta

    def _tell(self) -> None:
        if self._report is not None:
            done = len(self.tried)
            share = min(done / _USUAL, 0.95)
            self._report(Progress.under(self.work.budget, self.name, share, unit="step", done=done))

    def _curve(self, update: Update) -> None:
        """U'Hu / u'u and g'u; what fails is noted."""
        if not self.work.fits(_FORM * self.work.unit):
            self.notes.append(_NO_TIME)
            return
        named: Mapping[str, Tensor] = dict(zip(self.objective.names, update.tensors, strict=True))
        try:
            found = quadratic_forms(self.objective, Directions.given(self.objective, named))
        except Deadline:
            self.notes.append(_NO_TIME)
            return
        except (ValueError, RuntimeError, NotImplementedError) as error:
            self.notes.append(f"no directional curvature: {type(error).__name__}: {first_line(error)[:120]}")
            return
        self.curvature, self.slope = float(found.curvature[0]), float(found.slope[0]) * update.norm
        self.error = 0.0 if found.error is None else float(found.error[0])
        self._counts["curvature_path"] = found.path.name

    # ------------------------------------------------------------------ the result

    def result(self, settings: Mapping[str, Any], step: int | None) -> CriticalSharpnessResult:
        """What is known."""
        arithmetic = measured_in(self.objective, self.goals.dtype)
        nothing: tuple[Estimate, Outcome] = unknown(self._count), "unfinished"
        root, found = self.work.analysed(self._root, nothing)
        norm = math.nan if self.update is None else self.update.norm
        size = self.objective.norm
        return CriticalSharpnessResult(
            name=self.name,
            step=step,
            outcome=found,
            eta_c=root,
            lambda_c=_NONE if math.isnan(root.value) else inverse(root),
            bracket=self._bracket(found),
            loss=self.loss,
            update="" if self.update is None else self.update.words,
            rate=None if self.update is None else self.update.rate,
            norm=norm,
            relative_norm=norm / size if size else math.inf,
            slope=self.slope,
            curvature=self.curvature,
            curvature_error=self.error,
            steps=np.array([each.eta for each in self.tried]),
            differences=np.array([each.difference for each in self.tried]),
            stderr=np.array([each.stderr for each in self.tried]),
            decided=np.array([each.decided for each in self.tried], dtype=bool),
            noise=self.noise,
            meta=objective_meta(self.objective)
            | arithmetic.meta
            | self._counts
            | {
                "settings": dict(settings),
                "precision": str(self.goals.dtype)[6:],
                "errors_over": self._unit,
                "seconds": self.work.budget.elapsed,
                "stop_reason": self.work.reason,
            },
            notes=(*arithmetic.notes, *self.notes, *(() if self.update is None else self.update.notes), *self._remarks()),
        )

    def _bracket(self, found: Outcome) -> tuple[float, float]:
        """Steps between which the loss comes to exceed L(w); below where it rises at once is rounding."""
        lower, upper = bracket(self.tried)
        if found == "rises at once":
            return 0.0, min(each.eta for each in self.tried if each.resolved)
        return 0.0 if lower is None else lower.eta, math.inf if upper is None else upper.eta

    def _root(self) -> tuple[Estimate, Outcome]:
        if not math.isfinite(self.loss):
            return _NONE, "undefined"
        if self.limits is None:
            return _NONE, "unfinished"
        root = crossing(self.tried, self._count)
        found = outcome(self.tried, self.limits, root)
        shown = root is not None and found in ("found", "undecided", "unfinished")
        return (root if shown and root is not None else _NONE), found

    def _remarks(self) -> Iterator[str]:
        if self.tried and not any(each.difference for each in self.tried):
            yield STILL
        rises, falls = (
            sum(not math.isfinite(each.difference) and each.rises == up for each in self.tried) for up in (True, False)
        )
        if rises:
            yield f"{counted(rises, 'step')} with a NaN or infinite loss, taken as a rise"
        if falls:
            yield f"{counted(falls, 'step')} with a loss of minus infinity, taken as a fall"
        if self.tried and all(math.isnan(each.stderr) for each in self.tried):
            yield "no standard errors: the criterion gives no loss per sample, and there is a single batch"
        elif self.tried and self._unit == "batches":
            yield f"standard errors are over the {self._count} batches: the criterion gives no loss per sample"
        if self.limits is not None and (ends := bracket(self.tried))[0] is not None and ends[1] is not None:
            lower, upper = ends[0].eta, ends[1].eta
            wide = upper - lower > self.goals.tolerance * (upper + lower)
            if wide and self.work.reason == "complete" and not (ends[0].resolved or ends[1].resolved):
                yield f"the bisection ended within rounding of a difference, {self.noise:.1e}; a wider precision= resolves more"
