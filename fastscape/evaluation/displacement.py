"""Writes w + r d into scratch parameters: noise regenerated, scaled and added in one pass, nothing allocated per evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from fastscape.directions import Directions
from fastscape.objective.replica import Replica
from fastscape.objective.streamed import StreamedReplica
from fastscape.ops import Distribution, Generation, Perturbation, StoredNorms

STORED_BYTES = 8 << 20  # of noise kept for all radii of a direction: adding from the cache beats generating again


class Along(Protocol):
    """Moves a replica's parameters along one direction at a time."""

    def select(self, directions: Directions, index: int) -> None:
        """Make direction ``index`` the one that :meth:`write` moves along."""
        ...

    def write(self, radius: float) -> None:
        """Have the replica evaluate at ``w + radius d``."""
        ...


def displacement_of(replica: Replica) -> Along:
    """What moves a replica: written at once, or as its parameters are used; the same bits."""
    streamed = isinstance(replica, StreamedReplica)
    return StreamedDisplacement(replica) if streamed else Displacement(replica.base, replica.scratch)


class Displacement:
    """Moves scratch parameters along one direction at a time.

    The noise of small directions is generated once and kept for all radii; that of large ones is generated again at every
    radius, so that the memory stays at the one copy of the parameters that the scratch is. Directions that are not noise
    times a number per piece (given ones, the "element" rule) are kept whatever their size, and so is noise where no kernel
    answers.

    Args:
        base: the weights, read at every call.
        scratch: tensors of one dtype that receive the displaced weights.
    """

    def __init__(self, base: Sequence[Tensor], scratch: Sequence[Tensor]) -> None:
        self._base, self._scratch = list(base), list(scratch)
        self._kind: object = None
        self._generate: Generation | None = None
        self._norms: StoredNorms | None = None

    def select(self, directions: Directions, index: int) -> None:
        """Make direction ``index`` the one that :meth:`write` moves along."""
        if self._kind is not directions.normaliser:
            self._prepare(directions)
        if not directions.separable:
            assert self._raw is not None
            for slot, step in zip(self._raw, directions.tensors(index, self._raw[0].dtype)[0], strict=True):
                slot.copy_(step.reshape(-1))
            return
        assert directions.seed is not None
        squares = None
        if self._generate is not None:
            self._generate(directions.seed, index)
            squares = self._norms() if self._norms is not None else None
        self._perturb.aim(directions.seed, index, directions.scales(index, squares))

    def write(self, radius: float) -> None:
        """Write ``w + radius d`` into the scratch tensors, fresh from the originals."""
        self._perturb.write(radius)

    def _prepare(self, directions: Directions) -> None:
        base, scratch, separable = self._base, self._scratch, directions.separable
        self._raw = self._generate = self._norms = None
        ids, pieces = (directions.ids, directions.normaliser.pieces) if separable else ([0] * len(base), None)
        kind = cast(Distribution, directions.distribution) if separable else "gaussian"
        stored = not separable or 4 * sum(tensor.numel() for tensor in base) <= STORED_BYTES
        if not stored:
            self._perturb = Perturbation(base, [scratch], ids, groups=pieces, distribution=kind)
        if stored or not self._perturb.fused:
            dtype = torch.float32 if separable or scratch[0].dtype != torch.float64 else torch.float64
            self._raw = [torch.empty(tensor.numel(), dtype=dtype, device=tensor.device) for tensor in base]
            self._perturb = Perturbation(base, [scratch], ids, groups=pieces, distribution=kind, raw=self._raw)
        if separable and self._raw is not None:
            self._generate = Generation(self._raw, ids, kind)
            self._norms = StoredNorms(self._raw, directions.normaliser.pieces) if kind == "gaussian" else None  # of signs: sizes
        if not separable:
            self._perturb.aim(0, 0, np.ones(len(base)))
        self._kind = directions.normaliser


class StreamedDisplacement:
    """Moves the parameters of a replica that makes them on use, with the bits of :class:`Displacement`.

    Noise is generated as a parameter is used. Directions that are not noise times a number per piece are kept as a whole.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._raw: list[Tensor] | None = None

    def select(self, directions: Directions, index: int) -> None:
        """Make direction ``index`` the one that :meth:`write` moves along."""
        self._raw = None
        if directions.separable:
            pieces = directions.normaliser.pieces
            self._pieces, self._scales = pieces, np.split(directions.scales(index), np.cumsum(pieces)[:-1])
            self._ids, self._kind = directions.ids, cast(Distribution, directions.distribution)
            self._seed, self._index = cast(int, directions.seed), index
        else:
            dtype = torch.float64 if self._replica.dtype == torch.float64 else torch.float32
            self._raw = [step.reshape(-1).contiguous() for step in directions.tensors(index, dtype)[0]]

    def write(self, radius: float) -> None:
        """Evaluate at ``w + radius d``."""
        self._replica.fill(partial(self._write, radius))

    def _write(self, radius: float, position: int, slot: Tensor, base: Tensor) -> None:
        if not slot.numel():
            return
        if self._raw is not None:
            along = Perturbation([base], [[slot]], [0], raw=[self._raw[position]])
            along.aim(0, 0, np.ones(1))
        else:
            pieces = [self._pieces[position]]
            along = Perturbation([base], [[slot]], [self._ids[position]], groups=pieces, distribution=self._kind)
            along.aim(self._seed, self._index, self._scales[position])
        along.write(radius)
