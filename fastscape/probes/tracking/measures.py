"""Measures of a tracker at one step: numbers by name, from the probes, within the seconds allotted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastscape._checks import first_line, listed
from fastscape._state import preserved_rng
from fastscape.curvature.flat import square
from fastscape.curvature.slopes import DETACHED
from fastscape.numerics.estimate import Estimate
from fastscape.numerics.positive import shown_ends
from fastscape.objective.objective import Objective, untrained
from fastscape.probes.critical.probe import critical_sharpness
from fastscape.probes.multifractal.probe import multifractal
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.probes.slices.probe import slice1d
from fastscape.probes.spectrum.probe import spectrum
from fastscape.probes.spectrum.recursions import recursion
from fastscape.probes.spectrum.result import SpectrumResult
from fastscape.response.precision import Precision
from fastscape.runs.optimizers import OptimizerState

_RESIDUAL = 1e-2  # relative: errors of eigenvalues are of the order of its square, and 1e-3 takes half as many products again
Measure = Callable[["Visit", "Carried"], "Numbers"]
Custom = Callable[[Objective, int], Mapping[str, float | Estimate]]


@dataclass(frozen=True)
class Visit:
    """One step of a training run, as measures see it.

    Attributes:
        objective: the loss at the weights of the step.
        step: training step.
        optimizer: its state then; ``None`` where unknown.
        learning_rate: ``None`` where unknown.
        seed: of all random directions: the same at every step.
        k: eigenvalues.
        seconds: that the measure may take; ``None`` without a limit.
        warm_up: what tells that the learning rate was rising; empty where it was not.
    """

    objective: Objective
    step: int
    optimizer: OptimizerState | None
    learning_rate: float | None
    seed: int
    k: int
    seconds: float | None
    warm_up: str = ""


@dataclass
class Carried:
    """State of the measures between steps: eigenvectors, how products are computed, and the last eta_c."""

    spectrum: SpectrumResult | None = None
    eta: float | None = None
    path: str | None = None
    precision: Precision | None = None


@dataclass
class Numbers:
    """Values by name, their 95 % intervals (for eigenvalues: residual bounds), and flags."""

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float | Estimate | None) -> None:
        """Take in a number; of an estimate also its interval, NaN where it is withheld."""
        if value is None:
            return
        if isinstance(value, Estimate):
            self.values[name] = float(value.value)
            low, high = shown_ends(value)
            if not (math.isnan(low) and math.isnan(high)):
                self.intervals[name] = (float(low), float(high))
        else:
            self.values[name] = float(value)


def loss(visit: Visit, _carried: Carried) -> Numbers:
    """Loss, accuracy and ||w||; where batch norm takes the batch's statistics unasked, the loss by running ones as well."""
    found = Numbers()
    value, accuracy = visit.objective.evaluate_once()
    found.add("loss", value)
    found.add("accuracy", accuracy)
    found.add("weight_norm", visit.objective.norm)
    if visit.objective.batch_norm != "running" and visit.objective.batch_norm_asked is None:
        found.add("loss_running", visit.objective.switched("running").loss())
    return found


def gradient(visit: Visit, _carried: Carried) -> Numbers:
    """||g||^2 of the full data; one gradient per batch."""
    found = Numbers()
    found.add("gradient_norm_squared", square(visit.objective.gradient().values()))
    return found


def eigenvalues(visit: Visit, carried: Carried) -> Numbers:
    """Extreme eigenvalues from the eigenvectors of the step before, trace, and stability of the optimizer."""
    numbers, optimizer = Numbers(), visit.optimizer
    if optimizer is not None:
        try:
            recursion(visit.objective, optimizer)
        except (TypeError, ValueError) as error:
            optimizer = None
            numbers.notes.append(f"no stability of the optimizer: {first_line(error)}")
    found = spectrum(
        visit.objective,
        visit.k,
        budget=visit.seconds,
        targets={"eigenvalues": _RESIDUAL, "trace": None},
        nodes=1,
        seed=visit.seed,
        warm=carried.spectrum if carried.spectrum is not None and carried.spectrum.vectors is not None else None,
        optimizer=optimizer,
        method=carried.path,
        step=visit.step,
        distributed=False,
    )
    _pass_interrupt(found.meta)
    carried.spectrum, carried.path = found, found.meta.get("path", carried.path)
    for name, value, residuals in (
        ("lambda_max", found.lambda_max, found.residuals),
        ("lambda_min", found.lambda_min, found.smallest_residuals),
    ):
        numbers.add(name, value)
        if len(residuals):
            numbers.intervals[name] = (value - float(residuals[0]), value + float(residuals[0]))
    numbers.add("spectral_norm", found.spectral_norm)
    if DETACHED in found.notes:
        numbers.notes.append(DETACHED)
    for name in ("trace", "mean_curvature", "effective_rank"):
        numbers.add(name, getattr(found, name))
    numbers.add("gradient_norm_squared", found.gradient_norm**2)
    numbers.add("gradient_curvature", found.gradient_curvature)
    stability = found.stability
    if stability is not None:
        numbers.add("critical", stability.critical)
        reason = stability.reason or (f"{visit.warm_up}: a warm-up" if visit.warm_up else "")
        if reason:
            place = "" if stability.reason == untrained(visit.objective) else f"step {visit.step}: "
            numbers.notes.append(f"{place}no stability ratio: {reason}")
        else:
            numbers.add("stability_ratio", stability.ratio)
        if stability.preconditioned is not None and not math.isnan(stability.preconditioned):
            numbers.add("preconditioned_sharpness", stability.preconditioned)
        numbers.add("batch_sharpness", stability.batch_sharpness)
    elif visit.learning_rate is not None:
        numbers.add("critical", 2 / visit.learning_rate if visit.learning_rate else math.inf)
    if found.meta["stop_reason"] != "targets met":
        numbers.notes.append(f"step {visit.step}: the spectrum ended early ({found.meta['stop_reason']})")
    return numbers


def critical(visit: Visit, carried: Carried) -> Numbers:
    """eta_c and lambda_c along the optimizer's step, or the negative gradient, from the eta_c of the step before."""
    found = critical_sharpness(visit.objective, optimizer=visit.optimizer, guess=carried.eta, curvature=False, step=visit.step)
    _pass_interrupt(found.meta)
    numbers = Numbers()
    if not math.isnan(found.eta_c.value):
        carried.eta = found.eta_c.value
        numbers.add("lambda_c", found.lambda_c)
        numbers.add("eta_c", found.eta_c)
    if found.outcome != "found":
        numbers.notes.append(f"step {visit.step}: {found.verdict()}")
    return numbers


def line(visit: Visit, _carried: Carried) -> Numbers:
    """Roughness along eight random directions, the same at every step."""
    found = slice1d(visit.objective, points=21, count=8, seed=visit.seed, budget=visit.seconds)
    _pass_interrupt(found.meta)
    numbers = Numbers()
    numbers.add("roughness", found.roughness)
    numbers.add("roughness_detrended", found.detrended)
    numbers.add("local_minima", found.minima)
    numbers.values["roughness_noise"] = float(found.noise_floor)
    return numbers


def exponents(visit: Visit, carried: Carried) -> Numbers:
    """The multifractal summary over 32 directions, the same at every step."""
    probe = ProbeSettings(count=16, banks=2, seed=visit.seed, precision=carried.precision)
    found = multifractal(visit.objective, probe, budget=visit.seconds, distributed=False)
    _pass_interrupt(found.meta)
    carried.precision = found.meta.get("precision", carried.precision)
    numbers = Numbers()
    for name in ("m_tau", "h_mean", "h_std", "c1", "c2"):
        estimate = found.analysis.estimates.get(name)
        if estimate is not None and math.isnan(estimate.value):
            numbers.notes.append(f"step {visit.step}: no {name} ({estimate.withheld})")
        else:
            numbers.add(name, estimate)
    return numbers


def _pass_interrupt(meta: Mapping[str, Any]) -> None:
    """Ctrl-C ends a probe with what it knows; in a training loop it must go on to the loop."""
    if meta.get("stop_reason") == "interrupted":
        raise KeyboardInterrupt


MEASURES: dict[str, Measure] = {
    "loss": loss,
    "gradient": gradient,
    "spectrum": eigenvalues,
    "slice": line,
    "critical_sharpness": critical,
    "multifractal": exponents,
}
GUESSES = {  # gradients, before the first
    "loss": 0.5,
    "gradient": 1.5,
    "spectrum": 150.0,
    "slice": 80.0,
    "critical_sharpness": 12.0,
    "multifractal": 600.0,
}
TIMED = frozenset({"spectrum", "slice", "multifractal"})  # measures that can do less in less time


def checked_measures(what: Sequence[str | Custom]) -> dict[str, Measure]:
    """Measures by name, in order.

    Raises:
        TypeError, ValueError: something that is neither a known name nor a function.
    """
    if isinstance(what, str):
        raise TypeError(f"what must be a sequence of names, got the string {what!r}; write what=({what!r},)")
    found: dict[str, Measure] = {}
    for index, item in enumerate(listed("what", what, "names or functions (objective, step)")):
        if isinstance(item, str):
            if item not in MEASURES:
                raise ValueError(f"what must name {', '.join(MEASURES)} or be functions (objective, step), got {item!r}")
            found[item] = MEASURES[item]
        elif callable(item):
            name = getattr(item, "__name__", f"function {index}")
            if name in found or name in MEASURES:
                raise ValueError(
                    f"what must hold functions of distinct names, got {name!r} twice at what[{index}]; use def to name it"
                )
            found[name] = _custom(item)
        else:
            raise TypeError(f"what[{index}] must be a name or a function (objective, step), got {type(item).__name__}")
    if not found:
        raise ValueError("what must hold at least one measure, got none")
    return found


def _custom(function: Custom) -> Measure:
    def measure(visit: Visit, _carried: Carried) -> Numbers:
        found = Numbers()
        with preserved_rng():
            for name, value in function(visit.objective, visit.step).items():
                found.add(str(name), value)
        return found

    return measure
