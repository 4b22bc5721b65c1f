"""A call of ``fs.responses`` whose blocks all processes of a launcher, or the workers of an executor, evaluate."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from fastscape._state import torch_threads
from fastscape.directions import Directions
from fastscape.numerics.arrays import Array
from fastscape.objective.objective import Objective
from fastscape.response.blocks import Made, block_of, here
from fastscape.response.halving import Halving
from fastscape.response.precision import planned, responder
from fastscape.runs.agreement import agree
from fastscape.runs.executor_workers import ExecutorWorkers, Hired
from fastscape.runs.journal import Journal
from fastscape.runs.making import Making
from fastscape.runs.plan import Plan
from fastscape.runs.ranks import Distributed, Ranks, ranks_of
from fastscape.runs.torch_workers import TorchWorkers, lead, serve
from fastscape.runs.units import Evaluate, Unit, Workers

Found = TypeVar("Found")


class _Blocks:
    """The bytes of any block by the plan of rank 0, once it has come; a context manager."""

    def __init__(self, objective: Objective, directions: Directions, radii: Array, memory: int | None) -> None:
        self.objective, self.directions, self.radii, self.memory = objective, directions, radii, memory
        self._halving, self._stack = Halving(), ExitStack()
        self._plan: Plan | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._plan = None
        self._stack.close()

    @property
    def lanes(self) -> int | None:
        """Directions evaluated at a time since memory ran out; ``None`` where it never did."""
        return self._halving.lanes

    @property
    def evaluations(self) -> int:
        """Evaluations of the loss."""
        return 0 if self._plan is None else self._evaluator.evaluations

    def whole(self, _point: int) -> Objective:
        """The objective."""
        return self.objective

    def plan(self, _unit: Unit) -> Plan | None:
        """The plan, once it is known."""
        return self._plan

    def learn(self, _unit: Unit, plan: Plan) -> None:
        """Make the evaluator of a plan."""
        if self._plan is not None:
            return
        way = plan.ways[0]
        with ExitStack() as stack:
            stack.enter_context(torch_threads(plan.threads))
            evaluator = responder(self.objective, way.precision, planned(way), self.memory, gate=False)  # type: ignore[arg-type]
            stack.enter_context(evaluator)
            evaluator.choose(self.directions, self.radii.tolist())
            self._evaluator, self._plan, self._stack = evaluator, plan, stack.pop_all()

    def __call__(self, unit: Unit) -> bytes:
        assert self._plan is not None
        indices = block_of(unit, self._plan, len(self.directions))
        return self._halving(self._evaluator, self.directions, indices, self.radii.tolist())


def shared(
    distributed: Distributed,
    directions: Directions,
    radii: Array,
    objective: Objective,
    memory: int | None,
    folder: str | Path | None,
    work: Callable[[Made, int | None, bool], Found],
) -> Found:
    """A call by this process, or by rank 0, for which the others evaluate; all of them get its result.

    Args:
        distributed: which processes share the call.
        directions, radii, objective, memory: of the call.
        folder: of its journal.
        work: the call by a way to make workers, with so many bytes of memory, and whether all processes compute the same bits.
    """
    with ranks_of(distributed, objective) as ranks:
        if ranks is None:
            return work(here, memory, True)
        agreed = agree(ranks, objective, {"directions": directions.settings, "radii": radii.tolist()})
        if ranks.rank:
            with _Blocks(objective, directions, radii, memory) as blocks:
                found: Found = serve(ranks, blocks, lambda about: blocks.learn(*about), folder)
                return found
        led: Found = lead(ranks, lambda: work(_made(ranks), memory or agreed.memory, agreed.bitwise))
        return led


def _made(ranks: Ranks) -> Made:
    def workers(plan: Plan, evaluate: Evaluate, lanes: Callable[[], int | None], journal: Journal | None) -> Workers:
        def keep(unit: Unit, data: bytes, seconds: float, width: int | None) -> Any:
            return None if journal is None else journal.append(unit, data, seconds, width)

        return TorchWorkers(ranks, evaluate, lambda unit: (unit, plan), lanes, keep)

    return workers


@dataclass(frozen=True)
class _Recipe:
    """What evaluates the blocks of a call on a worker of an executor."""

    making: Making
    directions: Directions
    radii: Array
    memory: int | None

    def __call__(self) -> _Blocks:
        return _Blocks(self.making.make(), self.directions, self.radii, self.memory)


def hired(
    executor: object,
    directions: Directions,
    radii: Array,
    making: Making,
    memory: int | None,
    work: Callable[[Made, int | None, bool], Found],
) -> Found:
    """A call whose blocks the workers of an executor evaluate; other arguments as for :func:`shared`."""
    with Hired(executor, _Recipe(making, directions, radii, memory)) as crew:

        def workers(plan: Plan, _evaluate: Evaluate, _lanes: object, journal: Journal | None) -> Workers:
            if journal is None:
                return ExecutorWorkers(crew, lambda _unit: plan)
            return ExecutorWorkers(crew, lambda _unit: plan, journal.append, dict(journal.done))

        return work(workers, memory, True)
