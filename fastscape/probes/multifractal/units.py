"""Units of the multifractal probe: which directions they hold, and an evaluation of any of them by plans alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from fastscape._state import torch_threads
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.directions import Directions
from fastscape.evaluation.evaluator import Evaluator
from fastscape.numerics.arrays import Array
from fastscape.objective.objective import Objective
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.response.halving import Halving
from fastscape.response.precision import planned, responder
from fastscape.runs.plan import Plan, plain_data
from fastscape.runs.units import Unit


@dataclass(frozen=True)
class Point:
    """A checkpoint to probe: its name, training step, and how to get its objective."""

    name: str
    step: int | None
    objective: Callable[[], Objective]


def directions_of(probe: ProbeSettings, objective: Objective) -> Directions:
    """Directions of the first bank at a checkpoint, without end; the others have other seeds."""
    names = ("distribution", "rank", "normalize", "scale", "one_d", "zero_norm")
    arguments: dict[str, Any] = {name: getattr(probe, name) for name in names}
    return Directions(objective, count=2**32, seed=probe.bank_seed(0), **arguments)


def groups_of(probe: ProbeSettings, objective: Objective) -> list[Objective]:
    """The objective on the batches of every group of banks."""
    return [objective] if probe.bank_batches == "all" else [objective.on(batch) for batch in range(len(objective.batches))]


def settings_of(probe: ProbeSettings) -> dict[str, Any]:
    """Settings that two runs of one plan share, as plain data; of the precision, the one that was used is compared."""
    left_out = {"count", "precision"} | ({"rank"} if probe.rank is None else set())  # runs of earlier versions had none
    return {name: value for name, value in plain_data(probe).items() if name not in left_out}


@dataclass(frozen=True)
class _Held:
    """The evaluator of one checkpoint and group, ready for its units."""

    place: tuple[int, int]
    evaluator: Evaluator | DifferenceEvaluator
    directions: Directions
    radii: Array
    size: int


class UnitEvaluator:
    """The bytes of any unit of a run; holds the evaluator of one checkpoint and group of batches at a time.

    It measures nothing: with equal plans it gives equal bytes in any process. A context manager, which puts every global setting
    back on exit.

    Args:
        points: the checkpoints.
        probe: settings.
        plans: of each checkpoint, by its index; they may be added while the run goes on.
        memory: bytes for values at w.
    """

    def __init__(self, points: Sequence[Point], probe: ProbeSettings, plans: dict[int, Plan], memory: int | None = None) -> None:
        self.points, self.probe, self.plans, self.memory = points, probe, plans, memory
        self._halving = Halving()
        self._before = 0  # evaluations with those that are no longer held
        self._stack = ExitStack()
        self._held: _Held | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held = None
        self._stack.close()

    def __call__(self, unit: Unit) -> bytes:
        """Evaluate a unit, at first making what its checkpoint and group need; where memory runs out, by halves."""
        held = self.prepared(unit)
        directions = held.directions.with_seed(self.probe.bank_seed(unit.bank))
        return self._halving(held.evaluator, directions, unit.indices(held.size), held.radii.tolist())

    @property
    def lanes(self) -> int | None:
        """Directions evaluated at a time since memory ran out; ``None`` where it never did."""
        return self._halving.lanes

    def whole(self, point: int) -> Objective:
        """The objective of a checkpoint."""
        return self.points[point].objective()

    def plan(self, unit: Unit) -> Plan | None:
        """The plan that a unit follows, once it is known."""
        return self.plans.get(unit.point)

    def learn(self, unit: Unit, plan: Plan) -> None:
        """Take the plan of a unit's checkpoint, and make the evaluator for it."""
        self.plans[unit.point] = plan
        self.prepared(unit)

    @property
    def evaluations(self) -> int:
        """Evaluations of the loss, by the evaluators that were made here."""
        return self._before + (self._held.evaluator.evaluations if self._held is not None else 0)

    def prepared(self, unit: Unit) -> _Held:
        """The evaluator for a unit, made where another was held before."""
        if self._held is None or self._held.place != (unit.point, unit.group):
            self._open(unit.point, unit.group)
        assert self._held is not None
        return self._held

    @contextmanager
    def holding(
        self, point: int, group: int, evaluator: Evaluator | DifferenceEvaluator, directions: Directions, radii: Array
    ) -> Iterator[None]:
        """Use an evaluator that has chosen for the units of its checkpoint and group inside the block."""
        assert evaluator.choice is not None
        self._held = _Held((point, group), evaluator, directions, radii, evaluator.choice.chunk)
        try:
            yield
        finally:
            self._held = None

    def _open(self, point: int, group: int) -> None:
        self._before = self.evaluations
        self._held = None
        self._stack.close()
        plan = self.plans[point]
        way = plan.way(group)
        if way is None:
            raise ValueError(f"plan must say how group {group} of {self.points[point].name} is evaluated, got {plan!r}")
        whole = self.points[point].objective()
        directions, objective = directions_of(self.probe, whole), groups_of(self.probe, whole)[group]
        radii = self.probe.grid(directions.weight_norm)
        with ExitStack() as stack:
            stack.enter_context(torch_threads(plan.threads))
            evaluator = responder(objective, way.precision, planned(way), self.memory, gate=False)  # type: ignore[arg-type]
            stack.enter_context(evaluator)
            evaluator.choose(directions, radii.tolist())
            self._held = _Held((point, group), evaluator, directions, radii, way.unit)
            self._stack = stack.pop_all()
