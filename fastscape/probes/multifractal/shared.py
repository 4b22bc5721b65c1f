"""A run of the multifractal probe whose units all processes of a call evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastscape.objective.objective import Objective
from fastscape.probes.multifractal.result import TrajectoryResult
from fastscape.probes.multifractal.session import Session
from fastscape.probes.multifractal.units import Point, UnitEvaluator
from fastscape.probes.multifractal.visits import Visits
from fastscape.runs.agreement import agree
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

    def keep(unit: Unit, data: bytes, seconds: float, lanes: int | None) -> None:
        if session.journal is not None:
            session.journal.append(unit, data, seconds, lanes)

    return TorchWorkers(ranks, evaluate, about, lambda: visits.evaluate.lanes, keep)


def _served(ranks: Ranks, session: Session, points: Sequence[Point], folder: str | Path | None) -> TrajectoryResult:
    """The result of rank 0, for which this process evaluates units meanwhile."""
    plans: dict[int, Plan] = {}
    with UnitEvaluator(points, session.probe, plans, session.memory) as evaluate:

        def learn(about: tuple[tuple[int, int, int, int], Plan]) -> None:
            key, plan = about
            plans[key[0]] = plan
            evaluate.prepared(Unit(*key))

        found: TrajectoryResult = serve(ranks, evaluate, learn, folder)
        return found
