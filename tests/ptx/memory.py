"""Global, shared and local memory: bytes, bounds, alignment, and asynchronous copies that arrive late.

Every access is made by many threads at once: ``threads`` are their numbers within the launch, ``address`` is an int64 array
of the same length. Memory that nobody wrote reads as ones in every bit: NaN, or -1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ptx.errors import MisalignedError, OutOfBoundsError, RaceError
from ptx.formats import UNSIGNED
from ptx.races import ATOMIC, RaceCheck

UNWRITTEN = 0xFF
Update = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (old values, which of the threads) -> new values


class Memory:
    """A flat array of bytes; subclasses map a thread's address to a place in it."""

    name = "memory"

    def __init__(self, size: int) -> None:
        self.data = np.full(-(-size // 32) * 32, UNWRITTEN, np.uint8)
        self.views = {bits // 8: self.data.view(UNSIGNED[bits]) for bits in (8, 16, 32, 64)}

    def locate(self, threads: np.ndarray, address: np.ndarray, size: int) -> np.ndarray:
        """Place of each access of ``size`` bytes in ``data``, after its checks."""
        raise NotImplementedError

    def require_alignment(self, address: np.ndarray, size: int) -> None:
        if (address % size).any():
            raise MisalignedError(
                f"{self.name} access at {int(address[address % size != 0][0]):#x}, not a multiple of {size} bytes"
            )

    def load(self, threads: np.ndarray, address: np.ndarray, width: int, count: int = 1) -> np.ndarray:
        """``count`` consecutive values of ``width`` bytes for each thread, (threads, count)."""
        return self._values(self.locate(threads, address, width * count), width, count)

    def store(self, threads: np.ndarray, address: np.ndarray, values: np.ndarray) -> None:
        """Write a row of ``values`` (threads, count) at each address."""
        width, count = values.dtype.itemsize, values.shape[1]
        place = self.locate(threads, address, width * count)
        self.views[width][place[:, None] // width + np.arange(count)] = values
        if (self._values(place, width, count) != values).any():
            raise RaceError(f"two threads store different values to one {self.name} address")

    def atomic(self, threads: np.ndarray, address: np.ndarray, width: int, update: Update) -> np.ndarray:
        """Replace values one thread after the other in the order of threads; the old values."""
        place = self.locate(threads, address, width) // width
        order = np.argsort(place, kind="stable")
        first = np.searchsorted(place[order], place[order])
        turn = np.empty(len(place), np.int64)
        turn[order] = np.arange(len(place)) - first
        old = np.zeros(len(place), self.views[width].dtype)
        for now in range(int(turn.max(initial=-1)) + 1):
            which = np.nonzero(turn == now)[0]
            old[which] = self.views[width][place[which]]
            self.views[width][place[which]] = update(old[which], which)
        return old

    def _values(self, place: np.ndarray, width: int, count: int) -> np.ndarray:
        return self.views[width][place[:, None] // width + np.arange(count)]


class GlobalMemory(Memory):
    """The arrays of a launch with unmapped guards between them; an array passed twice exists once."""

    name = "global"
    BASE = 0x7000_0000_0000
    GUARD = 4096

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.starts: dict[int, int] = {}
        self.spans: list[tuple[int, int]] = []
        end = self.GUARD
        for array in arrays:
            if id(array) not in self.starts:
                self.starts[id(array)] = end
                self.spans.append((end, end + array.nbytes))
                end = -(-(end + array.nbytes + self.GUARD) // 256) * 256
        super().__init__(end)
        self.mapped = np.zeros(self.data.size, bool)
        for array in arrays:
            start = self.starts[id(array)]
            self.mapped[start : start + array.nbytes] = True
            self.write(array, array)

    def address(self, array: np.ndarray) -> int:
        return self.BASE + self.starts[id(array)]

    def write(self, array: np.ndarray, values: np.ndarray) -> None:
        """Replace the device copy of ``array``."""
        start = self.starts[id(array)]
        self.data[start : start + array.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def read(self, array: np.ndarray) -> np.ndarray:
        """The device copy of ``array``."""
        start = self.starts[id(array)]
        return self.data[start : start + array.nbytes].copy().view(array.dtype).reshape(array.shape)

    def locate(self, threads: np.ndarray, address: np.ndarray, size: int) -> np.ndarray:
        place = address - self.BASE
        inside = (place >= 0) & (place <= self.data.size - size)
        near = np.where(inside, place, 0)
        inside &= self.mapped[near] & self.mapped[near + size - 1]
        if not inside.all():
            raise OutOfBoundsError(self._describe(int(place[~inside][0]), size))
        self.require_alignment(address, size)
        return place

    def _describe(self, place: int, size: int) -> str:
        number, (start, end) = min(enumerate(self.spans), key=lambda item: max(item[1][0] - place, place - item[1][1]))
        where = f"byte {place - start} of array {number}, which has {end - start}" if self.spans else "no array"
        return f"{size} bytes of global memory outside every array (nearest: {where})"


class SharedMemory(Memory):
    """``size`` bytes for each block of threads, every access checked for races between warps."""

    name = "shared"

    def __init__(self, size: int, blocks: int, block_of: np.ndarray, warp_of: np.ndarray, granule: int) -> None:
        self.size, self.stride = size, -(-max(size, 1) // 32) * 32
        super().__init__(self.stride * blocks)
        self.block_of, self.warp_of = block_of, warp_of
        self.races = RaceCheck(self.data.size, blocks, granule)

    def place(self, threads: np.ndarray, address: np.ndarray, size: int) -> np.ndarray:
        """``locate`` without the check for races."""
        outside = (address < 0) | (address + size > self.size)
        if outside.any():
            raise OutOfBoundsError(f"{size} bytes of shared memory at {int(address[outside][0])}, which has {self.size}")
        self.require_alignment(address, size)
        return address + self.block_of[threads] * self.stride

    def locate(self, threads: np.ndarray, address: np.ndarray, size: int) -> np.ndarray:
        """For atomics: they are ordered among themselves."""
        place = self.place(threads, address, size)
        self.races.write(place, size, self.block_of[threads], np.full(len(threads), ATOMIC))
        return place

    def load(self, threads: np.ndarray, address: np.ndarray, width: int, count: int = 1) -> np.ndarray:
        place = self.place(threads, address, width * count)
        self.races.read(place, width * count, self.block_of[threads], self.warp_of[threads])
        return self._values(place, width, count)

    def store(self, threads: np.ndarray, address: np.ndarray, values: np.ndarray) -> None:
        width, count = values.dtype.itemsize, values.shape[1]
        place = self.place(threads, address, width * count)
        again = self.races.write(place, width * count, self.block_of[threads], self.warp_of[threads])
        if (again[:, None] & (self._values(place, width, count) != values)).any():  # the same value twice is no race
            raise RaceError("shared-memory write over another warp's since the last barrier")
        self.views[width][place[:, None] // width + np.arange(count)] = values
        if (self._values(place, width, count) != values).any():
            raise RaceError("two threads store different values to one shared address")


class LocalMemory(Memory):
    """``size`` bytes for each thread."""

    name = "local"

    def __init__(self, size: int, threads: int) -> None:
        self.size, self.stride = size, -(-size // 32) * 32
        super().__init__(self.stride * threads)

    def locate(self, threads: np.ndarray, address: np.ndarray, size: int) -> np.ndarray:
        outside = (address < 0) | (address + size > self.size)
        if outside.any():
            raise OutOfBoundsError(f"{size} bytes of local memory at {int(address[outside][0])}, which has {self.size}")
        self.require_alignment(address, size)
        return address + threads * self.stride


class AsyncCopies:
    """``cp.async``: copies arrive when their thread waits for their group, and no earlier."""

    def __init__(self, shared: SharedMemory, threads: int) -> None:
        self.shared = shared
        self.committed = np.zeros(threads, np.int64)
        self.pending: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []  # threads, groups, places, bytes

    def issue(self, threads: np.ndarray, address: np.ndarray, data: np.ndarray) -> None:
        """Start to copy a row of ``data`` (threads, bytes) to each shared address."""
        place = self.shared.place(threads, address, data.shape[1])
        self.shared.races.depart(place, data.shape[1], self.shared.block_of[threads], self.shared.warp_of[threads])
        self.pending.append((threads, self.committed[threads], place, data))

    def commit(self, threads: np.ndarray) -> None:
        self.committed[threads] += 1

    def wait(self, waiting: np.ndarray, but: int | None) -> None:
        """Deliver to the ``waiting`` threads (a mask) all groups but their latest ``but``; None: also what has no group yet."""
        pending, self.pending = self.pending, []
        for threads, groups, place, data in pending:
            due = waiting[threads]
            if but is not None:
                due = due & (groups < self.committed[threads] - but)
            self._deliver(threads[due], place[due], data[due])
            if not due.all():
                self.pending.append((threads[~due], groups[~due], place[~due], data[~due]))

    def _deliver(self, threads: np.ndarray, place: np.ndarray, data: np.ndarray) -> None:
        shared = self.shared
        shared.races.arrive(place, data.shape[1], shared.block_of[threads], shared.warp_of[threads])
        shared.data[place[:, None] + np.arange(data.shape[1])] = data
