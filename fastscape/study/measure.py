"""Measurements of a study at one state of one run, each part under its share of the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastscape._checks import first_line
from fastscape.objective.objective import Objective
from fastscape.probes.multifractal.description import AnalysisSettings
from fastscape.probes.multifractal.probe import multifractal
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.probes.sharpness.probe import sharpness
from fastscape.probes.signature.result import Signature
from fastscape.probes.slices.probe import slice1d, slice2d
from fastscape.probes.spectrum.probe import spectrum
from fastscape.probes.temperature.probe import temperature
from fastscape.runs.optimizers import OptimizerState
from fastscape.study.plan import Architecture, Plan

SIGNED = ("spectrum", "slice", "sharpness", "temperature")  # parts behind a signature
RUNNING = ("spectrum", "slice", "sharpness")  # those that are measured by running statistics as well
_SHARES = {
    "spectrum": 0.5,
    "slice": 0.2,
    "sharpness": 0.2,
    "temperature": 0.1,
}  # of the plan's seconds; plane and measure come on top
_RADII = tuple(np.geomspace(1e-4, 1e-1, 6).tolist())  # of the multifractal summary, relative to the weights
_DIRECTIONS = 16  # moments carried by fewer than ten directions are biased


class Measurement:
    """Measures states of one run; what raises leaves a note and none of its numbers.

    Args:
        plan, architecture: of the study.
        optimizer: of the run, for temperature and stability.
        population: training samples that minibatches are drawn from.
        method: of the curvature products, see :func:`fastscape.hessian`; ``None`` to find it at every state.
        report: called with what is being measured, in words.
    """

    def __init__(
        self,
        plan: Plan,
        architecture: Architecture,
        optimizer: OptimizerState,
        population: int,
        *,
        method: str | None,
        report: Callable[[str], None],
    ) -> None:
        self._plan, self._architecture, self._optimizer, self._population = plan, architecture, optimizer, population
        self._path, self._report = method, report
        self.notes: list[str] = []

    def signed(self, objective: Objective, when: str, step: int) -> tuple[Signature, dict[str, Any]]:
        """Signature of a state and the results behind it, by name; of the function that was trained."""
        return self._measured(objective.trained(), SIGNED, when, f"{self._architecture.name}, {when}", step)

    def running(self, objective: Objective, when: str, step: int) -> tuple[dict[str, Signature], dict[str, Any]]:
        """The same by running statistics, of networks that keep them: what is not of training."""
        if not objective.tracking:
            return {}, {}
        name = f"{self._architecture.name}, {when}, running statistics"
        signature, found = self._measured(objective.normalised("running"), RUNNING, f"{when}.running", name, step)
        return {when: signature}, found

    def _measured(
        self, objective: Objective, kinds: Sequence[str], when: str, name: str, step: int
    ) -> tuple[Signature, dict[str, Any]]:
        plan = self._plan
        found: dict[str, Any] = {}
        why: dict[str, str] = {}
        shared: dict[str, Any] = {"name": name, "step": step}
        moves = self._optimizer if "temperature" in kinds else None  # of the function that was trained alone
        budget = {part: share * plan.seconds for part, share in _SHARES.items()}
        parts: dict[str, Callable[[], Any]] = {
            "spectrum": lambda: spectrum(
                objective, plan.k, budget=budget["spectrum"], optimizer=moves, method=self._path, distributed=False, **shared
            ),
            "slice": lambda: slice1d(
                objective,
                count=plan.lines,
                points=plan.line_points,
                radius=plan.radius,
                method="loop",
                budget=budget["slice"],
                **shared,
            ),
            "sharpness": lambda: sharpness(objective, plan.epsilon, budget=budget["sharpness"], **shared),
            "temperature": lambda: temperature(
                objective,
                batch_size=self._architecture.batch_size,
                optimizer=self._optimizer,
                population=self._population,
                spectrum=found.get("spectrum"),
                budget=budget["temperature"],
                **shared,
            ),
        }
        for part in kinds:
            result, reason = self._attempt(f"{part}, {when}", parts[part])
            if reason:
                why[part] = reason
            else:
                found[part] = result
        signature = Signature.of(*found.values(), name=name, step=step, missing=why)
        return signature, {f"{when}.{part}": result for part, result in found.items()}

    def plane(self, objective: Objective, when: str, step: int) -> dict[str, Any]:
        """The 2D slice of a state, of the function that was trained."""
        plan, objective = self._plan, objective.trained()
        result, reason = self._attempt(
            f"plane, {when}",
            lambda: slice2d(
                objective,
                radius=plan.radius,
                points=plan.plane,
                budget=2 * plan.seconds,
                name=f"{self._architecture.name}, {when}",
                step=step,
            ),
        )
        return {} if reason else {f"{when}.plane": result}

    def multifractal(self, objective: Objective, when: str) -> dict[str, Any]:
        """The multifractal result of a state, of the function that was trained."""
        objective = objective.trained()
        result, reason = self._attempt(
            f"multifractal probe, {when}",
            lambda: multifractal(
                objective,
                ProbeSettings(radii=_RADII, count=_DIRECTIONS, banks=1),
                AnalysisSettings(permutations=199, bootstrap=400),
                budget=self._plan.seconds,
                name=f"{self._architecture.name}, {when}",
                distributed=False,
            ),
        )
        return {} if reason else {f"{when}.multifractal": result}

    def _attempt(self, what: str, measure: Callable[[], Any]) -> tuple[Any, str]:
        """A result, or why there is none."""
        self._report(what)
        try:
            return measure(), ""
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            self.notes.append(f"{what} failed: {reason}")
            return getattr(error, "partial", None), reason
