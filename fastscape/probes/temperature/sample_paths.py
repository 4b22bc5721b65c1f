"""Ways to the gradients of single samples: one backward each, or a batch of them by ``vmap``, whichever is faster."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from fastscape._checks import counted
from fastscape._warnings import filtered_warnings
from fastscape.evaluation.arithmetic import replica_arithmetic
from fastscape.evaluation.footprint import Cap, footprint
from fastscape.evaluation.samples import part, rows_of, split_rows
from fastscape.evaluation.trial import Refusal, Trial, activation_bytes, memory_for, timed, told
from fastscape.objective.batches import Batch
from fastscape.objective.objective import Objective
from fastscape.objective.replica import Replica
from fastscape.objective.structures import map_tensors, tensors_of
from fastscape.runs.evaluations import Evaluations, Value

_CHUNK = 64  # samples a call at most: dispatch is amortised, and the gradients of small networks stay in the cache
_BLOCK_BYTES = 1 << 30  # of a block by default: the gradients of 6 samples of a ResNet-18, whose dispatch is no cost
_MEANS = 4  # vectors: the mean by tensors and as one, the sum of rows, and what is added to it
_TRIAL = 2  # samples that both paths are timed and compared on
_AGREEMENT = 1e4  # ulp by which two ways to the same sample gradient may differ, relative to its norm
_ROUNDED = 4.0  # units of a narrower dtype inside the model


class CoupledSamplesError(RuntimeError):
    """The gradients of single samples do not average to the gradient, or cannot be computed."""


class SampleRows:
    """Gradients of the samples of an objective, in its order, those of weight 0 left out.

    Args:
        objective: the loss.
        replica: a copy of it.

    Raises:
        CoupledSamplesError: samples are not the rows of their batch.

    Attributes:
        weights: of the samples in the loss.
        path, chunk, reason: ``"loop"`` or ``"vmap"``, samples a call, and why.
        refused: whether ``vmap`` cannot be taken.
        evaluations: gradients of samples so far.
    """

    def __init__(self, objective: Objective, replica: Replica) -> None:
        self._objective, self._replica = objective, replica
        self.path, self.chunk, self.reason, self.refused = "loop", 1, "", False
        self.evaluations = 0
        self._places: list[tuple[int, int]] = []
        self.weights: list[float] = []
        for index, batch in enumerate(replica.batches):
            count = objective.count(batch)
            if rows_of(objective, batch) != count:
                raise CoupledSamplesError(f"batch {index} cannot be cut into its {counted(count, 'sample')}: its rows differ")
            for row in range(count):
                weight = objective.terms(part(objective.batches[index], count, row, row + 1))
                if weight:
                    self._places.append((index, row))
                    self.weights.append(weight)

    def rows(self, units: Sequence[int]) -> Tensor:
        """Gradients of samples of one batch as rows ``[k, D]``."""
        return self._by_vmap(units) if self.path == "vmap" else self._by_loop(units)

    def blocks(self) -> Iterator[list[int]]:
        """Samples in order, as many at a time as one call takes; a block lies within a batch."""
        start = 0
        while start < len(self._places):
            stop = min(start + self.chunk, len(self._places))
            stop = next((unit for unit in range(start, stop) if not self.together(start, unit)), stop)
            yield list(range(start, stop))
            start = stop

    def together(self, unit: int, other: int) -> bool:
        """Whether two samples are of one batch."""
        return self._places[unit][0] == self._places[other][0]

    def rounded(self) -> float:
        """Relative difference of gradients by steps inside the model, as of an autocast, that are rounded in another order."""
        narrow = replica_arithmetic(self._replica).narrow
        return 0.0 if narrow is None else _ROUNDED * torch.finfo(narrow).eps

    # ------------------------------------------------------------------ choosing

    def choose(self, memory: int | None, evaluations: Evaluations) -> None:
        """Evaluate as the first run chose to, or choose; see :meth:`_choose`."""
        found = evaluations.taken("method", (memory,), functools.partial(self._chosen, memory))
        self.path, self.chunk, self.reason = str(found["path"]), int(found["chunk"]), str(found["reason"])
        self.refused, self.evaluations = bool(found["refused"]), int(found["evaluations"])

    def _chosen(self, memory: int | None) -> Value:
        self._choose(memory)
        return {name: getattr(self, name) for name in ("path", "chunk", "reason", "refused", "evaluations")}

    def _choose(self, memory: int | None) -> None:
        """The faster of vmap and loop, on samples of the first batch; vmap only where both give the same.

        Raises:
            CoupledSamplesError: the model does not run on single samples.
        """
        units = [unit for unit in range(min(_TRIAL, len(self._places))) if self.together(0, unit)]
        trial = Trial[str]()
        try:
            seconds, expected = timed(lambda: _ended(self._by_loop(units)))
        except Exception as error:  # the model has just run on whole batches
            raise CoupledSamplesError(
                f"the model does not run on single entries of a batch's leading dimension ({told(error)})"
            ) from error
        trial.seconds["loop"] = seconds / len(units)
        self.chunk = self._affordable(memory)
        if trial.attempt("vmap", lambda: self._tried(trial, units, expected)):
            lead = trial.lead("vmap")
            self.reason = f"vmap is {lead:.1f}x as fast as one backward per sample"
            self.path = "loop" if lead < 1 else "vmap"
        else:
            self.reason, self.refused = f"one backward per sample: {trial.refused['vmap']}", True
        if self.path == "loop":
            self.chunk = 1

    def _tried(self, trial: Trial[str], units: Sequence[int], expected: Tensor) -> str:
        found = self._by_vmap(units)
        off = torch.linalg.vector_norm(found - expected, dim=1)
        size = torch.linalg.vector_norm(expected, dim=1)
        allowed = max(_AGREEMENT * torch.finfo(self._replica.dtype).eps, self.rounded())
        if bool((off > allowed * size).any()):  # not of NaN
            raise Refusal(
                "vmap gives other gradients: the model accesses parameters outside named_parameters() (a list, a closure)"
            )
        block = next(self.blocks())
        trial.seconds["vmap"] = timed(lambda: _ended(self._by_vmap(block)))[0] / len(block)
        return "vmap"

    def _affordable(self, memory: int | None) -> int:
        """Samples whose gradients, and what a call makes of them on its way, fit in memory."""
        objective, replica = self._objective, self._replica
        each = objective.size * 4 * torch.finfo(replica.dtype).bits // 8
        replica.take(objective)
        each += activation_bytes(replica) // max(1, min(objective.count(batch) for batch in replica.batches))
        limit: float = min(_BLOCK_BYTES, memory_for(None, objective.device))
        if memory is not None:
            limit = Cap(memory).room() - gradients_held(objective, replica.dtype)
        return int(max(1, min(_CHUNK, limit // each)))

    # ------------------------------------------------------------------ evaluating

    def _by_loop(self, units: Sequence[int]) -> Tensor:
        return torch.stack([flat(self._gradient(unit)) for unit in units])

    def _gradient(self, unit: int) -> list[Tensor]:
        index, row = self._places[unit]
        objective = self._objective
        batch = objective.batches[index]
        sample = objective.of([part(batch, objective.count(batch), row, row + 1)])
        self.evaluations += 1
        return gradient(self._replica, sample)

    def _by_vmap(self, units: Sequence[int]) -> Tensor:
        objective, replica, index = self._objective, self._replica, self._places[units[0]][0]
        names = [f"model.{name}" for name in objective.names]
        if replica.objective is not objective:
            replica.take(objective)
        batch = replica.batches[index]
        own = split_rows(batch, objective.count(batch))
        picked = torch.tensor([self._places[unit][1] for unit in units], device=objective.device)
        tensors = [
            tensor[picked].unsqueeze(1) if rows else tensor.clone() for tensor, rows in zip(tensors_of(batch), own, strict=True)
        ]

        def loss(parameters: list[Tensor], *parts: Tensor) -> Tensor:
            sample = _rebuilt(batch, parts)
            value: Tensor = functional_call(replica.module, dict(zip(names, parameters, strict=True)), (sample,))[0]
            return value

        with filtered_warnings("There is a performance drop"):  # no batching rule: the choice of path measures it
            batched = vmap(grad(loss), in_dims=(None, *[0 if rows else None for rows in own]), randomness="error")
            replica.reset()
            found = batched([tensor.detach() for tensor in replica.scratch], *tensors)  # base is the user's own memory
        self.evaluations += len(units)
        return torch.cat([gradient.reshape(len(units), -1) for gradient in found], 1)


def gradients_held(objective: Objective, dtype: torch.dtype) -> int:
    """Bytes of a copy, the mean gradient, and a gradient of the largest batch, beside which a block of sample gradients lies."""
    found, vector = footprint(objective, dtype), objective.size * torch.finfo(dtype).bits // 8
    return int(2 * found.copy + _MEANS * vector + found.gradient)


def gradient(replica: Replica, objective: Objective) -> list[Tensor]:
    """The gradient of another objective over the weights of a replica, one tensor per parameter."""
    replica.take(objective)
    replica.reset()
    return replica.loss_and_gradient()[1]


def flat(parts: Sequence[Tensor]) -> Tensor:
    """Tensors as one vector ``[D]``."""
    return torch.cat([tensor.reshape(-1) for tensor in parts])


def _rebuilt(batch: Batch, parts: Sequence[Tensor]) -> Batch:
    """The batch with other tensors, in order."""
    remaining = iter(parts)
    return map_tensors(batch, lambda _tensor: next(remaining))


def _ended(rows: Tensor) -> Tensor:
    """The rows, once they are computed."""
    float(rows[0, 0])
    return rows
