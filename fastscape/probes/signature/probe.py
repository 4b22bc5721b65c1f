"""Several probes of one checkpoint in one call, and the signature that they amount to."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch

from fastscape._checks import integer, mapped, positive, real, shown
from fastscape._keeping import keeps_result
from fastscape._renamed import METHOD, under_new_names
from fastscape.objective.objective import Objective, checked_objective
from fastscape.probes.barriers.end_points import end_point
from fastscape.probes.barriers.probe import barrier
from fastscape.probes.critical.probe import critical_sharpness
from fastscape.probes.multifractal.probe import multifractal
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.probes.sharpness.probe import sharpness
from fastscape.probes.signature.probe_result import ProbeResult
from fastscape.probes.signature.quantities import kind_of
from fastscape.probes.signature.result import Signature
from fastscape.probes.signature.shared_budget import Results, Several, Stage, run_stages
from fastscape.probes.slices.probe import slice1d
from fastscape.probes.spectrum.probe import TARGETS, spectrum
from fastscape.probes.spectrum.stability import Optimizer
from fastscape.probes.temperature.probe import temperature
from fastscape.runs.budget import Budget
from fastscape.runs.optimizers import OptimizerState
from fastscape.runs.provenance import Provenance, objective_meta
from fastscape.runs.run import Run, Work, settled, shared_keywords

# Shares of the time: the spectrum pays for eight quantities; a path's and a slice's evaluations are few.
SHARES = {
    "spectrum": 4.0,
    "slice": 1.5,
    "sharpness": 2.0,
    "critical_sharpness": 0.5,
    "temperature": 1.5,
    "barrier": 1.5,
    "multifractal": 4.0,
}
PROBES: dict[str, Callable[..., Any]] = {
    "spectrum": spectrum,
    "slice": slice1d,
    "sharpness": sharpness,
    "critical_sharpness": critical_sharpness,
    "temperature": temperature,
    "barrier": barrier,
    "multifractal": multifractal,
}
_KEYWORDS = {
    kind: (*(name for name in tuple(inspect.signature(function).parameters)[1:-1]), *shared_keywords(function))
    for kind, function in PROBES.items()
}
_SIGNATURE = ("spectrum", "slice", "sharpness", "critical_sharpness", "temperature", "barrier")
_NOT_ASKED = "it was not asked for (what=)"
_NO_BATCH = "the training's batch_size=, and learning_rate= or optimizer=, were not all given"
_NO_OTHER = "no second solution was given: pass other="
_NO_TRAINING = "it needs a whole training run: pass difficulty= from a Tracker"


class ProbeKeywords(Work, total=False):
    """Keywords of several probes at once."""

    targets: Mapping[str, float | None] | None


class SignatureKeywords(ProbeKeywords, total=False):
    """Keywords of the signature that are those of its probes."""

    other: Any
    optimizer: Optimizer | str | Path | None
    batch_size: int | None
    learning_rate: float | None
    momentum: float
    options: Mapping[str, Mapping[str, Any]] | None


@keeps_result
def probe(
    objective: Objective,
    what: str | Sequence[str] | None = None,
    *,
    other: Any = None,
    optimizer: Optimizer | str | Path | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    momentum: float = 0.0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    **keywords: Unpack[ProbeKeywords],
) -> ProbeResult:
    """Several probes of one checkpoint under one budget, on one page.

    Args:
        objective: the loss.
        what: of ``"spectrum"``, ``"slice"``, ``"sharpness"``, ``"critical_sharpness"``, ``"temperature"``, ``"barrier"``,
            ``"multifractal"``; ``None`` for all that the other arguments allow.
        budget: seconds, or ``"60s"``, ``"5m"``, for all of them; each gets a share of what is left, and what one does not need
            goes to those after it.
        targets: ``"eigenvalues"`` and ``"trace"`` of :func:`fastscape.spectrum`, ``"m_tau"`` of :func:`fastscape.multifractal`.
        other: a second solution, for ``"barrier"``: state dict, checkpoint file, module or objective.
        optimizer: of the training, for the edge of stability and the temperature; or
        learning_rate, momentum: of plain SGD.
        batch_size: of the training, for ``"temperature"``.
        options: further keywords of single probes, by their name: ``{"slice": {"radius": 0.5}}``.
        seed: of all of them.
        name, step: of the checkpoint.
        run: budget, targets, seed, name, step, or some of them, in a :class:`fastscape.Run`.

    Returns:
        A :class:`ProbeResult`; a probe that failed or did not fit the budget is in ``missing`` with the reason. Ctrl-C gives
        what was measured, ``meta["stop_reason"] == "interrupted"``.

    Raises:
        TypeError, ValueError: naming the argument, before any work is done.
        NondeterministicLossError: two evaluations at w differ.
        Exception: what the first probe raised, where none gave a result.

    Cost: that of the probes; the temperature takes tr(H) from the spectrum.
    """
    work = settled(probe, keywords)
    clock = work.clock()
    checked_objective(objective)
    integer("seed", work.seed, 0, 2**63)
    given: dict[str, Any] = {
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "optimizer": optimizer,
    }
    _check_training(given)
    what = _named(what)
    absent = _absent(what, given, other)
    kinds = _chosen(what, absent)
    if "barrier" in kinds:
        end_point(objective, other, "other")
    extra = _checked_options(options, work.targets)
    asked = _keywords(objective, given, other, work)
    stages = [Stage(kind, SHARES[kind], _runner(objective, kind, asked[kind] | extra.get(kind, {}))) for kind in kinds]
    done = run_stages(stages, clock)
    return ProbeResult(
        name=work.name,
        step=work.step,
        results=done.results,
        missing={kind: reason for kind, reason in absent.items() if what is None} | done.missing,
        meta=_meta(objective, clock, done, {"what": list(kinds), "targets": dict(work.targets or {})}, work.seed),
        notes=tuple(done.notes),
    )


@keeps_result
def signature(
    objective: Objective,
    *,
    epsilon: float = 1e-2,
    radius: float = 1.0,
    k: int = 5,
    what: str | Sequence[str] | None = None,
    difficulty: Any = None,
    **keywords: Unpack[SignatureKeywords],
) -> Signature:
    """Geometric signature of a checkpoint: curvature, roughness, sharpness, barrier and gradient noise, with intervals.

    Eigenvalues, trace, effective rank and directional variance come from one set of Hessian products. All parts are of the
    function that was trained (:meth:`fastscape.Objective.trained`); a barrier recomputes running statistics, see
    :func:`fastscape.barrier`.

    Args:
        objective: the loss.
        other: a second solution, for the barrier; without one it is missing.
        optimizer: of the training (an optimizer, its state or a file), for edge of stability and temperature; or
        learning_rate, momentum: of plain SGD.
        batch_size: of the training, for temperature and noise scale; without one they are missing.
        budget: seconds, or ``"60s"``, shared by the probes.
        epsilon: radius of the normalised sharpness, relative to the weights.
        radius: of the slices, in units of the relative change of the weights.
        k: eigenvalues.
        what: probes to run, of those of :func:`probe`; ``None`` for spectrum, slice, both sharpnesses, and temperature and
            barrier where their arguments are given.
        difficulty: a result of the training's optimisation difficulty, which one checkpoint cannot give.
        targets, options: as for :func:`probe`.
        seed: of everything random.
        name, step: of the checkpoint.
        run: as for :func:`probe`.

    Returns:
        A :class:`Signature`; a quantity that could not be measured is ``None`` with the reason in ``missing``.
        ``.warnings()`` are the early warnings. Ctrl-C gives what was measured.

    Raises:
        TypeError, ValueError: naming the argument, before any work is done.
        NondeterministicLossError: two evaluations at w differ: roughness would be evaluation noise.

    Cost: that of :func:`fastscape.spectrum`, ``slice1d``, ``sharpness``, ``critical_sharpness``, ``temperature`` and ``barrier``.

    Source: Venkatasubramanian, "Loss landscape geometry & optimization dynamics" (2025), sections 5 and 6.

    Example:
        >>> import torch, fastscape as fs
        >>> model = torch.nn.Linear(4, 3)
        >>> objective = fs.Objective(model, [(torch.ones(2, 4), torch.tensor([0, 2]))],
        ...                          criterion=torch.nn.functional.cross_entropy)
        >>> found = fs.signature(objective, learning_rate=0.1, what="spectrum")
        >>> found.stability_ratio.value < 1, found.missing["roughness"]
        (True, 'it was not asked for (what=)')
    """
    work = settled(signature, keywords)
    checked_objective(objective)
    wanted: dict[str, dict[str, Any]] = {
        "spectrum": {"k": integer("k", k, 1)},
        "slice": {"radius": _checked_radius("radius", radius)},
        "sharpness": {"epsilon": _checked_radius("epsilon", epsilon)},
    }
    options, other = _checked_options(keywords.get("options"), None), keywords.get("other")
    if difficulty is not None and kind_of(difficulty) != "difficulty":
        raise TypeError(f"difficulty must be the result of a fastscape.Difficulty, got {shown(difficulty)}; pass its .result()")
    merged = {kind: {**wanted.get(kind, {}), **options.get(kind, {})} for kind in {*wanted, *options}}
    given: dict[str, Any] = {name: keywords.get(name) for name in ("batch_size", "learning_rate", "optimizer")}
    what = _named(what)
    absent = _absent(what, given, other)
    kinds = tuple(kind for kind in _SIGNATURE if kind not in absent) if what is None else what
    found = probe(
        objective.trained(),
        kinds,
        other=other,
        options=merged,
        momentum=keywords.get("momentum", 0.0),
        run=work,
        **given,
    )
    results = [*found.results.values(), *([] if difficulty is None else [difficulty])]
    reasons = {kind: _NOT_ASKED for kind in PROBES if kind not in found.results} | absent | found.missing
    if difficulty is None:
        reasons["difficulty"] = _NO_TRAINING
    made = Signature.of(*results, name=work.name, step=work.step, missing=reasons, meta=found.meta)
    return dataclasses.replace(made, notes=tuple(dict.fromkeys((*found.notes, *made.notes))))


def _absent(what: Sequence[str] | None, given: Mapping[str, Any], other: Any) -> dict[str, str]:
    """Probes that the arguments do not allow, with the reason; an error where one was asked for by name."""
    absent = {}
    if given["batch_size"] is None or (given["learning_rate"] is None and given["optimizer"] is None):
        absent["temperature"] = _NO_BATCH
    if other is None:
        absent["barrier"] = _NO_OTHER
    for kind in what or ():
        if kind in absent:
            raise ValueError(f"what must not name {kind!r} here: {absent[kind]}")
    return absent


def _check_training(given: Mapping[str, Any]) -> None:
    """Raise for settings of the training that contradict each other or are out of range."""
    if given["batch_size"] is not None:
        integer("batch_size", given["batch_size"], 1)
    if given["learning_rate"] is not None and given["optimizer"] is not None:
        raise ValueError("pass either optimizer= or learning_rate=, not both: an optimizer has its own learning rate")
    if given["learning_rate"] is not None:
        positive("learning_rate", given["learning_rate"])
    if not (real(given["momentum"]) and 0 <= given["momentum"] < math.inf):
        raise ValueError(f"momentum must be finite and not negative, got {shown(given['momentum'])}")
    if given["momentum"] and given["learning_rate"] is None:
        raise ValueError(f"momentum must come with learning_rate=, got {given['momentum']!r} alone; an optimizer has its own")


def _checked_radius(name: str, value: float) -> float:
    return positive(name, value)


def _named(what: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of probes; a single one may stand alone."""
    if what is None or isinstance(what, str):
        return None if what is None else (what,)
    if not isinstance(what, Sequence) or not all(isinstance(kind, str) for kind in what):
        raise TypeError(f"what must be names of probes, {', '.join(PROBES)}, got {shown(what)}")
    return tuple(what)


def _chosen(what: Sequence[str] | None, absent: Mapping[str, str]) -> tuple[str, ...]:
    if what is None:
        return tuple(kind for kind in PROBES if kind not in absent)
    if not what or not set(what) <= set(PROBES) or len(set(what)) < len(what):
        raise ValueError(f"what must hold distinct names of {', '.join(PROBES)}, got {list(what)}")
    return tuple(kind for kind in PROBES if kind in what)  # the spectrum first: the temperature takes its trace


def _checked_options(
    options: Mapping[str, Mapping[str, Any]] | None, targets: Mapping[str, float | None] | None
) -> dict[str, dict[str, Any]]:
    """Keywords of every probe from options and targets; a keyword that a probe does not have is an error."""
    extra: dict[str, dict[str, Any]] = {}
    for kind, keywords in mapped("options", options, "keywords of each probe, {'slice': {'count': 4}}").items():
        if kind not in PROBES:
            raise ValueError(f"options must name probes, {', '.join(PROBES)}, got {kind!r}")
        given = mapped(f"options[{kind!r}]", keywords, "keywords of the probe, {'seed': 1}")
        names = {old: new for old, new in METHOD.items() if new in _KEYWORDS[kind]}
        extra[kind] = under_new_names(given, names, f"options[{kind!r}]", stacklevel=4)
    for kind, keywords in extra.items():
        wrong = next((key for key in keywords if key not in _KEYWORDS[kind]), None)
        if wrong is not None:
            raise ValueError(f"options[{kind!r}] must hold keywords of its probe, {', '.join(_KEYWORDS[kind])}, got {wrong!r}")
    wanted = dict(mapped("targets", targets, "relative errors, {'trace': 0.05}"))
    m_tau = wanted.pop("m_tau", None)
    unknown = [key for key in wanted if key not in TARGETS]
    if unknown:
        raise ValueError(f"targets must name {', '.join(TARGETS)} or m_tau, got {unknown[0]!r}")
    if wanted:
        extra.setdefault("spectrum", {}).setdefault("targets", wanted)
    if m_tau is not None:
        extra.setdefault("multifractal", {}).setdefault("target", m_tau)
    return extra


def _keywords(objective: Objective, given: Mapping[str, Any], other: Any, work: Run) -> dict[str, dict[str, Any]]:
    """Keywords of each probe."""
    moves = given["optimizer"]
    if moves is None and given["learning_rate"] is not None:
        moves = _sgd(objective, given["learning_rate"], given["momentum"])
    placed = {"seed": work.seed, "name": work.name, "step": work.step}
    noise = {key: value for key, value in given.items() if key != "momentum" or given["optimizer"] is None}
    return {
        "spectrum": {**placed, "optimizer": moves, "distributed": False},
        "slice": placed,
        "sharpness": placed,
        "critical_sharpness": {**placed, "optimizer": moves},
        "temperature": {**placed, **noise},
        "barrier": {"a": None, "b": other, **placed},
        "multifractal": {"name": work.name, "probe": ProbeSettings(seed=work.seed), "distributed": False},
    }


def _sgd(objective: Objective, learning_rate: float, momentum: float) -> OptimizerState:
    """Plain SGD over the probed parameters, for its critical curvature."""
    parameters = dict(objective.model.named_parameters())
    made = torch.optim.SGD([(name, parameters[name]) for name in objective.names], lr=learning_rate, momentum=momentum)
    return OptimizerState.of(made, objective.model)


def _runner(objective: Objective, kind: str, keywords: Mapping[str, Any]) -> Callable[[Budget | None, Results], Any]:
    def run(limit: Budget | None, results: Results) -> Any:
        more: dict[str, Any] = {"budget": limit}
        if kind == "temperature" and "spectrum" in results and results["spectrum"].operator == "hessian":
            more["spectrum"] = results["spectrum"]
        return PROBES[kind](objective, **{**more, **keywords})

    return run


def _meta(objective: Objective, clock: Budget, done: Several, settings: Mapping[str, Any], seed: int) -> Provenance:
    return objective_meta(objective) | {
        "seed": seed,
        "settings": dict(settings),
        "budget": clock.seconds if clock.limited else None,
        "shares": dict(done.seconds),
        "stop_reason": done.stop_reason,
        "seconds": clock.elapsed,
        "evaluations": sum(int(result.meta.get("evaluations") or 0) for result in done.results.values()),
    }
