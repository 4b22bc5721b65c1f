"""The multifractal probe of one checkpoint, or of several along the same directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Unpack, cast

from fastscape._checks import checked_settings
from fastscape.objective.objective import Objective, checked_objective
from fastscape.objective.sharding import ShardedModelError
from fastscape.probes.multifractal.description import AnalysisSettings
from fastscape.probes.multifractal.result import MultifractalResult, TrajectoryResult
from fastscape.probes.multifractal.session import ProbeError, Progress, Session
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.probes.multifractal.visits import Point
from fastscape.response.precision import AnyPath
from fastscape.runs.checkpoints import checkpoints as read_checkpoints
from fastscape.runs.run import Run, Timed, Work, settled

ProgressCallback = Callable[[Progress], None]


class TrajectoryKeywords(Timed, total=False):
    """Keywords beside those of directions, analysis and what is reached."""

    path: AnyPath | None
    memory: int | None
    progress: ProgressCallback | None


class MultifractalKeywords(TrajectoryKeywords, Work, total=False):
    """The same at one checkpoint."""


def multifractal(
    objective: Objective,
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
        objective: the loss; its model, buffers, gradients, mode and the random generators are left untouched.
        probe: directions, radii and precision; default 12 radii from 1e-5 to 1e-1 of ||w||, 4 banks, and the
            cheapest arithmetic that resolves them (see :func:`fastscape.responses`).
        analysis: orders q, windows, bootstrap.
        budget: seconds, or ``"60s"``, ``"5m"``. Directions come in doubling rounds until the target or the deadline;
            overrun is at most one unit (one block of directions at all radii). The same seed with a longer budget extends
            the same directions.
        target: stop when the 95 % interval of M_tau on its supported orders is narrower than plus or minus this; where
            it is withheld, the count or the budget ends the run.
        path: as for :func:`fastscape.responses`.
        memory: bytes that batched evaluation may take.
        extend: an earlier result of the same weights, data and settings; its evaluations are kept and continued.
        name, step: of the checkpoint, for tables.
        progress: called after every block with a :class:`fastscape.probes.multifractal.session.Progress`.
        seed: of ``probe``, which may be left out then.
        run: budget, path, memory, name, step, progress, seed, or some of them, in a :class:`fastscape.Run`.

    Returns:
        A :class:`MultifractalResult`. NaN or inf losses give a result with flags. Ctrl-C gives the partial result, with
        ``meta["stop_reason"] == "interrupted"``; a second one leaves out its analysis, which ``.reanalyse()`` makes up.

    Raises:
        ValueError: bad settings, or a budget that cannot fit one unit (names one that is enough).
        TypeError: a model in place of an objective, or settings that are none.
        NondeterministicLossError: two evaluations at w differ.
        ProbeError: the model raised midway; its ``partial`` holds the results so far.

    Cost: (2 K + 1) forwards per direction over the data, K radii; one copy of the probed parameters.

    Source: Török & Bartha, "Multifractal structure of neural network loss landscapes".
    """
    work = settled(multifractal, keywords, seed=None)
    if checked_objective(objective, sharded=True).sharding is not None and work.budget is not None:
        raise ShardedModelError(
            f"budget must be None for a sharded model, whose processes would stop at different directions, got {work.budget!r}; "
            "pass probe=fs.ProbeSettings(count=...), and target="
        )
    session = _session(probe, analysis, target, work)
    point = Point(work.name, work.step, lambda: objective)
    return session.run([point], [extend] if extend is not None else None).points[0]


def trajectory(
    objective: Objective,
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
        probe, analysis, budget, target, path, memory, extend, progress, seed, run: as for :func:`multifractal`, the target being
            reached when every checkpoint has.

    Returns:
        A :class:`TrajectoryResult`, partial after Ctrl-C.

    Raises:
        ValueError: missing, damaged or pickled files, keys or shapes that do not fit (the first few are listed), bad
            settings, or a budget that cannot fit one unit per checkpoint.
        ProbeError: the model raised midway; its ``partial`` holds the results so far.
    """
    work = settled(trajectory, keywords, seed=None)
    checked_objective(objective)
    session = _session(probe, analysis, target, work)
    files = read_checkpoints(checkpoints)
    for file in files:
        file.at(objective)  # every file is read and matched before any work
    points = [Point(file.name, file.step, partial(file.at, objective)) for file in files]
    if extend is not None and not isinstance(extend, TrajectoryResult):
        raise TypeError(f"extend must be an earlier trajectory (fs.load reads one from a file), got {type(extend).__name__}")
    return session.run(points, None if extend is None else extend.points)


def _session(probe: ProbeSettings | None, analysis: AnalysisSettings | None, target: float | None, work: Run) -> Session:
    if work.seed is not None and probe is None:
        probe = ProbeSettings(seed=work.seed)
    elif work.seed is not None and checked_settings("probe", probe, ProbeSettings).seed != work.seed:
        raise ValueError(f"seed must be that of probe=, {probe.seed}, got {work.seed!r}; leave one of them out")
    path = cast("AnyPath | None", work.path)
    return Session(probe, analysis, work.budget, target, path, work.memory, work.progress)


__all__ = ["ProbeError", "Progress", "multifractal", "trajectory"]
