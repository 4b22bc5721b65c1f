"""Ways to evaluate a loss at many points w + r d: one at a time, or batched with ``torch.func``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from fastscape._warnings import filtered_warnings
from fastscape.directions import Directions
from fastscape.evaluation.displacement import displacement_of
from fastscape.objective.replica import Replica
from fastscape.ops import Distribution, perturb
from fastscape.ops.perturb.reference import displaced


class Path(Protocol):
    """An evaluation path; all paths compute the same losses up to rounding."""

    name: str

    def losses(self, directions: Directions, indices: Sequence[int], radii: Sequence[float]) -> Tensor:
        """L(w + r d_i), float64 ``[indices, radii]`` on the CPU. Radii are signed; 0 gives L(w)."""
        ...


class LoopPath:
    """One forward per point; the perturbed weights are written fresh into one scratch copy, or as the forward uses them.

    Memory: the replica's, whatever the number of directions (:mod:`fastscape.evaluation.displacement`). Radius 0 is
    evaluated once: the same kernels on the same shapes give the same bits (the determinism gate checks it).
    """

    name = "loop"

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._displacement = displacement_of(replica)
        self._unperturbed: Tensor | None = None

    def losses(self, directions: Directions, indices: Sequence[int], radii: Sequence[float]) -> Tensor:
        """See :class:`Path`."""
        out = torch.empty(len(indices), len(radii), dtype=torch.float64, device=self._replica.objective.device)
        for row, index in enumerate(indices):
            self._displacement.select(directions, index)
            out[row] = torch.stack([self._at(radius) for radius in radii])
        return out.cpu()

    def _at(self, radius: float) -> Tensor:
        if radius == 0:
            return self._base()
        self._displacement.write(radius)
        return self._replica.loss()

    def _base(self) -> Tensor:
        if self._unperturbed is None:
            self._replica.reset()
            self._unperturbed = self._replica.loss()
        return self._unperturbed


class VmapPath:
    """All radii of ``chunk`` directions in one batched call of ``torch.func.vmap(functional_call)``.

    Every call has the same shape (the last one is padded), so that L(w), L(w + r d) and L(w - r d) go through the same
    batched kernels. Memory: ``chunk * radii`` copies of the probed parameters and of the activations.
    """

    name = "vmap"

    def __init__(self, replica: Replica, chunk: int) -> None:
        self._replica, self.chunk = replica, chunk
        self._ids: Tensor | None = None
        names = [f"model.{name}" for name in replica.objective.names]

        def loss(parameters: list[Tensor], batch: object) -> Tensor:
            value: Tensor = functional_call(replica.module, dict(zip(names, parameters, strict=True)), (batch,))[0]
            return value.double()

        self._batched = vmap(loss, in_dims=(0, None), randomness="error")

    def losses(self, directions: Directions, indices: Sequence[int], radii: Sequence[float]) -> Tensor:
        """See :class:`Path`."""
        rows = []
        for start in range(0, len(indices), self.chunk):
            wanted = list(indices[start : start + self.chunk])
            points = self._points(directions, wanted + wanted[:1] * (self.chunk - len(wanted)), radii)
            with filtered_warnings("There is a performance drop"):  # no batching rule: the choice of path measures it
                rows.append(self._losses(points).reshape(self.chunk, -1)[: len(wanted)].cpu())
        return torch.cat(rows)

    def _points(self, directions: Directions, indices: Sequence[int], radii: Sequence[float]) -> list[Tensor]:
        """The perturbed parameters, ``[indices * radii, *shape]`` each."""
        base, dtype = self._replica.base, self._replica.dtype
        if directions.separable:
            assert directions.seed is not None
            if self._ids is None:
                self._ids = torch.tensor(directions.ids, device=base[0].device)
            scales = torch.from_numpy(np.stack([directions.scales(index) for index in indices])).to(base[0].device)
            kind, pieces = cast(Distribution, directions.distribution), directions.normaliser.pieces
            moved = perturb(
                base, self._ids, directions.seed, indices, scales, radii, groups=pieces, dtype=dtype, distribution=kind
            )
        else:
            block = [directions.tensors(index, dtype)[0] for index in indices]
            ones = torch.ones(len(indices), 1, dtype=torch.float64, device=base[0].device)
            steps = [torch.stack(column).reshape(len(block), -1) for column in zip(*block, strict=True)]
            moved = [displaced(weight, step, ones, radii, dtype) for weight, step in zip(base, steps, strict=True)]
        return [tensor.reshape(-1, *weight.shape) for tensor, weight in zip(moved, base, strict=True)]

    def _losses(self, points: list[Tensor]) -> Tensor:
        objective = self._replica.objective
        self._replica.evaluations += len(points[0])
        if len(self._replica.batches) == 1:  # exactly the loop's arithmetic
            return self._batched(points, self._replica.batches[0])
        total = torch.zeros((), dtype=torch.float64, device=objective.device)
        for batch, weight in zip(self._replica.batches, objective.batch_weights, strict=True):
            total = total + weight * self._batched(points, batch)
        return total / objective.samples
