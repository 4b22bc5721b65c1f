"""A whole study: every run trained under the tracker and measured, kept on disk as it ends, and resumed where it stopped."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

import fastscape.study.view  # noqa: F401 - registers what is shown of the results
from fastscape._checks import counted, first_line
from fastscape._clock import now
from fastscape._files import replaced
from fastscape.curvature.operator import hessian
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate
from fastscape.objective.objective import Objective
from fastscape.probes.barriers.probe import barriers
from fastscape.probes.barriers.result import BarrierMatrix
from fastscape.probes.signature.result import Signature
from fastscape.probes.spectrum.probe import BLOCK
from fastscape.probes.tracking.difficulty import Difficulty
from fastscape.probes.tracking.schedule import log_spaced
from fastscape.probes.tracking.tracker import Tracker
from fastscape.reports.storage import load
from fastscape.runs.anytime import Anytime
from fastscape.runs.optimizers import OptimizerState
from fastscape.runs.progress import Progress, reporter
from fastscape.runs.provenance import provenance
from fastscape.study.measure import Measurement
from fastscape.study.plan import Architecture, Plan, slug
from fastscape.study.result import RunResult, StudyResult
from fastscape.study.training import build, train

_RESULT, _FINAL = "run.npz", "final.safetensors"


def study(plan: Plan, out: Path, *, progress: Callable[[Progress], None] | None = None) -> StudyResult:
    """Train and measure every run of a plan.

    Runs are kept in ``out/runs``; those that a study of the same plan has left there are read, not repeated. Ctrl-C gives
    the runs that are complete, with a note; so does the ``partial`` of a :class:`fastscape.PartialResultError`, where one fails.

    Args:
        plan: what to do; see :func:`fastscape.study.plan.quick` and :func:`fastscape.study.plan.full`.
        out: directory, made where missing.
        progress: called with a :class:`fastscape.Progress`, whose ``stage`` says what is being done.

    Cost: that of the trainings, and ``plan.seconds`` for the early and twice to four times that for the final state of each run.
    """
    start = now()
    runs: list[RunResult] = []
    matrices: dict[str, BarrierMatrix] = {}
    notes: list[str] = []
    total = len(plan.architectures) * (plan.seeds + 1)
    work, told = Anytime(), reporter(progress, ("words", "share"))

    def report(words: str, share: float) -> None:
        if told is not None:
            told(Progress.under(work.budget, plan.name, share, stage=words), words, share)

    with work.ends(lambda: runs, errors=lambda _: runs):
        for row, architecture in enumerate(plan.architectures):
            done = row * (plan.seeds + 1)
            for seed in range(plan.seeds):
                share = (done + seed) / total
                runs.append(run(plan, architecture, seed, out, partial(report, share=share)))
            if plan.seeds > 1:
                report(f"{architecture.name}: barriers", (done + plan.seeds) / total)
                try:
                    matrices[architecture.name] = between(plan, architecture, out)
                except Exception as error:
                    notes.append(f"{architecture.name}: no barriers ({type(error).__name__}: {first_line(error)})")
    if work.reason != "complete":
        notes.append(f"{work.reason} after {counted(len(runs), 'run')}; re-running the command resumes")
    runs = [_with_barrier(each, matrices.get(each.architecture)) for each in runs]
    notes += [f"{each.name}: {note}" for each in runs for note in each.notes]
    meta = {"stop_reason": work.reason, "seconds": now() - start} | provenance()
    found = StudyResult(plan.name, None, plan.words(), tuple(runs), matrices, meta, tuple(notes))
    return work.whole(found, f"the study failed after {counted(len(runs), 'run')}")


def folder_of(out: Path, architecture: Architecture, seed: int) -> Path:
    """Directory of a run."""
    return out / "runs" / f"{slug(architecture)}-seed{seed}"


def run(plan: Plan, architecture: Architecture, seed: int, out: Path, report: Callable[[str], None]) -> RunResult:
    """One run, read from its folder where a study of the same plan has left it there."""
    folder = folder_of(out, architecture, seed)
    kept = _kept(folder, plan)
    if kept is not None:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{architecture.name}, seed {seed}"
    start = now()
    model = build(architecture, seed)
    objective = Objective(model, architecture.probed(), criterion=F.cross_entropy)
    record = folder / "record.jsonl"
    record.unlink(missing_ok=True)  # of a run that did not end
    tracker = Tracker(
        objective,
        when=log_spaced(architecture.steps, plan.points),
        share=plan.share,
        path=str(record),
        what=("loss", "gradient", "spectrum"),
        name=name,
        seed=seed,
    )
    report(f"{name}: which path of curvature products is fastest")
    path = hessian(objective.trained(), distributed=False).prepare(BLOCK).name
    difficulty = Difficulty(objective, every=max(1, architecture.steps // plan.norms), method=path, name=name, seed=seed)

    def each(step: int, optimizer: torch.optim.Optimizer) -> None:
        difficulty.step(step, optimizer=optimizer)
        tracker.step(step, optimizer=optimizer)

    report(f"{name}: training")
    trained = train(architecture, model, objective, folder, seed=seed, early=plan.early, each=each)
    parts: dict[str, Any] = {"tracking": tracker.finish(), "difficulty": difficulty.finish()}
    population = sum(len(targets) for _, targets in architecture.train())
    optimizer = OptimizerState.of(architecture.optimizer()(model.parameters()), model)
    measurement = Measurement(
        plan, architecture, optimizer, population, method=path, report=lambda words: report(f"{name}: {words}")
    )
    first, found = measurement.signed(objective.at(trained.early), "early", trained.early_step)
    last, more = measurement.signed(objective.at(trained.final), "final", trained.steps)
    by_running: dict[str, Signature] = {}
    for state, when, step in ((trained.early, "early", trained.early_step), (trained.final, "final", trained.steps)):
        signatures, beside = measurement.running(objective.at(state), when, step)
        by_running |= signatures
        parts |= beside
    parts |= found | more
    if seed == 0:
        parts |= measurement.plane(objective.at(trained.final), "final", trained.steps)
    parts |= measurement.multifractal(objective.at(trained.final), "final")
    result = RunResult(
        name,
        architecture.steps,
        architecture.name,
        seed,
        objective.size,
        trained.early_step,
        trained.outcome,
        np.array(trained.losses),
        first,
        last,
        parts,
        {"seconds": now() - start, "critical": architecture.critical, "plan": plan.words()} | provenance(),
        tuple(measurement.notes),
        by_running,
    )
    _leave(folder, result, trained.final)
    return result


def between(plan: Plan, architecture: Architecture, out: Path) -> BarrierMatrix:
    """Barriers between the final states of all seeds of an architecture, by the runs' probed data."""
    model = build(architecture, 0)
    objective = Objective(model, architecture.probed(), criterion=F.cross_entropy)
    files = {f"seed {seed}": folder_of(out, architecture, seed) / _FINAL for seed in range(plan.seeds)}
    return barriers(objective, files, name=architecture.name)


def _with_barrier(result: RunResult, matrix: BarrierMatrix | None) -> RunResult:
    """The run whose final signature has the barrier to the seed after it (the last: to the first)."""
    if matrix is None:
        return result
    pair = result.seed, (result.seed + 1) % len(matrix.labels)
    unknown = (math.nan, math.nan)

    def found(table: Array, interval: tuple[float, float] = unknown) -> Estimate:
        return Estimate(float(table[pair]), math.nan, interval, 1)

    final = dataclasses.replace(
        result.final,
        barrier=found(matrix.linear, (float(matrix.low[pair]), float(matrix.high[pair]))),
        barrier_end=found(matrix.end),
        barrier_max=found(matrix.max),
        missing={name: why for name, why in result.final.missing.items() if not name.startswith("barrier")},
    )
    return dataclasses.replace(result, final=final)


def _leave(folder: Path, result: RunResult, final: Mapping[str, Tensor]) -> None:
    """Keep a run: the final weights first, so that a result is never without them."""
    with replaced(folder / _FINAL) as stream:
        stream.write(save({name: tensor.contiguous() for name, tensor in final.items()}))
    result.save(folder / _RESULT)


def is_of(file: Path, plan: Plan) -> bool:
    """Whether a file is the result of a study of this plan."""
    try:
        found = load(file)
    except (ValueError, OSError):
        return False
    return isinstance(found, StudyResult) and bool(found.plan == plan.words())


def _kept(folder: Path, plan: Plan) -> RunResult | None:
    """The run that a study of the same plan has left, if its files are whole."""
    try:
        found = load(folder / _RESULT)
        load_file(folder / _FINAL)
    except Exception:  # a damaged archive fails in many ways; the run is repeated
        return None
    same = isinstance(found, RunResult) and found.meta.get("plan") == plan.words()
    return found if same else None
