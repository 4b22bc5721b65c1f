"""Responses of one bank of directions: what an earlier result kept, and whole blocks that come in any order."""

from __future__ import annotations

import math

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.runs.units import Value, blocks_of


class Columns:
    """Columns ``[K, n]`` of even and odd responses, growing block by block.

    Attributes:
        unit: directions in a block.
        base: L(w).
    """

    def __init__(self, radii: int) -> None:
        self.unit, self.base = 1, math.nan
        self._kept: tuple[Array, Array] = (np.empty((radii, 0)), np.empty((radii, 0)))
        self._blocks: dict[int, Value] = {}

    def keep(self, even: Array, odd: Array, base: float) -> None:
        """Columns of an earlier result, of which the last block may lack some."""
        self._kept, self.base = (even, odd), base

    def add(self, block: int, value: Value) -> None:
        """A whole block."""
        self._blocks[block] = value
        if math.isnan(self.base):
            self.base = value.base

    @property
    def kept(self) -> int:
        """Columns of an earlier result."""
        return int(self._kept[0].shape[1])

    @property
    def count(self) -> int:
        """Columns without a gap, from the first on."""
        first = self.kept // self.unit
        last = first
        while last in self._blocks:
            last += 1
        return self.kept if last == first else last * self.unit

    def lacking(self, count: int) -> list[int]:
        """Blocks that are to be evaluated for ``count`` columns."""
        first = self.kept // self.unit
        return [block for block in blocks_of(count, self.unit) if block >= first and block not in self._blocks]

    def arrays(self) -> tuple[Array, Array]:
        """Even and odd columns without a gap."""
        if self.count == self.kept:
            return self._kept
        first = self.kept // self.unit
        whole = [self._blocks[block] for block in range(first, self.count // self.unit)]
        even, odd = (part[:, : first * self.unit] for part in self._kept)
        return (
            np.concatenate([even, *(value.even for value in whole)], axis=1),
            np.concatenate([odd, *(value.odd for value in whole)], axis=1),
        )
