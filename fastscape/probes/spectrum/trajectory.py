"""Spectra of several checkpoints, each started from the one before."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack, cast

from fastscape._checks import counted
from fastscape._keeping import keeps_result
from fastscape.curvature.choice import ProductChoice
from fastscape.curvature.operator import ggn, hessian
from fastscape.evaluation.group import Distributed, Group, joined
from fastscape.numerics.spectra import Stability
from fastscape.objective.objective import Objective, checked_objective
from fastscape.probes.spectrum.assembly import with_note
from fastscape.probes.spectrum.probe import (
    BLOCK,
    Asked,
    SpectrumError,
    basis_bytes,
    checked_goals,
    led_by,
    read_state,
    spectrum_of,
)
from fastscape.probes.spectrum.recursions import recursion
from fastscape.probes.spectrum.result import SpectrumResult, SpectrumTrajectory
from fastscape.probes.spectrum.stability import Optimizer
from fastscape.probes.spectrum.stability_stage import least_rows
from fastscape.runs.anytime import Anytime
from fastscape.runs.budget import Budget, BudgetError, time_text
from fastscape.runs.checkpoints import Checkpoint
from fastscape.runs.checkpoints import checkpoints as read_checkpoints
from fastscape.runs.evaluations import Evaluations, opened
from fastscape.runs.progress import Progress, reporter
from fastscape.runs.provenance import Provenance
from fastscape.runs.ranks import checked_distributed
from fastscape.runs.run import Resumed, Run, Timed, settled

_NEEDS = 60  # forwards and products of a checkpoint, with the choice of a path
_RISEN = 0.99  # of the highest rate


class SpectraKeywords(Timed, Resumed, total=False):
    """Keywords beside those of the matrix and what of it is wanted."""

    memory: int | None
    targets: Mapping[str, float | None] | None
    method: str | None
    progress: Callable[[Progress], None] | None


@keeps_result
def spectra(
    objective: Objective,
    checkpoints: Sequence[str | Path],
    k: int = 5,
    *,
    operator: Literal["hessian", "ggn"] = "hessian",
    block: int | None = None,
    nodes: int = 80,
    optimizer: Optimizer | None = None,
    distributed: Distributed = None,
    **keywords: Unpack[SpectraKeywords],
) -> SpectrumTrajectory:
    """Spectra of several checkpoints of one model, with the same probes, each started from the Ritz vectors of the one before.

    Where an optimizer is given or lies beside any of them, all are of the function that was trained (see :func:`spectrum`).
    Checkpoints before the learning rate's first maximum, in a warm-up, have no stability ratio.

    Args:
        objective: model architecture, loss and data; its weights are not used.
        checkpoints: as for :func:`fastscape.trajectory`.
        k, operator, memory, targets, block, nodes, seed, method, run: as for :func:`fastscape.spectrum`.
        budget: of all checkpoints; each has an equal share of what is left, and leaves what its targets spare to the next.
        optimizer: the same for all checkpoints; ``None`` for the state that lies beside each (``step10.optimizer.pt`` beside
            ``step10.safetensors``), where there is one.
        distributed: as for :func:`fastscape.spectrum`.
        progress: as there, with the fraction and the seconds of all checkpoints.
        resume: as there, one folder for all; a checkpoint keeps the Ritz vectors that it was first started from.

    Returns:
        A :class:`SpectrumTrajectory`, partial after Ctrl-C.

    Raises:
        ValueError: missing, damaged or pickled files, keys or shapes that do not fit, or bad settings.
        SpectrumError: the model raised midway; its ``partial`` holds the results so far.
    """
    work = settled(spectra, keywords)
    whole = work.clock()
    progress = reporter(work.progress, ("checkpoint", "share", "state"))
    checked_objective(objective)
    checked_distributed(distributed)
    checked_goals(objective, k, operator, nodes, block, work)
    if optimizer is not None:
        read_state(objective, optimizer)
    work = dataclasses.replace(work, budget=whole)
    files = read_checkpoints(checkpoints)
    for file in files:
        file.at(objective)  # every file is read and matched before any work
    of_training = optimizer is not None or any(file.optimizer() is not None for file in files)
    settings = {"operator": operator, "seed": work.seed, "method": work.method, "optimizer": of_training}
    named = {"checkpoints": [file.name for file in files]}
    asked = Asked(k, operator, block, nodes, None, optimizer)

    def function(file: Checkpoint) -> Objective:
        """The loss at a checkpoint: one function for all, that which was trained where any has an optimizer."""
        return file.at(objective).trained() if of_training else file.at(objective)

    points = [partial(file.at, objective) for file in files]

    def refused(forward: float) -> BudgetError:
        return _too_short(whole, whole.elapsed, len(files), BudgetError("", _NEEDS * len(objective.batches) * forward))

    with (
        joined(distributed, objective) as ranks,
        led_by(ranks, lambda: opened(work.resume, "spectra", points, settings | named)) as evaluations,
        whole.opening("checkpoint", _NEEDS, refused, begun=evaluations.replaying),
    ):
        return _spectra(files, function, asked, distributed, ranks, work, progress, evaluations)


def _spectra(
    files: Sequence[Checkpoint],
    function: Callable[[Checkpoint], Objective],
    asked: Asked,
    distributed: Distributed,
    ranks: Group | None,
    work: Run,
    progress: Callable[..., None] | None,
    evaluations: Evaluations,
) -> SpectrumTrajectory:
    whole = work.clock()
    if work.memory is not None:
        _check_room(files, function, asked, work.memory)
    tried = None
    if work.method is None and ranks is None:  # once: a trial takes as long as tens of products
        make, size = {"hessian": hessian, "ggn": ggn}[asked.operator], asked.block or BLOCK

        def trial() -> dict[str, Any]:
            return dataclasses.asdict(make(function(files[0]), memory=work.memory, distributed=False).prepare(size))

        tried = ProductChoice(**evaluations.taken("trial", (size, work.memory), trial))
    points: list[SpectrumResult] = []
    prepared = whole.elapsed

    def of_all(state: Progress, done: float) -> Progress:
        shown = Progress.under(whole, state.name, done + state.fraction / len(files))
        return dataclasses.replace(state, fraction=shown.fraction, elapsed=shown.elapsed, remaining=shown.remaining)

    def started() -> dict[str, Any]:
        vectors = points[-1].vectors if points else None
        return {} if vectors is None or not vectors.shape[1] else {"vectors": vectors}

    def one(file: Checkpoint) -> SpectrumResult:
        left = len(files) - len(points)
        done, own = len(points) / len(files), evaluations.of(len(points))
        here = dataclasses.replace(
            work,
            budget=max(whole.remaining / left, 1e-3) if whole.limited else None,
            method=work.method if tried is None else tried.name,
            name=file.name,
            step=file.step,
            progress=None if progress is None else lambda state: progress(of_all(state, done), file.name, done, state),
        )
        wanted = dataclasses.replace(
            asked,
            warm=own.taken("start", (), started).get("vectors"),
            optimizer=file.optimizer() if asked.optimizer is None else asked.optimizer,
        )
        found = spectrum_of(function(file), wanted, here, distributed if ranks is None else ranks.asked, own)
        if tried is None:
            return found
        words = {"reason": f"{tried.reason} (tried at {files[0].name})", "refused": dict(tried.refused)}
        return dataclasses.replace(found, meta=found.meta | words)

    run = Anytime(whole)
    try:
        with run.ends(lambda: points, errors=lambda _: points):
            for file in files:
                try:
                    points.append(one(file))
                except SpectrumError as error:
                    points.append(cast("SpectrumResult", error.partial))
                    raise
                if points[-1].meta["stop_reason"] == "interrupted":
                    break
    except BudgetError as error:
        raise _too_short(whole, prepared, len(files), error) from error
    found = _joined(points, whole, [file.name for file in files], "" if run.reason == "complete" else run.reason)
    if run.error is not None:
        raise SpectrumError(str(run.error), found) from run.error
    return found


def _check_room(files: Sequence[Checkpoint], function: Callable[[Checkpoint], Objective], asked: Asked, memory: int) -> None:
    """Refuse a memory that the first checkpoint may fit in and the next, started from k vectors more, or with Adam, does not."""
    block = asked.block or BLOCK
    width, beside = block + (asked.k if len(files) > 1 else 0), 0
    for file in files:
        state = file.optimizer() if asked.optimizer is None else asked.optimizer
        if state is not None:
            objective = function(file)
            beside = max(beside, least_rows(objective.size, recursion(objective, read_state(objective, state)), block))
    basis_bytes(function(files[0]), memory, asked.k, width, beside)


def without_warm_up(points: Sequence[SpectrumResult]) -> tuple[SpectrumResult, ...]:
    """The points, without a stability ratio where the learning rate was still rising to its first maximum."""
    order = sorted(range(len(points)), key=lambda index: -1 if points[index].step is None else cast(int, points[index].step))
    rates = [found.learning_rate for index in order if (found := points[index].stability) is not None]
    peak = rates.index(max(rates)) if rates and None not in [point.step for point in points] else 0
    risen, known = list(points), 0
    for index in order:
        found = points[index].stability
        if found is None:
            continue
        if known < peak and found.learning_rate < _RISEN * max(rates):
            risen[index] = _warming(points[index], found, max(rates))
        known += 1
    return tuple(risen)


def _warming(point: SpectrumResult, found: Stability, highest: float) -> SpectrumResult:
    reason = f"the learning rate, {found.learning_rate:g}, was still rising to {highest:g}: a warm-up"
    notes = (
        f"unknown: {reason}",
        *(note for note in found.notes if not note.startswith(("below", "above", "at the", "unknown"))),
    )
    left = dataclasses.replace(found, ratio=math.nan, at_least=math.nan, reason=reason, notes=notes)
    return dataclasses.replace(with_note(point, f"no stability ratio of the optimizer: {reason}"), stability=left)


def _too_short(budget: Budget, prepared: float, count: int, error: BudgetError) -> BudgetError:
    """The refusal of the whole budget where the first checkpoint's share was too short."""
    enough = budget.reserve + prepared + count * (error.enough or 1.0)
    kept = f" and {budget.reserve:.2g} s are kept for the page" if budget.reserve else ""
    return BudgetError(
        f"budget must leave time for {counted(count, 'checkpoint')}, got {budget.seconds:g} s, of which reading the files and "
        f"choosing how to multiply took {prepared:.2g} s{kept}; a budget of {time_text(enough)} is enough to begin",
        enough,
    )


def _joined(points: Sequence[SpectrumResult], budget: Budget, checkpoints: Sequence[str], reason: str) -> SpectrumTrajectory:
    reasons = Counter(str(point.meta["stop_reason"]) for point in points)
    if not reason:
        reason = next((words for words in reasons if words == "interrupted" or len(reasons) == 1), "") or ", ".join(
            f"{words} ({count})" for words, count in reasons.items()
        )
    limit = budget.seconds if budget.limited else None
    meta = Provenance(stop_reason=reason, seconds=budget.elapsed, budget=limit, settings={"checkpoints": list(checkpoints)})
    return SpectrumTrajectory(without_warm_up(points), meta)
