"""Evaluation of a sharded model as it is: its own shards are displaced, and come back (:mod:`fastscape.objective.sharding`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fastscape.objective.batches import Batch, placed
from fastscape.objective.criteria import correct
from fastscape.objective.definition import Definition
from fastscape.objective.replica import Replica, _LossModule
from fastscape.objective.sharding import ShardedModelError, Sharding, gradient_policy, whole


class _EvaluatedInPlace(_LossModule):
    """The loss of a sharded model, which lets go of gathered weights after every forward: the shards may move before the next."""

    def __init__(self, objective: Definition, dtype: torch.dtype, sharding: Sharding) -> None:
        super().__init__(objective.model, objective, dtype, frozenset())
        self._sharding = sharding

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        try:
            return super().forward(batch)
        except BaseException:
            self._sharding.recover()
            raise
        finally:
            if not torch.is_grad_enabled():  # a backward pass takes the gathered weights
                self._sharding.reshard()


class ShardedReplica(Replica):
    """The objective's own model, whose local shards are scratch space inside ``sharding.held``.

    ``base`` and ``scratch`` are what this process holds of the probed parameters. A forward gathers weights from all processes,
    so all make as many: of several batches, process r takes r, r + W, ..., and those that are out of batches repeat the last.
    """

    def __init__(self, objective: Definition, dtype: torch.dtype) -> None:
        assert objective.sharding is not None
        self.objective, self.dtype = objective, dtype
        self.sharding: Sharding = objective.sharding
        self.base = self.sharding.kept(objective.names)
        if dtype != objective.dtype:
            wanted, own = (str(each).removeprefix("torch.") for each in (dtype, objective.dtype))
            raise ShardedModelError(
                f"precision must be {own!r}, the dtype of the sharded model, or None, got {wanted!r}; "
                f"call model.{'double' if dtype == torch.float64 else 'float'}() before its first forward"
            )
        self.module = _EvaluatedInPlace(objective, dtype, self.sharding)
        self.batches = [placed(batch, objective.device, dtype) for batch in objective.batches]
        self.parts = self.sharding.parts(objective.names)
        self.scratch = [part.local for part in self.parts]
        self._still = []
        self._begin()

    def reset(self) -> None:
        """Write the unperturbed weights into the shards."""
        super().reset()
        self.sharding.reshard()

    def _forward(self, _index: int, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return self.module.forward(batch)

    def _dealt(self, take: Callable[[int, bool], Sequence[float]], width: int) -> Tensor:
        """Rows of numbers of all batches, float64 ``[batches, width]``; ``take`` gets a batch and whether it counts."""
        count, processes = len(self.batches), self.sharding.count if self.sharding.dealt else 1
        mine = self.sharding.index if self.sharding.dealt else 0
        rows = torch.zeros(count, width, dtype=torch.float64, device=self.objective.device)
        for first in range(0, count, processes):
            index = first + mine
            found = take(min(index, count - 1), index < count)
            if index < count:
                rows[index] = torch.tensor(found, dtype=torch.float64)
        return self.sharding.sum(rows) if self.sharding.dealt else rows

    def loss(self) -> Tensor:
        """See :meth:`Replica.loss`; the same bits in every process, and those of an unsharded model."""
        self.evaluations += 1
        losses = self._dealt(lambda index, _: (float(whole(self.batch_loss(index)[0])),), 1)[:, 0]
        if len(losses) == 1:
            return losses[0]
        weights = self.objective.batch_weights
        total = losses[0] * weights[0]
        for index in range(1, len(weights)):
            total.add_(losses[index] * weights[index])
        return total / self.objective.samples

    def loss_and_accuracy(self) -> tuple[float, float | None]:
        """See :meth:`Replica.loss_and_accuracy`."""

        def take(index: int, _counts: bool) -> tuple[float, float, float]:
            loss, outputs = self.batch_loss(index)
            targets = None if outputs is None else self.objective.batches[index][1]
            found = None if outputs is None else correct(self.objective.criterion, outputs, targets)
            return float(whole(loss)), *((0, 0) if found is None else found)

        rows, value = self._dealt(take, 3), 0.0
        for loss, weight in zip(rows[:, 0].tolist(), self.objective.batch_weights, strict=True):
            value += weight * loss
        right, total = rows[:, 1:].sum(0).tolist()
        return value / self.objective.samples, right / total if total else None

    def loss_and_gradient(self, batches: Sequence[int] | None = None) -> tuple[float, list[Tensor]]:
        """L and the local parts of its gradient; what FSDP2 sums over the processes has the rounding of its order.

        Raises:
            ShardedModelError: settings of FSDP2 by which gradients are others.
        """
        assert batches is None
        why = gradient_policy(self.sharding)
        if why:
            raise ShardedModelError(f"model must give plain gradients for this: {why}")
        self.evaluations += 1
        weights, samples = self.objective.batch_weights, self.objective.samples
        processes = self.sharding.count if self.sharding.dealt else 1  # FSDP2 takes the mean over them
        held = dict(self.objective.model.named_parameters())
        user = {name: (parameter.grad, parameter.requires_grad) for name, parameter in held.items()}
        for name, parameter in held.items():
            parameter.grad = None
            parameter.requires_grad_(name in self.objective.names)

        def take(index: int, counts: bool) -> tuple[float]:
            loss = self.batch_loss(index)[0]
            (loss * (weights[index] / samples * processes * counts)).backward()  # type: ignore[no-untyped-call]
            return (float(whole(loss.detach())),)

        try:
            with torch.enable_grad():
                losses = self._dealt(take, 1)[:, 0].tolist()
            self.sharding.reshard()
            parts = [self._gradient(held[name], slot) for name, slot in zip(self.objective.names, self.scratch, strict=True)]
        finally:
            self.sharding.reshard()
            for name, parameter in held.items():
                parameter.grad = user[name][0]
                parameter.requires_grad_(user[name][1])
        value = 0.0
        for loss, weight in zip(losses, weights, strict=True):
            value += weight * loss
        return value / samples, parts

    def _gradient(self, parameter: Tensor, slot: Tensor) -> Tensor:
        """The local part of a parameter's gradient; that of a plain parameter beside FSDP2's is summed here."""
        gradient = parameter.grad
        if gradient is None:
            return torch.zeros_like(slot)
        if hasattr(gradient, "redistribute"):  # of plain DTensors it may be cut another way than the parameter
            local: Tensor = gradient.redistribute(placements=cast(Any, parameter).placements).to_local()
            return local.detach().clone()
        if self.sharding.dealt:
            return self.sharding.sum(gradient.detach() / self.sharding.count)
        return gradient.detach().clone()
