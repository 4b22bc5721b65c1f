"""Norms of random directions of which every process makes a share: the bits of one process that makes them all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape.objective.sharding import Sharding
from fastscape.ops import Distribution, Norms
from fastscape.ops.direction_dot.reference import SUM_BLOCK, fold


class DealtNorms:
    """Sums of squares of direction (seed, index): see :class:`fastscape.ops.Norms`; all processes call it together.

    A direction needs no data: blocks of 16384 elements are dealt, their sums exchanged, and folded in the order of one process.

    Args:
        ids, sizes, groups, distribution: of the whole parameters.
        sharding: the processes.
    """

    def __init__(
        self, ids: Tensor, sizes: Sequence[int], groups: Sequence[int], distribution: Distribution, sharding: Sharding
    ) -> None:
        many = np.array(groups, dtype=np.int64)
        lengths = np.repeat(np.array(sizes, dtype=np.int64) // many, many)  # of the pieces
        within = np.arange(many.sum()) - np.repeat(many.cumsum() - many, many)
        blocks = -(-lengths // SUM_BLOCK)
        ends = blocks.cumsum()
        places = (np.arange(blocks.sum()) - np.repeat(ends - blocks, blocks)) * SUM_BLOCK  # of the blocks in their pieces
        owner = np.repeat(np.arange(len(lengths)), blocks)
        firsts = np.repeat(within * lengths, blocks) + places
        counts = np.minimum(SUM_BLOCK, lengths[owner] - places)
        self._sharding, self._device = sharding, ids.device
        self._total, self._starts, self._blocks = int(blocks.sum()), ends - blocks, blocks
        self._mine = np.arange(self._total) % sharding.count == sharding.index
        slots = torch.from_numpy(np.repeat(np.arange(len(sizes)), many)[owner][self._mine])
        self._norms: Norms | None = None
        if self._mine.any():
            chosen, begins = counts[self._mine].tolist(), firsts[self._mine].tolist()
            self._norms = Norms(ids[slots.to(ids.device)], chosen, [1] * len(chosen), distribution, begins)

    def __call__(self, seed: int, index: int) -> NDArray[np.float64]:
        """float64 ``[sum(groups)]``."""
        sums = np.zeros(self._total)
        if self._norms is not None:
            sums[self._mine] = self._norms(seed, index)
        exchanged = self._sharding.sum(torch.from_numpy(sums).to(self._device)).cpu()
        found = np.zeros(len(self._blocks))
        for width in np.unique(self._blocks[self._blocks > 0]):
            pieces = np.flatnonzero(self._blocks == width)
            columns = torch.from_numpy(self._starts[pieces][:, None] + np.arange(width))
            found[pieces] = fold(exchanged[columns]).numpy()
        return found
