"""Data races in shared memory, found by barrier epochs.

Two accesses of one word by different warps, at least one of them a write, must have a barrier between them. The check knows
for each word who read and wrote it since the block's last barrier. Within a warp, instructions are taken as ordered.
"""

from __future__ import annotations

import numpy as np

from ptx.errors import RaceError

ATOMIC, MANY = -2, -3  # instead of a warp: an atomic operation, more than one warp


class RaceCheck:
    """Who touched which ``granule`` bytes in which epoch."""

    def __init__(self, size: int, blocks: int, granule: int) -> None:
        self.granule = granule
        words = -(-size // granule)
        self.epoch = np.zeros(blocks, np.int32)
        self.read_epoch, self.write_epoch = np.full(words, -1, np.int32), np.full(words, -1, np.int32)
        self.reader, self.writer = np.zeros(words, np.int32), np.zeros(words, np.int32)
        self.flying = np.zeros(words, np.int16)

    def barrier(self, blocks: np.ndarray) -> None:
        """All earlier accesses of ``blocks`` happen before all later ones."""
        self.epoch[blocks] += 1

    def read(self, place: np.ndarray, size: int, block: np.ndarray, warp: np.ndarray) -> None:
        words, now, warp = self._prepare(place, size, block, warp)
        if ((self.write_epoch[words] == now) & (self.writer[words] != warp)).any():
            raise RaceError("shared-memory read of another warp's write since the last barrier")
        self._claim(self.read_epoch, self.reader, words, now, warp)

    def write(self, place: np.ndarray, size: int, block: np.ndarray, warp: np.ndarray) -> np.ndarray:
        """Which threads write where another warp has written since the last barrier."""
        words, now, warp = self._prepare(place, size, block, warp)
        self._require_unread(words, now, warp)
        again = (self.write_epoch[words] == now) & (self.writer[words] != warp)
        self._claim(self.write_epoch, self.writer, words, now, warp)
        return again.any(1)

    def depart(self, place: np.ndarray, size: int, block: np.ndarray, warp: np.ndarray) -> None:
        """An asynchronous write begins: nobody else may have used the words, nobody may use them until it ends."""
        words, now, warp = self._prepare(place, size, block, warp)
        self._require_unread(words, now, warp)
        if ((self.write_epoch[words] == now) & (self.writer[words] != warp)).any():
            raise RaceError("asynchronous copy over another warp's write since the last barrier")
        np.add.at(self.flying, words, 1)

    def arrive(self, place: np.ndarray, size: int, block: np.ndarray, warp: np.ndarray) -> None:
        """An asynchronous write ends: it counts as made now."""
        words = self._words(place, size)
        np.subtract.at(self.flying, words, 1)
        self._claim(self.write_epoch, self.writer, words, self.epoch[block][:, None], warp[:, None])

    def _words(self, place: np.ndarray, size: int) -> np.ndarray:
        return place[:, None] // self.granule + np.arange(max(size // self.granule, 1))

    def _prepare(
        self, place: np.ndarray, size: int, block: np.ndarray, warp: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        words = self._words(place, size)
        if self.flying[words].any():
            raise RaceError("shared-memory access to bytes that an asynchronous copy has not delivered")
        return words, self.epoch[block][:, None], warp[:, None]

    def _require_unread(self, words: np.ndarray, now: np.ndarray, warp: np.ndarray) -> None:
        if ((self.read_epoch[words] == now) & (self.reader[words] != warp)).any():
            raise RaceError("shared-memory write over another warp's read since the last barrier")

    def _claim(self, epochs: np.ndarray, owners: np.ndarray, words: np.ndarray, now: np.ndarray, warp: np.ndarray) -> None:
        shared = (epochs[words] == now) & (owners[words] != warp)
        epochs[words] = now
        owners[words] = np.where(shared, MANY, warp)
        lost = owners[words] != warp  # several warps at once: the last one to be noted must not pass for the only one
        owners[words[lost]] = MANY
