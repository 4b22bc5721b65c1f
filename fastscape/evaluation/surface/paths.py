"""Ways to evaluate a family of weights at many coordinates: one forward per point, or batches of points by ``vmap``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, vmap

from fastscape._warnings import filtered_warnings
from fastscape.evaluation.points import Array
from fastscape.evaluation.surface.families import Affine, Family
from fastscape.evaluation.surface.sample_losses import SampleLosses
from fastscape.objective.replica import Replica

Prepare = Callable[[Replica, Sequence[float]], None]


@dataclass(frozen=True)
class Raw:
    """Losses of a path at p points.

    Attributes:
        batches: mean loss of every batch, float64 ``[p, batches]``.
        samples: losses of every sample in the order of the data, float64 ``[p, N]``; ``None`` where batches are the unit.
        correct: correct classifications ``[p]``; ``None`` without classes.
        hits: correct classifications of every sample ``[p, N]``; ``None`` without classes, and from batched paths.
    """

    batches: Array
    samples: Array | None
    correct: NDArray[np.int64] | None
    hits: NDArray[np.int64] | None = None


class SurfacePath(Protocol):
    """An evaluation path of a family; all paths find the same up to rounding.

    Attributes:
        name: of the path.
        chunk: points that a call takes at once, for the best speed.
    """

    name: str
    chunk: int

    def at(self, points: Array) -> Raw:
        """Evaluate points ``[p, m]``; counts its evaluations in ``replica.evaluations``."""
        ...


class PointLoop:
    """One forward per point over scratch weights that are written fresh. Memory: nothing but the family's own."""

    name, chunk = "loop", 1

    def __init__(self, replica: Replica, family: Family, terms: SampleLosses, prepare: Prepare | None = None) -> None:
        self.replica, self._family, self._terms, self._prepare = replica, family, terms, prepare

    def write(self, replica: Replica, coordinates: list[float]) -> None:
        """Give the scratch weights of a replica the values of a point, prepared."""
        self._family.write(coordinates, replica.scratch)
        if self._prepare is not None:
            self._prepare(replica, coordinates)

    def at(self, points: Array) -> Raw:
        """See :class:`SurfacePath`."""
        return joined([self._point(row.tolist()) for row in points])

    def _point(self, coordinates: list[float]) -> Raw:
        self.write(self.replica, coordinates)
        self.replica.evaluations += 1
        return evaluated(self.replica, self._terms)


def evaluated(replica: Replica, terms: SampleLosses) -> Raw:
    """One point: the replica at its scratch weights."""
    losses: list[float] = []
    samples: list[Array] = []
    correct: list[NDArray[np.int64]] = []
    for index in range(len(replica.batches)):
        loss, outputs = replica.batch_loss(index)
        losses.append(float(loss))
        found, hits = terms.split(outputs, index), terms.hits(outputs, index)
        if found is not None:
            samples.append(found.detach().cpu().numpy())
        if hits is not None:
            correct.append(hits.cpu().numpy())
    each = np.concatenate(correct) if terms.targets else None
    return Raw(
        np.array([losses]),
        np.concatenate(samples)[None] if samples else None,
        None if each is None else each.sum(keepdims=True),
        None if each is None else each[None],
    )


def joined(parts: Sequence[Raw]) -> Raw:
    """Points of several calls, one after the other."""
    samples = [part.samples for part in parts if part.samples is not None]
    correct = [part.correct for part in parts if part.correct is not None]
    hits = [part.hits for part in parts if part.hits is not None]
    return Raw(
        np.concatenate([part.batches for part in parts]),
        np.concatenate(samples) if samples else None,
        np.concatenate(correct) if correct else None,
        np.concatenate(hits) if hits else None,
    )


class PointVmap:
    """``chunk`` points of an affine family in one batched call of ``torch.func.vmap(functional_call)``.

    Every call has the same shape (the last is padded). Memory: ``chunk`` copies of the probed parameters and of the activations,
    and the axes stacked.
    """

    name = "vmap"

    def __init__(self, replica: Replica, family: Affine, terms: SampleLosses, chunk: int) -> None:
        self._replica, self._terms, self.chunk = replica, terms, chunk
        wide = torch.promote_types(replica.dtype, torch.float32)
        self._base = [tensor.to(wide) for tensor in family.base]
        columns = zip(*family.axes, strict=True)
        self._axes = [torch.stack([axis.to(wide).reshape(-1) for axis in column]) for column in columns]  # each [m, n]
        names = [f"model.{name}" for name in replica.objective.names]

        def point(weights: list[Tensor], index: int) -> tuple[Tensor, ...]:
            parameters = dict(zip(names, weights, strict=True))
            loss, outputs = functional_call(replica.module, parameters, (replica.batch(index),))
            found, hits = terms.split(outputs, index), terms.correct(outputs, index)
            return loss.double(), *(value for value in (found, hits) if value is not None)

        self._batched = vmap(point, in_dims=(0, None), randomness="error")

    def at(self, points: Array) -> Raw:
        """See :class:`SurfacePath`."""
        parts = []
        for start in range(0, len(points), self.chunk):
            rows = points[start : start + self.chunk]
            padded = np.concatenate([rows, np.repeat(rows[:1], self.chunk - len(rows), axis=0)])
            parts.append(self._call(padded, len(rows)))
        return joined(parts)

    def _call(self, points: Array, used: int) -> Raw:
        weights = self._weights(points)
        self._replica.evaluations += len(points)
        losses, samples, correct = [], [], []
        for index in range(len(self._replica.batches)):
            with filtered_warnings("There is a performance drop"):  # no batching rule: the choice of path measures it
                loss, *rest = self._batched(weights, index)
            losses.append(loss[:used].cpu().numpy())
            if self._terms.unit == "samples":
                samples.append(rest.pop(0)[:used].cpu().numpy())
            if self._terms.targets:
                correct.append(rest.pop(0)[:used].cpu().numpy())
        return Raw(
            np.stack(losses, axis=1),
            np.concatenate(samples, axis=1) if samples else None,
            np.sum(correct, axis=0) if correct else None,
        )

    def _weights(self, points: Array) -> list[Tensor]:
        """The weights at every point, ``[p, *shape]`` each."""
        dtype, moved = self._replica.dtype, torch.from_numpy(points).to(self._base[0])
        return [
            (torch.einsum("pm,mn->pn", moved, axes) + base.reshape(-1)).to(dtype).reshape(len(points), *base.shape)
            for base, axes in zip(self._base, self._axes, strict=True)
        ]
