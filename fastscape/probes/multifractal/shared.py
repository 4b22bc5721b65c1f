"""A run of the multifractal probe whose units all processes of a call evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastscape.objective.objective import Objective
from fastscape.probes.multifractal.result import MultifractalResult, TrajectoryResult
from fastscape.probes.multifractal.session import Session
from fastscape.probes.multifractal.units import Point, UnitEvaluator
from fastscape.probes.multifractal.visits import Visits
from fastscape.runs.agreement import agree
from fastscape.runs.plan import Plan, plain_data
from fastscape.runs.ranks import Distributed, Ranks, ranks_of
from fastscape.runs.torch_workers import TorchWorkers, lead, serve
from fastscape.runs.units import Unit


def shared(
    distributed: Distributed,
    objective: Objective,
    session: Session,
    points: Sequence[Point],
    extend: Sequence[MultifractalResult] | None,
    plans: Sequence[Plan] | None,
) -> TrajectoryResult:
    """The run of a session: by this process, or by rank 0, for which the others evaluate; all of them get its result.

    ``objective``: as the call was given it, perhaps in training.
    """
    with ranks_of(distributed, objective) as ranks:
        if ranks is None:
            return session.run(points, extend, plans)
        agreed = agree(ranks, points[0].objective(), _compared(session, points))
        if ranks.rank:
            return _served(ranks, session, points)
        session.memory = session.memory or agreed.memory
        session.bitwise = agreed.bitwise
        session.workers = lambda visits: _workers(ranks, visits)
        found: TrajectoryResult = lead(ranks, lambda: session.run(points, extend, plans))
        return found


def _compared(session: Session, points: Sequence[Point]) -> dict[str, Any]:
    """What must be the same on all processes beside the first objective."""
    weights = [point.objective().weight_fingerprint() for point in points[1:]]
    return {"settings": plain_data(session.probe), "weights of checkpoints": weights}


def _workers(ranks: Ranks, visits: Visits) -> TorchWorkers:
    def about(unit: Unit) -> Any:
        plan = visits.tracks[unit.point].plan
        assert plan is not None
        return unit.key, plan

    return TorchWorkers(ranks, visits.evaluate, about, lambda: visits.evaluate.lanes)


def _served(ranks: Ranks, session: Session, points: Sequence[Point]) -> TrajectoryResult:
    """The result of rank 0, for which this process evaluates units meanwhile."""
    plans: dict[int, Plan] = {}
    with UnitEvaluator(points, session.probe, plans, session.memory) as evaluate:

        def learn(about: tuple[tuple[int, int, int, int], Plan]) -> None:
            key, plan = about
            plans[key[0]] = plan
            evaluate.prepared(Unit(*key))

        found: TrajectoryResult = serve(ranks, evaluate, learn, lambda: evaluate.lanes)
        return found
