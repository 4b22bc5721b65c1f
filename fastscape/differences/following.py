"""Every batch's loss as something to propagate differences through: a kept program, a new one, or dispatch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fastscape.differences.lanes import input_name
from fastscape.differences.program import trace
from fastscape.differences.programs import Kept, held
from fastscape.differences.propagation import Propagation
from fastscape.differences.steps import Program
from fastscape.differences.subclass import Dispatched
from fastscape.differences.tracing_errors import UntraceableError
from fastscape.differences.triple import Base, Triple
from fastscape.objective.replica import Replica
from fastscape.objective.structures import map_tensors, tensors_of

FrontEnd = Literal["graph", "dispatch"]
_ALIGNED = 64  # bytes: on memory that is aligned less than torch's own, kernels may round otherwise
_SAME = 1e-9  # relative difference of the traced loss from the model's


@dataclass
class Follower:
    """Follows the batches of a replica.

    Attributes:
        replica: a float64 copy of the objective.
        front_end: ``"graph"``, ``"dispatch"`` or ``None`` for the first that follows the model.
        memory: bytes, of which half is for values at w.
        kept: programs of earlier objectives.
    """

    replica: Replica
    front_end: FrontEnd | None
    memory: int
    kept: Kept

    def bound(self, *, anew: bool) -> tuple[list[Propagation | Dispatched], float]:
        """Every batch's program with the weights of this objective, and the loss at w."""
        replica, objective = self.replica, self.replica.objective
        replica.reset()
        room = self.memory // (2 * len(replica.batches))
        propagations: list[Propagation | Dispatched] = []
        total = 0.0
        for index, weight in enumerate(objective.batch_weights):
            expected = float(replica.batch_loss(index)[0])
            propagation, found = self._checked(index, self._attempts(index, room, anew=anew), expected)
            propagations.append(propagation)
            total += weight * found
        return propagations, total / objective.samples

    def _checked(
        self, index: int, attempts: Iterator[Callable[[], Propagation | Dispatched]], expected: float
    ) -> tuple[Propagation | Dispatched, float]:
        """The first attempt at following a batch that gives the model's loss, and that loss."""
        refusal: UntraceableError | None = None
        for attempt in attempts:
            try:
                propagation = attempt()
                found = float(propagation.loss())
            except UntraceableError as error:
                refusal = refusal or error
                continue
            if math.isclose(found, expected, rel_tol=_SAME, abs_tol=1e-12) or not math.isfinite(expected):
                return propagation, found
        raise refusal or UntraceableError(
            f"model must give the same loss when its operations are replayed, got {found!r} instead of {expected!r} on "
            f"batch {index}: does the forward reach tensors other than its parameters, buffers and inputs?"
        )

    def _attempts(self, index: int, room: int, *, anew: bool) -> Iterator[Callable[[], Propagation | Dispatched]]:
        """Ways to follow one batch's loss, in order: a kept program, a new one, dispatch."""
        replica = self.replica
        inputs, probed = _inputs(replica, index), [input_name(name) for name in replica.objective.names]
        values = inputs | _parameters(replica, inputs)

        def of_new() -> Propagation:
            program = traced(replica, index)
            self.kept.keep(index, program)
            return Propagation(program, values, probed, room)

        if self.front_end != "dispatch":
            program = None if anew else self.kept.find(index)
            if program is not None:
                yield lambda: Propagation(program, values, probed, room)
            yield of_new
        if self.front_end != "graph":
            yield lambda: Dispatched(replica.module, _call(replica, index), inputs)


def _inputs(replica: Replica, index: int) -> dict[str, Tensor]:
    """Parameters, buffers and batch of a replica by the names that programs use."""
    named = {f"parameter:{name}": tensor.detach() for name, tensor in held(replica).items()}
    return named | {f"batch:{place}": tensor for place, tensor in enumerate(tensors_of(replica.batches[index]))}


def _parameters(replica: Replica, inputs: Mapping[str, Tensor]) -> dict[str, Triple]:
    """Parameters with the user's own tensors for copies in the dtype of the lanes, where they are that."""
    objective = replica.objective
    state = objective.state or dict(objective.model.named_parameters())
    found = {}
    for name, tensor in objective.model.named_parameters():
        source, x = state.get(name, tensor).detach(), inputs.get(input_name(name))
        if x is None or source.dtype != objective.dtype or source.device != x.device:
            continue
        if source.is_floating_point() and source.stride() == x.stride() and source.data_ptr() % _ALIGNED == 0:
            found[input_name(name)] = Triple(Base(x, source))
    return found


def _call(replica: Replica, index: int) -> Callable[[Sequence[Tensor]], Tensor]:
    """The loss of one batch as a function of its tensors."""

    def call(inputs: Sequence[Tensor]) -> Tensor:
        following: Iterator[Tensor] = iter(inputs)
        value: Tensor = replica.module(map_tensors(replica.batches[index], lambda _: next(following)))[0]
        return value

    return call


def traced(replica: Replica, index: int) -> Program:
    """The program of one batch's loss."""
    replica.reset()
    batch = [tensor.clone() for tensor in tensors_of(replica.batches[index])]
    probed = [f"model.{name}" for name in replica.objective.names]
    return trace(replica.module, _call(replica, index), held(replica), batch, probed)
