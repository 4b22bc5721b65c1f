r"""Gradients of single samples, or of groups of them, one block at a time: deviations from the mean, never an N x D matrix."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fastscape._checks import counted, first_line
from fastscape._clock import now
from fastscape._state import exact_arithmetic
from fastscape.evaluation.arithmetic import replica_arithmetic
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.evaluator import activation_bytes
from fastscape.evaluation.points import Array
from fastscape.evaluation.samples import groups_of, part, rows_of, samples_of, split_rows
from fastscape.objective.batches import Batch, available_memory
from fastscape.objective.objective import Objective
from fastscape.objective.structures import map_tensors, tensors_of

Method = Literal["per-sample", "two-batch"]
_CHUNK = 64  # samples a call at most: dispatch is amortised, and the gradients of small networks stay in the cache
_BLOCK_BYTES = 1 << 30  # of a block by default: the gradients of 6 samples of a ResNet-18, whose dispatch is no cost
_TRIAL = 2  # samples that both paths are timed and compared on
_AGREEMENT = 1e4  # ulp by which two ways to the same sample gradient may differ, relative to its norm
_ROUNDED = 4.0  # units of a narrower dtype inside the model
_ADDS_UP = 1e-3  # deviation of the mean of sample gradients from the gradient, over the noise of that mean
_GROUPS = 32  # of the two-batch estimator, where the objective's own batches are fewer than 8
_OWN = 8


@dataclass
class Deviations:
    r"""Squared deviations of K units from the mean gradient; see :class:`fastscape.probes.temperature.gradient_noise.Units`.

    Attributes:
        spread: :math:`b_k r_k^2 \|g_k - \bar g\|^2` of every tensor ``[K, tensors]``; r is a sample's weight over the mean
            weight.
        shift, along: ``[K]``.
        norms: :math:`\|g_k\|` ``[K]``.
        sizes: samples of every unit ``[K]``.
    """

    spread: list[Array] = field(default_factory=list)
    shift: list[Array] = field(default_factory=list)
    along: list[Array] = field(default_factory=list)
    norms: list[Array] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


class SampleGradients:
    r"""Gradients :math:`g_k` of units, and their mean :math:`\bar g = \sum_k w_k g_k / \sum_k w_k` with w the terms of each.

    A unit is a sample (see :meth:`Objective.count`: a row of a batch; for token-level losses a sequence, not a token), or,
    for ``"two-batch"``, one of the objective's batches, or a group of samples where it has fewer than 8. Sample gradients come
    from ``vmap(grad)`` or from one backward each, whichever is faster on this model; ``vmap`` is taken only where it gives the
    same.

    Args:
        objective: the loss; half-precision models are evaluated in float32.
        method: ``"per-sample"``, ``"two-batch"``, or ``None`` for the first where the samples of a batch do not depend on each
            other (batch norm with batch statistics makes them).
        memory: bytes that a block of sample gradients may take; default 1 GiB, or half of what is available.
        split: whether batches may be cut into groups for ``"two-batch"``.
        group: samples of such a group at most, where batch norm takes their statistics: those of a minibatch of training.

    Raises:
        ValueError: ``"per-sample"`` for a model that couples samples, or fewer than 3 units.
        NondeterministicLossError: on entry.
        CoupledSamplesError: on entry, where the model runs on batches and not on single samples of them.

    Attributes:
        method, path, reason: what was chosen, and why.
        mean: the mean gradient, one tensor per parameter.
        loss: L(w).
        sizes: samples of each unit, b_k ``[K]``.
        shares: rho_k, the weight of a unit over the mean weight of a unit ``[K]``.
        factors: b_k r_k^2 ``[K]``, r the weight of a unit's samples over the mean weight of a sample.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        method: Method | None = None,
        memory: int | None = None,
        split: bool = True,
        group: int | None = None,
    ) -> None:
        if method not in (None, "per-sample", "two-batch"):
            raise ValueError(f"method must be 'per-sample', 'two-batch' or None, got {method!r}")
        self.objective = objective
        half = objective.dtype in (torch.float16, torch.bfloat16)
        self.dtype = torch.float32 if half else objective.dtype
        self._memory, self._split, self._stack = memory, split, ExitStack()
        self.coupled = coupled = _coupled(objective)
        self._most = group
        if coupled and method == "per-sample":
            raise ValueError(
                "method must be 'two-batch' for batch_norm='batch' (which None is in training), got 'per-sample': samples share "
                "statistics"
            )
        self.method: Method = method or ("two-batch" if coupled else "per-sample")
        self.reason = "asked for" if method else "batch statistics couple the samples of a batch" if coupled else ""
        self.path, self._chunk = "loop", 1

    def __enter__(self) -> SampleGradients:
        with ExitStack() as stack:
            stack.enter_context(exact_arithmetic(self.dtype))
            self.replica = self.objective.replica(self.dtype)
            self.loss = unperturbed_loss(self.replica)
            self.evaluations = 2
            if self.method == "per-sample":
                self.mean = self._gradient(self.objective)
                self._use_samples()
            else:
                self._use_groups()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    # ------------------------------------------------------------------ units

    def _use_samples(self) -> None:
        objective, units = self.objective, list[tuple[int, int, float]]()
        for index, batch in enumerate(self.replica.batches):
            count = objective.count(batch)
            if rows_of(objective, batch) != count:
                raise CoupledSamplesError(f"batch {index} cannot be cut into its {counted(count, 'sample')}: its rows differ")
            for row in range(count):
                weight = objective.terms(part(objective.batches[index], count, row, row + 1))
                if weight:
                    units.append((index, row, weight))
        self._places = units
        self._set_units([1] * len(units), [weight for _, _, weight in units])
        self._choose()

    def _use_groups(self) -> None:
        objective = self.objective
        self.path, self._chunk = "loop", 1
        if len(objective.batches) >= _OWN or not self._split:
            self._groups = [objective.on(index) for index in range(len(objective.batches))]
        else:
            count, coupled = samples_of(objective), self.coupled
            size = max(1, count // _GROUPS)
            if coupled:  # as many as a minibatch, whose statistics they stand for, or as leave eight groups
                size = max(2, count // _GROUPS if self._most is None else min(self._most, count // _OWN))
            while coupled and count % size == 1 and size < count:  # a last sample alone has no batch statistics
                size += 1
            self._groups = groups_of(objective, size)
        sizes = [samples_of(group) for group in self._groups]
        self._set_units(sizes, [group.samples for group in self._groups])
        total: list[Tensor] | None = None
        for group in self._groups:
            parts = self._gradient(group)
            share = group.samples / float(self._weights.sum())
            total = [share * new if total is None else total[i].add_(new, alpha=share) for i, new in enumerate(parts)]
        assert total is not None
        self.mean = total

    def _set_units(self, sizes: Sequence[int], weights: Sequence[float]) -> None:
        if len(sizes) < 3:
            what = "samples" if self.method == "per-sample" or self._split else "batches, which cannot be cut into samples,"
            raise ValueError(f"data must hold at least 3 {what} for the noise of their gradients, got {len(sizes)}; pass more")
        self.sizes, self._weights = np.array(sizes), np.array(weights)
        per_sample = self._weights.sum() / self.sizes.sum()
        self.factors: Array = self.sizes * (self._weights / self.sizes / per_sample) ** 2  # b r^2
        self.shares: Array = self._weights / self._weights.mean()

    def __len__(self) -> int:
        return len(self.sizes)

    # ------------------------------------------------------------------ gradients

    def rows(self, units: Sequence[int]) -> Tensor:
        """Gradients of units as rows ``[k, D]``."""
        if self.method == "two-batch":
            return torch.stack([_flat(self._gradient(self._groups[unit])) for unit in units])
        if self.path == "vmap":
            return self._by_vmap(units)
        return torch.stack([_flat(self._gradient(self._sample(unit))) for unit in units])

    def deviations(self, found: Deviations, stop: Callable[[], bool] | None = None) -> Deviations:
        """Fill ``found`` with all units, in blocks; until ``stop`` is true.

        Raises:
            CoupledSamplesError: the sample gradients do not average to the gradient.
        """
        mean, slices = _flat(self.mean), self._slices()
        total = torch.zeros_like(mean)
        for block in self.blocks():
            if stop is not None and found.norms and stop():
                return found
            rows = self.rows(block)
            factors, shares = self.factors[block], self.shares[block]
            total.add_(torch.from_numpy(shares / len(self)).to(rows) @ rows)
            norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
            rows.sub_(mean)
            squares = [torch.linalg.vector_norm(rows[:, where], dim=1, dtype=torch.float64).square() for where in slices]
            table = torch.stack(squares, 1).cpu().numpy()  # [k, tensors]
            found.spread.append(factors[:, None] * table)
            found.shift.append(shares**2 * table.sum(1))
            found.along.append(shares * _products(rows, mean))
            found.norms.append(norms.cpu().numpy())
            found.sizes.extend(self.sizes[block].tolist())
        self._check_sum(total, mean, found)
        return found

    def blocks(self) -> Iterator[list[int]]:
        """Units in order, as many at a time as one call takes; a block lies within a batch."""
        start = 0
        while start < len(self):
            stop = min(start + self._chunk, len(self))
            if self.method == "per-sample":
                batch = self._places[start][0]
                stop = next((unit for unit in range(start, stop) if self._places[unit][0] != batch), stop)
            yield list(range(start, stop))
            start = stop

    def together(self, unit: int, other: int) -> bool:
        """Whether two units may be asked for in one call of :meth:`rows`: samples of one batch, or any groups."""
        return self.method == "two-batch" or self._places[unit][0] == self._places[other][0]

    def _check_sum(self, total: Tensor, mean: Tensor, found: Deviations) -> None:
        if self.method == "two-batch":
            return
        deviation = float((total - mean).double().norm())
        noise = float(np.mean(np.concatenate(found.norms) ** 2)) / len(self) + float(mean.double().norm()) ** 2
        if deviation > max(_ADDS_UP, self._rounded()) * noise**0.5:  # not of NaN
            raise CoupledSamplesError(
                f"sample gradients do not average to the gradient (off by {deviation / noise**0.5:.1e} of it): the samples of a "
                "batch depend on each other, or are not its rows"
            )

    def _gradient(self, objective: Objective) -> list[Tensor]:
        self.replica.take(objective)
        self.replica.reset()
        self.evaluations += 1
        return self.replica.loss_and_gradient()[1]

    def _sample(self, unit: int) -> Objective:
        index, row, _ = self._places[unit]
        batch = self.objective.batches[index]
        return self.objective.of([part(batch, self.objective.count(batch), row, row + 1)])

    def _slices(self) -> list[slice]:
        stops = np.cumsum([tensor.numel() for tensor in self.mean]).tolist()
        return [slice(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]

    # ------------------------------------------------------------------ vmap

    def _choose(self) -> None:
        """The faster of vmap and loop, on samples of the first batch; vmap only where both give the same."""
        trial = next(iter(self.blocks()))[:1] + ([1] if len(self) > 1 and self._places[1][0] == self._places[0][0] else [])
        trial = trial[:_TRIAL]
        try:
            loop, expected = _timed(lambda: self.rows(trial))
        except Exception as error:  # the model has just run on whole batches
            raise CoupledSamplesError(
                f"the model does not run on single entries of a batch's leading dimension ({type(error).__name__}: "
                f"{first_line(error)[:120]})"
            ) from error
        per_row = self.objective.size * 4 * torch.finfo(self.dtype).bits // 8
        self.replica.take(self.objective)
        per_row += activation_bytes(self.replica) // max(1, min(self.objective.count(batch) for batch in self.replica.batches))
        limit = self._memory or min(_BLOCK_BYTES, available_memory(self.objective.device) // 2)
        self._chunk = int(max(1, min(_CHUNK, limit // per_row)))
        try:
            self.path = "vmap"
            self._close(self._by_vmap(trial), expected)
            block = next(iter(self.blocks()))
            seconds = _timed(lambda: self._by_vmap(block))[0] / len(block)
        except Exception as error:  # whatever a model does under vmap: the loop has just run it
            self.path, self._chunk = "loop", 1
            self.reason = (
                f"one backward per sample: vmap cannot run this model: {type(error).__name__}: {first_line(error)[:120]}"
            )
            return
        self.reason = self.reason or f"vmap is {loop / len(trial) / seconds:.1f}x as fast as one backward per sample"
        if seconds > loop / len(trial):
            self.path, self._chunk = "loop", 1

    def _rounded(self) -> float:
        """Relative difference of gradients by steps inside the model, as of an autocast, that are rounded in another order."""
        narrow = replica_arithmetic(self.replica).narrow
        return 0.0 if narrow is None else _ROUNDED * torch.finfo(narrow).eps

    def _close(self, found: Tensor, expected: Tensor) -> None:
        off = torch.linalg.vector_norm(found - expected, dim=1)
        size = torch.linalg.vector_norm(expected, dim=1)
        allowed = max(_AGREEMENT * torch.finfo(self.dtype).eps, self._rounded())
        if bool((off > allowed * size).any()):  # not of NaN
            raise RuntimeError(
                "vmap gives other gradients: the model accesses parameters outside named_parameters() (a list, a closure)"
            )

    def _by_vmap(self, units: Sequence[int]) -> Tensor:
        replica, index = self.replica, self._places[units[0]][0]
        names = [f"model.{name}" for name in self.objective.names]
        if replica.objective is not self.objective:
            replica.take(self.objective)
        batch = replica.batches[index]
        own = split_rows(batch, self.objective.count(batch))
        picked = torch.tensor([self._places[unit][1] for unit in units], device=self.objective.device)
        tensors = [
            tensor[picked].unsqueeze(1) if rows else tensor.clone() for tensor, rows in zip(tensors_of(batch), own, strict=True)
        ]

        def loss(parameters: list[Tensor], *parts: Tensor) -> Tensor:
            sample = _rebuilt(batch, parts)
            value: Tensor = functional_call(replica.module, dict(zip(names, parameters, strict=True)), (sample,))[0]
            return value

        with warnings.catch_warnings():  # operations without a batching rule are slow: the choice of path measures it
            warnings.filterwarnings("ignore", message="There is a performance drop")
            batched = vmap(grad(loss), in_dims=(None, *[0 if rows else None for rows in own]), randomness="error")
            replica.reset()
            found = batched([tensor.detach() for tensor in replica.scratch], *tensors)  # base is the user's own memory
        self.evaluations += len(units)
        return torch.cat([gradient.reshape(len(units), -1) for gradient in found], 1)


def _coupled(objective: Objective) -> bool:
    """Whether samples share the statistics of their batch: in batch norm that takes them, asked for or without running ones."""
    switched = set(objective.by_batch) if objective.batch_norm == "batch" else set()
    return any(
        name in switched or (isinstance(module, _BatchNorm) and module.running_mean is None)
        for name, module in objective.model.named_modules()
        if not isinstance(module, _InstanceNorm)
    )


class CoupledSamplesError(RuntimeError):
    """The gradients of single samples do not average to the gradient, or cannot be computed."""


def _rebuilt(batch: Batch, parts: Sequence[Tensor]) -> Batch:
    """The batch with other tensors, in order."""
    remaining = iter(parts)
    return map_tensors(batch, lambda _tensor: next(remaining))


def _products(rows: Tensor, vector: Tensor) -> Array:
    """Inner products of rows ``[k, D]`` with ``[D]``, in float64 for float64 rows and at float32's rounding otherwise."""
    found: Array = (rows @ vector).double().cpu().numpy()
    return found


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in parts])


def _timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds of the faster of two calls, and what it returns."""
    times = []
    for _ in range(2):
        start = now()
        found = call()
        float(found[0, 0])  # synchronises
        times.append(now() - start)
    return min(times), found
