"""Ways to evaluate a loss at many points w + r d: one at a time, or batched with ``torch.func``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from fastscape._replica import Replica
from fastscape.directions import Directions


class Path(Protocol):
    """An evaluation path; all paths compute the same losses up to rounding."""

    name: str

    def losses(self, directions: Directions, indices: Sequence[int], radii: Sequence[float]) -> Tensor:
        """L(w + r d_i), float64 ``[indices, radii]`` on the CPU. Radii are signed; 0 gives L(w)."""
        ...


class LoopPath:
    """One forward per point; the perturbed weights are written fresh into one scratch copy.

    Memory: the scratch copy and one direction. Radius 0 is evaluated once: the same kernels on the same shapes give
    the same bits (the determinism gate checks it).
    """

    name = "loop"

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._unperturbed: Tensor | None = None

    def losses(self, directions: Directions, indices: Sequence[int], radii: Sequence[float]) -> Tensor:
        """See :class:`Path`."""
        replica = self._replica
        out = torch.empty(len(indices), len(radii), dtype=torch.float64, device=replica.objective.device)
        for row, index in enumerate(indices):
            direction, _ = directions.tensors(index, replica.dtype)
            for column, radius in enumerate(radii):
                out[row, column] = self._base() if radius == 0 else self._at(direction, radius)
        return out.cpu()

    def _at(self, direction: list[Tensor], radius: float) -> Tensor:
        self._replica.perturb(direction, radius)
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
        names = [f"model.{name}" for name in replica.objective.names]

        def loss(parameters: list[Tensor], batch: object) -> Tensor:
            value: Tensor = functional_call(replica.module, dict(zip(names, parameters, strict=True)), (batch,))[0]
            return value.double()

        self._batched = vmap(loss, in_dims=(0, None), randomness="error")

    def losses(self, directions: Directions, indices: Sequence[int], radii: Sequence[float]) -> Tensor:
        """See :class:`Path`."""
        replica = self._replica
        steps = torch.tensor(radii, dtype=replica.dtype, device=replica.objective.device)
        rows = []
        for start in range(0, len(indices), self.chunk):
            wanted = list(indices[start : start + self.chunk])
            padded = wanted + wanted[:1] * (self.chunk - len(wanted))
            block = [directions.tensors(index, replica.dtype)[0] for index in padded]
            points = [
                _points(base.to(replica.dtype), [direction[slot] for direction in block], steps)
                for slot, base in enumerate(replica.base)
            ]
            with warnings.catch_warnings():  # operations without a batching rule are slow: the choice of path measures it
                warnings.filterwarnings("ignore", message="There is a performance drop")
                rows.append(self._losses(points).reshape(self.chunk, -1)[: len(wanted)].cpu())
        return torch.cat(rows)

    def _losses(self, points: list[Tensor]) -> Tensor:
        objective = self._replica.objective
        self._replica.evaluations += len(points[0])
        total = torch.zeros((), dtype=torch.float64, device=objective.device)
        for batch, weight in zip(self._replica.batches, objective.batch_weights, strict=True):
            total = total + weight * self._batched(points, batch)
        return total / objective.samples


def _points(base: Tensor, steps: list[Tensor], radii: Tensor) -> Tensor:
    """Base plus every radius times every step, ``[steps * radii, *base.shape]``."""
    shape = (1, -1) + (1,) * base.ndim
    return torch.addcmul(base, torch.stack(steps).unsqueeze(1), radii.reshape(shape)).flatten(0, 1)
