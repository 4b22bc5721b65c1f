r"""Gradients of single samples, or of groups of them, one block at a time: deviations from the mean, never an N x D matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fastscape._checks import one_of
from fastscape._state import left_on_failure
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.footprint import capped_arithmetic, footprint
from fastscape.evaluation.points import Array
from fastscape.evaluation.samples import groups_of, samples_of
from fastscape.numerics.gram_schmidt import random_rows
from fastscape.objective.objective import Objective
from fastscape.probes.temperature.sample_paths import CoupledSamplesError, SampleRows, flat, gradient, gradients_held
from fastscape.runs.evaluations import Evaluations, Value, digest

Method = Literal["per-sample", "two-batch"]
_ADDS_UP = 1e-3  # deviation of the mean of sample gradients from the gradient, over the noise of that mean
_VECTORS = 12  # beside products: the mean and its product, and blocks of four: units, deviations
_GROUPS = 32  # of the two-batch estimator, where the objective's own batches are fewer than 8
_OWN = 8
_SKETCH = 1024  # numbers that stand for a vector of D: its length to 2 %, against a limit that means a power of ten


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
        evaluations: of a run; the mean and the numbers of every block are taken from its journal where they are there.

    Raises:
        ValueError: ``"per-sample"`` for a model that couples samples, or fewer than 3 units.
        NondeterministicLossError: on entry.
        CoupledSamplesError: on entry, where the model runs on batches and not on single samples of them.

    Attributes:
        method, reason: what was chosen, and why.
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
        evaluations: Evaluations | None = None,
    ) -> None:
        one_of("method", method, ("per-sample", "two-batch", None))
        self.objective = objective
        half = objective.dtype in (torch.float16, torch.bfloat16)
        self.dtype = torch.float32 if half else objective.dtype
        self._memory, self._split, self._block = memory, split, capped_arithmetic(self.dtype, memory)
        self.coupled = coupled = _coupled(objective)
        self._most = group
        if coupled and method == "per-sample":
            raise ValueError(
                "method must be 'two-batch' for batch_norm='batch' (which None is in training), got 'per-sample': samples share "
                "statistics"
            )
        self.method: Method = method or ("two-batch" if coupled else "per-sample")
        self.reason = "asked for" if method else "batch statistics couple the samples of a batch" if coupled else ""
        self._samples: SampleRows | None = None
        self._gradients = 0  # of the whole and of groups
        self._kept, self._taken = evaluations or Evaluations(), 0  # evaluations that a journal had

    @property
    def path(self) -> str:
        """``"loop"`` or ``"vmap"``."""
        return "loop" if self._samples is None else self._samples.path

    @property
    def evaluations(self) -> int:
        """Evaluations and gradients so far."""
        return 2 + self._gradients + self._taken + (0 if self._samples is None else self._samples.evaluations)

    @property
    def beside(self) -> int | None:
        """Bytes for products, beside the copy, the mean, and a few gradients of units, where there is a cap."""
        if self._memory is None:
            return None
        found, vector = footprint(self.objective, self.dtype), self.objective.size * torch.finfo(self.dtype).bits // 8
        return max(1, int(self._memory - found.copy - _VECTORS * vector))

    def __enter__(self) -> SampleGradients:
        with left_on_failure(self._block):
            if self._memory is not None:
                self._block.hold(gradients_held(self.objective, self.dtype), "gradients of the whole and of a sample")
            self.replica = self.objective.replica(self.dtype)
            self.loss = self._kept.same_loss(unperturbed_loss(self.replica))
            if self.method == "per-sample":
                self.mean = self._mean(lambda: self._gradient(self.objective))
                self._use_samples()
            else:
                self._use_groups()
            self._kept = self._kept.of(digest([self.sizes, self._weights, *self.mean]))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._block.__exit__(kind, error, trace)

    # ------------------------------------------------------------------ units

    def _use_samples(self) -> None:
        samples = self._samples = SampleRows(self.objective, self.replica)
        self._set_units([1] * len(samples.weights), samples.weights)
        samples.choose(self._memory, self._kept)
        self.reason = (not samples.refused and self.reason) or samples.reason

    def _use_groups(self) -> None:
        objective = self.objective
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
        self.mean = self._mean(self._mean_of_groups)

    def _mean_of_groups(self) -> list[Tensor]:
        total: list[Tensor] | None = None
        for group in self._groups:
            parts = self._gradient(group)
            share = group.samples / float(self._weights.sum())
            total = [share * new if total is None else total[i].add_(new, alpha=share) for i, new in enumerate(parts)]
        assert total is not None
        return total

    def _mean(self, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        request = () if self.method == "per-sample" else (self.sizes,)
        found = self._evaluated("gradient", request, lambda: {str(place): part for place, part in enumerate(make())})
        return [found[str(place)].to(self.objective.device) for place in range(len(self.objective.names))]

    def _evaluated(self, kind: str, request: Sequence[Any], make: Callable[[], Value]) -> Value:
        """What ``make`` evaluates, or a journal has; it counts alike."""
        before = self.evaluations
        found = self._kept.taken(kind, request, lambda: make() | {"evaluations": self.evaluations - before})
        self._taken += before + int(found["evaluations"]) - self.evaluations
        return found

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
        if self._samples is not None:
            return self._samples.rows(units)
        return torch.stack([flat(self._gradient(self._groups[unit])) for unit in units])

    def deviations(self, found: Deviations, stop: Callable[[], bool] | None = None) -> Deviations:
        """Fill ``found`` with all units, in blocks; until ``stop`` is true.

        Raises:
            CoupledSamplesError: the sample gradients do not average to the gradient.
        """
        mean = flat(self.mean)
        signs = random_rows(len(mean), range(1), 0, distribution="rademacher", dtype=mean.dtype, device=mean.device)[0]
        total = -_sketch(mean * signs)
        for block in self.blocks():
            if stop is not None and found.norms and stop():
                return found
            new = self._evaluated("deviations", block, functools.partial(self._deviations, block, mean, signs))
            factors, shares = self.factors[block], self.shares[block]
            total += new["sum"]
            found.spread.append(factors[:, None] * new["squares"])
            found.shift.append(shares**2 * new["squares"].sum(1))
            found.along.append(shares * new["along"])
            found.norms.append(new["norms"])
            found.sizes.extend(self.sizes[block].tolist())
        self._check_sum(float(np.linalg.norm(total)), mean, found)
        return found

    def _deviations(self, block: Sequence[int], mean: Tensor, signs: Tensor) -> Value:
        """Numbers of a block, ``squares`` ``[k, tensors]``; ``sum`` stands for what it adds to the mean."""
        rows = self.rows(block)
        added = torch.from_numpy(self.shares[block] / len(self)).to(rows) @ rows
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        rows.sub_(mean)
        squares = [torch.linalg.vector_norm(rows[:, where], dim=1, dtype=torch.float64).square() for where in self._slices()]
        return {
            "sum": _sketch(added.mul_(signs)),
            "norms": norms.cpu().numpy(),
            "squares": torch.stack(squares, 1).cpu().numpy(),
            "along": _products(rows, mean),
        }

    def blocks(self) -> Iterator[list[int]]:
        """Units in order, as many at a time as one call takes; a block lies within a batch."""
        return iter([unit] for unit in range(len(self))) if self._samples is None else self._samples.blocks()

    def together(self, unit: int, other: int) -> bool:
        """Whether two units may be asked for in one call of :meth:`rows`: samples of one batch, or any groups."""
        return self._samples is None or self._samples.together(unit, other)

    def _check_sum(self, deviation: float, mean: Tensor, found: Deviations) -> None:
        if self._samples is None:
            return
        noise = float(np.mean(np.concatenate(found.norms) ** 2)) / len(self) + float(mean.double().norm()) ** 2
        if deviation > max(_ADDS_UP, self._samples.rounded()) * noise**0.5:  # not of NaN
            raise CoupledSamplesError(
                f"sample gradients do not average to the gradient (off by {deviation / noise**0.5:.1e} of it): the samples of a "
                "batch depend on each other, or are not its rows"
            )

    def _gradient(self, objective: Objective) -> list[Tensor]:
        self._gradients += 1
        return gradient(self.replica, objective)

    def _slices(self) -> list[slice]:
        stops = np.cumsum([tensor.numel() for tensor in self.mean]).tolist()
        return [slice(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


def _coupled(objective: Objective) -> bool:
    """Whether samples share the statistics of their batch: in batch norm that takes them, asked for or without running ones."""
    switched = set(objective.by_batch) if objective.batch_norm == "batch" else set()
    return any(
        name in switched or (isinstance(module, _BatchNorm) and module.running_mean is None)
        for name, module in objective.model.named_modules()
        if not isinstance(module, _InstanceNorm)
    )


def _sketch(vector: Tensor) -> Array:
    """Sums of every ``_SKETCH``-th element; with random signs their length is that of the vector.

    Source: Charikar, Chen & Farach-Colton, "Finding frequent items in data streams" (2002), of which this is one row.
    """
    padded = torch.nn.functional.pad(vector.double(), (0, -len(vector) % _SKETCH))
    found: Array = padded.reshape(-1, _SKETCH).sum(0).cpu().numpy()
    return found


def _products(rows: Tensor, vector: Tensor) -> Array:
    """Inner products of rows ``[k, D]`` with ``[D]``, in float64 for float64 rows and at float32's rounding otherwise."""
    found: Array = (rows @ vector).double().cpu().numpy()
    return found
