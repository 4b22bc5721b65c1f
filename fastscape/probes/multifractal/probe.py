"""The multifractal probe of one checkpoint, or of several along the same directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack, cast

from fastscape._checks import checked_settings, integer
from fastscape._keeping import keeps_result
from fastscape.objective.objective import Objective, checked_objective
from fastscape.objective.sharding import ShardedModelError
from fastscape.probes.multifractal.description import AnalysisSettings
from fastscape.probes.multifractal.result import MultifractalResult, TrajectoryResult
from fastscape.probes.multifractal.resumption import begun
from fastscape.probes.multifractal.session import ProbeError, Session
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.probes.multifractal.shared import hired, shared
from fastscape.probes.multifractal.units import Point
from fastscape.response.precision import AnyPath
from fastscape.runs.checkpoints import Checkpoint
from fastscape.runs.checkpoints import checkpoints as read_checkpoints
from fastscape.runs.making import Making, check_executor, made, making
from fastscape.runs.plan import Plan
from fastscape.runs.progress import Progress, reporter
from fastscape.runs.ranks import Distributed
from fastscape.runs.run import Run, Timed, Work, settled


class TrajectoryKeywords(Timed, total=False):
    """Keywords beside those of directions, analysis and what is reached."""

    method: AnyPath | None
    memory: int | None
    progress: Callable[[Progress], None] | None
    distributed: Distributed
    plan: Plan | MultifractalResult | TrajectoryResult | Sequence[Plan] | None
    resume: str | Path | None
    executor: Any


class MultifractalKeywords(TrajectoryKeywords, Work, total=False):
    """The same at one checkpoint."""


@keeps_result
def multifractal(
    objective: Objective | Making,
    probe: ProbeSettings | None = None,
    analysis: AnalysisSettings | None = None,
    *,
    target: float | None = None,
    extend: MultifractalResult | None = None,
    **keywords: Unpack[MultifractalKeywords],
) -> MultifractalResult:
    r"""Multifractal description of the loss around a checkpoint.

    Along random normalised directions d_i, at radii eps_k, the symmetric responses
    :math:`r_{ki} = |L(w + \epsilon_k d_i) - 2 L(w) + L(w - \epsilon_k d_i)|` are normalised over directions to a measure
    :math:`p_{ki}`, whose moments :math:`Z_q(\epsilon) = \sum_i p_i^q \sim \epsilon^{\tau(q)}` give the mass exponent tau(q),
    Chhabra-Jensen alpha(q) and f(q), per-direction exponents h_i, log-cumulants, and the scalar M_tau. Intervals are
    bootstrapped over directions; scales that are rounding noise are not used.

    Args:
        objective: the loss, or a :class:`fastscape.Source` that makes it; its model, buffers, gradients, mode and the random
            generators are left untouched.
        probe: directions, radii and precision; default 12 radii from 1e-5 to 1e-1 of ||w||, 4 banks, and the
            cheapest arithmetic that resolves them (see :func:`fastscape.responses`).
        analysis: orders q, windows, bootstrap.
        budget: seconds, or ``"60s"``, ``"5m"``. Directions come in doubling rounds until the target or the deadline;
            overrun is at most one unit (one block of directions at all radii). The same seed with a longer budget extends
            the same directions.
        target: stop when the 95 % interval of M_tau on its supported orders is narrower than plus or minus this; where
            it is withheld, the count or the budget ends the run.
        method: as for :func:`fastscape.responses`.
        memory: as for :func:`fastscape.responses`.
        extend: an earlier result of the same weights, data and settings; its evaluations are kept and continued.
        plan: a result of the same weights, data and settings, or its :class:`fastscape.Plan`: what was chosen there by timing and
            by free memory is not chosen again, and the numbers are the same, bit for bit.
        resume: a folder for the journal of the run. Every block of directions is written there; the same call goes on with what
            it holds, whatever ended the process, and gives the same numbers. :func:`fastscape.merge` reads it without the model.
        distributed: ``True`` shares the directions among all processes that ``torchrun`` started, which make the same call and
            get the same result; a ``ProcessGroup`` among those of it. The numbers do not depend on how many there are, and
            ``meta["workers"]`` says who did what. ``None``: those of an initialised process group under torchrun, but this
            process alone where a model is being trained, of which probes are often called on one rank. ``False``: alone.
        executor: anything with ``submit(function, argument)`` whose result has ``.result()``: a ``ProcessPoolExecutor`` that
            spawns, Dask's client, submitit. Its workers evaluate the directions, in groups of about 20 s, and give the same
            numbers; each makes the objective once, by a :class:`fastscape.Source` or of the pickle of an objective below 64 MiB.
        name, step: of the checkpoint, for tables.
        progress: called after every block with a :class:`fastscape.Progress`; of several processes, on rank 0.
        seed: of ``probe``, which may be left out then.
        run: budget, method, memory, name, step, progress, seed, distributed, resume, executor, or some of them, in a
            :class:`fastscape.Run`.

    Returns:
        A :class:`MultifractalResult`. NaN or inf losses give a result with flags. Ctrl-C gives the partial result, with
        ``meta["stop_reason"] == "interrupted"``; a second one leaves out its analysis, which ``.reanalyse()`` makes up.

    Raises:
        ValueError: bad settings, or a budget that cannot fit one unit (names one that is enough).
        TypeError: a model in place of an objective, or settings that are none.
        NondeterministicLossError: two evaluations at w differ.
        ProbeError: the model raised midway, or the analysis at the end; its ``partial`` holds the results so far.

    Cost: (2 K + 1) forwards per direction over the data, K radii; one copy of the probed parameters.

    Source: Török & Bartha, "Multifractal structure of neural network loss landscapes".
    """
    work = settled(multifractal, keywords, seed=None)
    check_executor(work.executor, work.distributed)
    whole = made(objective)
    if checked_objective(whole, sharded=True).sharding is not None and work.budget is not None:
        raise ShardedModelError(
            f"budget must be None for a sharded model, whose processes would stop at different directions, got {work.budget!r}; "
            "pass probe=fs.ProbeSettings(count=...), and target="
        )
    session = _session(probe, analysis, target, work)
    point = Point(work.name, work.step, lambda: whole)
    earlier = None if extend is None else [extend]
    run = _Call(objective, whole, (), work, keywords)
    return _run(run, session, MultifractalResult.kind, [point], earlier).points[0]


@keeps_result
def trajectory(
    objective: Objective | Making,
    checkpoints: Sequence[str | Path],
    probe: ProbeSettings | None = None,
    analysis: AnalysisSettings | None = None,
    *,
    target: float | None = None,
    extend: TrajectoryResult | None = None,
    **keywords: Unpack[TrajectoryKeywords],
) -> TrajectoryResult:
    """Multifractal descriptions of several checkpoints of one model, along the same directions.

    The raw directions are common to all checkpoints (common random numbers) and are rescaled to each one's weights.
    Rounds of directions run over all checkpoints, so that a deadline leaves them with the same number, give or take one
    round. One checkpoint is in memory at a time.

    Args:
        objective: model architecture, loss and data; its weights are not used.
        checkpoints: ``.safetensors`` files, or torch files of tensors (read with ``weights_only=True``), in order; state
            dicts, alone or under a usual key such as ``state_dict``.
        probe, analysis, budget, target, method, memory, extend, progress, seed, run, distributed, executor: as for
            :func:`multifractal`; the target is reached when every checkpoint has.
        plan: an earlier trajectory, or one :class:`fastscape.Plan` per checkpoint, as for :func:`multifractal`.
        resume: as for :func:`multifractal`.

    Returns:
        A :class:`TrajectoryResult`, partial after Ctrl-C.

    Raises:
        ValueError: missing, damaged or pickled files, keys or shapes that do not fit (the first few are listed), bad
            settings, or a budget that cannot fit one unit per checkpoint.
        ProbeError: the model raised midway, or the analysis at the end; its ``partial`` holds the results so far.
    """
    work = settled(trajectory, keywords, seed=None)
    check_executor(work.executor, work.distributed)
    whole = checked_objective(made(objective))
    session = _session(probe, analysis, target, work)
    if extend is not None and not isinstance(extend, TrajectoryResult):
        raise TypeError(f"extend must be an earlier trajectory (fs.load reads one from a file), got {type(extend).__name__}")
    _plans(keywords.get("plan"))
    files = read_checkpoints(checkpoints)
    for file in files:
        file.at(whole)  # every file is read and matched before any work
    points = [Point(file.name, file.step, partial(file.at, whole)) for file in files]
    earlier = None if extend is None else extend.points
    return _run(_Call(objective, whole, files, work, keywords), session, TrajectoryResult.kind, points, earlier)


@dataclass(frozen=True)
class _Call:
    """What a call was given: the objective as it came and as it is, checkpoints, and how to work."""

    given: Objective | Making
    objective: Objective
    files: Sequence[Checkpoint]
    work: Run
    keywords: TrajectoryKeywords


def _run(
    call: _Call, session: Session, kind: str, points: Sequence[Point], extend: Sequence[MultifractalResult] | None
) -> TrajectoryResult:
    """Run a session with the plans, the journal and the workers that were asked for."""
    keywords, executor = call.keywords, call.work.executor
    plans, folder = _plans(keywords.get("plan")), call.work.resume
    if plans is not None and len(plans) != len(points):
        raise ValueError(f"plan must hold one plan per checkpoint, got {len(plans)} for {len(points)}")
    for name, given in (("extend", extend), ("plan", plans)):
        if folder is not None and given is not None:
            raise ValueError(f"{name} must be left out with resume=, whose folder has the run's own plan and directions")

    def work() -> TrajectoryResult:
        journal = None if folder is None else begun(folder, kind, points, session.probe)
        return session.run(points, extend, plans, journal)

    if executor is not None:
        return hired(executor, making(call.given), call.files, session, work)
    return shared(call.work.distributed, call.objective, session, points, work, folder)


def _plans(given: object) -> list[Plan] | None:
    """Plans, one for each checkpoint."""
    if given is None:
        return None
    each = given.points if isinstance(given, TrajectoryResult) else given if isinstance(given, (list, tuple)) else [given]
    return [Plan.of(one) for one in each]


def _session(probe: ProbeSettings | None, analysis: AnalysisSettings | None, target: float | None, work: Run) -> Session:
    if work.seed is not None and probe is None:
        probe = ProbeSettings(seed=work.seed)
    elif work.seed is not None and checked_settings("probe", probe, ProbeSettings).seed != integer("seed", work.seed, 0, 2**63):
        raise ValueError(f"seed must be that of probe=, {probe.seed}, got {work.seed!r}; leave one of them out")
    path = cast("AnyPath | None", work.method)
    return Session(probe, analysis, work.budget, target, path, work.memory, reporter(work.progress))


__all__ = ["ProbeError", "multifractal", "trajectory"]
