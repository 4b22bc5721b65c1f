"""A run of the multifractal probe whose units all processes of a call, or the workers of an executor, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastscape.objective.objective import Objective
from fastscape.probes.multifractal.result import TrajectoryResult
from fastscape.probes.multifractal.session import Session
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.probes.multifractal.units import Point, UnitEvaluator
from fastscape.probes.multifractal.visits import Visits
from fastscape.runs.agreement import agree
from fastscape.runs.checkpoints import Checkpoint
from fastscape.runs.executor_workers import ExecutorWorkers, Hired
from fastscape.runs.making import Making
from fastscape.runs.plan import Plan, plain_data
from fastscape.runs.ranks import Distributed, Ranks, ranks_of
from fastscape.runs.torch_workers import TorchWorkers, lead, serve
from fastscape.runs.units import Evaluate, Unit


def shared(
    distributed: Distributed,
    objective: Objective,
    session: Session,
    points: Sequence[Point],
    work: Callable[[], TrajectoryResult],
    folder: str | Path | None,
) -> TrajectoryResult:
    """The run of a session: by this process, or by rank 0, for which the others evaluate; all of them get its result.

    Args:
        distributed: which processes share the run.
        objective: as the call was given it, perhaps in training.
        session, points: of the run.
        work: runs the session.
        folder: of its journal.
    """
    with ranks_of(distributed, objective) as ranks:
        if ranks is None:
            return work()
        agreed = agree(ranks, points[0].objective(), _compared(session, points))
        if ranks.rank:
            return _served(ranks, session, points, folder)
        session.memory = session.memory or agreed.memory
        session.bitwise = agreed.bitwise
        session.workers = partial(_workers, ranks, session)
        found: TrajectoryResult = lead(ranks, work)
        return found


def _compared(session: Session, points: Sequence[Point]) -> dict[str, Any]:
    """What must be the same on all processes beside the first objective."""
    weights = [point.objective().weight_fingerprint() for point in points[1:]]
    return {"settings": plain_data(session.probe), "weights of checkpoints": weights}


def _workers(ranks: Ranks, session: Session, visits: Visits, evaluate: Evaluate) -> TorchWorkers:
    def about(unit: Unit) -> Any:
        plan = visits.tracks[unit.point].plan
        assert plan is not None
        return unit.key, plan

    return TorchWorkers(ranks, evaluate, about, lambda: visits.evaluate.lanes, _keeping(session))


def _keeping(session: Session) -> Callable[[Unit, bytes, float, int | None], None]:
    """What writes a value to the journal of a session, if it has one."""

    def keep(unit: Unit, data: bytes, seconds: float, lanes: int | None) -> None:
        if session.journal is not None:
            session.journal.append(unit, data, seconds, lanes)

    return keep


def _served(ranks: Ranks, session: Session, points: Sequence[Point], folder: str | Path | None) -> TrajectoryResult:
    """The result of rank 0, for which this process evaluates units meanwhile."""
    with UnitEvaluator(points, session.probe, {}, session.memory) as evaluate:

        def learn(about: tuple[tuple[int, int, int, int], Plan]) -> None:
            key, plan = about
            evaluate.learn(Unit(*key), plan)

        found: TrajectoryResult = serve(ranks, evaluate, learn, folder)
        return found


@dataclass(frozen=True)
class _Recipe:
    """What evaluates the units of a run on a worker of an executor."""

    making: Making
    files: tuple[Checkpoint, ...]
    probe: ProbeSettings
    memory: int | None

    def __call__(self) -> UnitEvaluator:
        objective = self.making.make()
        along = [Point(file.name, file.step, partial(file.at, objective)) for file in self.files]
        return UnitEvaluator(along or [Point("model", None, lambda: objective)], self.probe, {}, self.memory)


def hired(
    executor: object,
    making: Making,
    files: Sequence[Checkpoint],
    session: Session,
    work: Callable[[], TrajectoryResult],
) -> TrajectoryResult:
    """The run of a session, whose units the workers of an executor evaluate.

    Args:
        executor: as the call was given it.
        making: the objective, on a worker.
        files: the checkpoints; none where the objective has its own weights.
        session: of the run.
        work: runs the session.
    """
    with Hired(executor, _Recipe(making, tuple(files), session.probe, session.memory)) as crew:

        def workers(visits: Visits, _evaluate: Evaluate) -> ExecutorWorkers:
            def plan(unit: Unit) -> Plan:
                found = visits.tracks[unit.point].plan
                assert found is not None
                return found

            return ExecutorWorkers(crew, plan, _keeping(session))

        session.workers = workers
        return work()
