"""Evaluation of sharded models (FSDP2, DTensor): displaced in place, with the bits of the unsharded model's loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import cast

import numpy as np
import torch
from torch import Tensor

from fastscape._checks import check_memory
from fastscape._clock import now
from fastscape._state import exact_arithmetic
from fastscape.directions import Directions
from fastscape.evaluation.arithmetic import assumed
from fastscape.evaluation.determinism import NondeterministicLossError
from fastscape.evaluation.evaluator import Evaluator, PathName
from fastscape.evaluation.trial import PathChoice
from fastscape.objective.objective import Objective
from fastscape.objective.replica import Replica
from fastscape.objective.sharded_replica import ShardedReplica
from fastscape.objective.sharding import ShardedModelError
from fastscape.ops import Distribution, Perturbation


class ShardedEvaluator(Evaluator):
    """:class:`fastscape.evaluation.evaluator.Evaluator` of a sharded model: one forward per point, on the user's own module.

    Every process writes ``w + r d`` into its own shards, from a copy that it keeps of them; the noise is that of their place in
    the whole. All processes must make the same calls. The weights, buffers and modes come back bit for bit on exit, whatever
    happens.

    Memory: a copy of the local shards, and what the forward gathers.
    """

    in_place = True

    def __enter__(self) -> ShardedEvaluator:
        with ExitStack() as stack:
            stack.enter_context(exact_arithmetic(self.dtype))
            stack.enter_context(self.objective.held())
            self.replica = ShardedReplica(self.objective, self.dtype)
            self._path = None
            self._loop = ShardedLoop(self.replica)
            assumed(self.objective, self.dtype)
            if self.gate:
                start = now()
                self._repeats()
                self.forward_seconds = self.replica.sharding.largest((now() - start) / self.replica.gate)
            self._stack = stack.pop_all()
        return self

    def prepare(self, directions: Directions, radii: Sequence[float]) -> PathChoice:
        """See :meth:`Evaluator.prepare`: there is one path."""
        if self._path is None:
            directions.check(self.objective)
            self._path = self._loop
        if self.choice is None or self.choice.name != "loop":
            self.choice = PathChoice("loop", 1, {}, "of a sharded model")
        return super().prepare(directions, radii)

    def _repeats(self) -> None:
        """Evaluate L(w) twice.

        Raises:
            NondeterministicLossError: the two differ.
        """
        losses = []
        for _ in range(2):
            self.replica.reset()
            losses.append(float(self.replica.loss()))
        if losses[0] != losses[1] and not all(map(math.isnan, losses)):
            raise NondeterministicLossError(
                f"the loss must be deterministic, got {losses[0]!r} and then {losses[1]!r} at the same weights and data of a "
                "sharded model; make the evaluation-mode forward and the loss free of randomness and of state"
            )


class ShardedLoop:
    """One forward per point; see :class:`fastscape.evaluation.paths.Path`."""

    name = "loop"

    def __init__(self, replica: Replica) -> None:
        assert isinstance(replica, ShardedReplica)
        self._replica = replica
        self._kind: object = None
        self._unperturbed: Tensor | None = None

    def losses(self, directions: Directions, indices: Sequence[int], radii: Sequence[float]) -> Tensor:
        """L(w + r d_i), float64 ``[indices, radii]`` on the CPU."""
        out = torch.empty(len(indices), len(radii), dtype=torch.float64)
        for row, index in enumerate(indices):
            self._select(directions, index)
            out[row] = torch.stack([self._at(radius) for radius in radii]).cpu()
        return out

    def _at(self, radius: float) -> Tensor:
        if radius == 0:
            if self._unperturbed is None:
                self._replica.reset()
                self._unperturbed = self._replica.loss()
            return self._unperturbed
        if self._move is not None:
            self._move.write(radius)
        return self._replica.loss()

    def _select(self, directions: Directions, index: int) -> None:
        if self._kind is not directions.normaliser:
            self._prepare(directions)
        assert directions.seed is not None
        scales = directions.scales(index)
        if self._move is not None:
            self._move.aim(directions.seed, index, np.ascontiguousarray(scales[self._own]))

    def _prepare(self, directions: Directions) -> None:
        """What this process moves: parts that are not empty, and the factors of their pieces among those of the whole."""
        pieces, parts = directions.normaliser.pieces, self._replica.parts
        starts = np.cumsum(pieces) - pieces
        here = [slot for slot, part in enumerate(parts) if part.local.numel()]
        groups = [parts[slot].local.shape[0] if pieces[slot] > 1 else 1 for slot in here]
        own = [
            starts[slot] + (parts[slot].row if pieces[slot] > 1 else 0) + np.arange(count)
            for slot, count in zip(here, groups, strict=True)
        ]
        self._own = np.concatenate(own) if own else np.zeros(0, dtype=np.int64)
        self._move: Perturbation | None = None
        if here:
            self._move = Perturbation(
                [self._replica.base[slot] for slot in here],
                [[self._replica.scratch[slot] for slot in here]],
                [directions.ids[slot] for slot in here],
                groups=groups,
                distribution=cast(Distribution, directions.distribution),
                firsts=[parts[slot].first for slot in here],
            )
        self._kind = directions.normaliser


def evaluator_of(
    objective: Objective,
    dtype: torch.dtype,
    *,
    method: PathName | PathChoice | None = None,
    memory: int | None = None,
    gate: bool = True,
    trial: float = math.inf,
) -> Evaluator:
    """The evaluator of an objective, by whether its model is sharded; for the arguments see :class:`Evaluator`."""
    kind = ShardedEvaluator if objective.sharding is not None else Evaluator
    if objective.sharding is not None:
        check_memory(memory)
        name = method.name if isinstance(method, PathChoice) else method
        if name not in (None, "loop"):
            raise ShardedModelError(f"method must be 'loop' or None for a sharded model, got {name!r}")
    return kind(objective, dtype, method=method, memory=memory, gate=gate, trial=trial)
