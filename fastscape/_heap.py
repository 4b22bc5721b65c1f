"""Memory of the host that tensors free: kept for those that come next within a call, and given back at its end."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, ClassVar

from fastscape._interrupts import Restoring

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt
_LEAST, _MOST = 128 << 10, 32 << 20  # from which glibc maps to begin with, and what it comes to by itself
_KEPT = 1 << 30  # without a cap
_SHARE = 16  # of a cap: tensors that are mapped one by one
_FULL, _TRIED = 0.75, 0.25  # of a cap: resident memory above which holes are given back, and after a trial
_HOLES = 2.0  # times what is alive: all that the heap takes for it, with a little to spare
_SAID = ("MALLOC_", "GLIBC_TUNABLES")


class Heap(Restoring):
    """A block within which glibc keeps the memory that tensors free for those that come next; blocks nest, also across threads.

    By itself it maps tensors larger than any freed before, and all above 32 MiB, one by one, and the system fills their pages
    with zeros each time: 11,000 page faults in 50 ms of convolutions.

    Without a cap tensors below 1 GiB are kept. Within one it is what :meth:`hold` says: holes between tensors are as large as all
    that is alive, at times, and kept where the cap has room for them; those above a sixteenth of it are mapped one by one, and
    :func:`fit` gives holes back before they reach it. Elsewhere all above 128 KiB are mapped. The tightest of blocks holds.

    At the end of the outermost block what was kept goes back where it is more than 64 MiB or a quarter of the cap, and the
    thresholds are 32 and 64 MiB: what glibc comes to by itself where such tensors are freed. It has no way to ask what they were,
    nor to let them grow again. Nothing is changed with another C library, nor where ``MALLOC_*`` or ``GLIBC_TUNABLES`` are in the
    environment.

    Args:
        memory: bytes that the block may take; ``None`` for no cap.
        kept: whether holes are kept to begin with.
    """

    _lock = threading.Lock()
    _blocks: ClassVar[list[Heap]] = []
    _before = 0  # bytes resident as the outermost block began

    def __init__(self, memory: int | None, *, kept: bool = False) -> None:
        self._memory, self._keeping = None if memory is None else int(memory), kept

    def _begin(self, later: Callable[[Callable[[], object]], None]) -> bool:
        with self._lock:
            if not Heap._blocks:
                Heap._before = _resident()
            later(self._left)
            Heap._blocks.append(self)
            _set(*_thresholds())
        return True

    def _left(self) -> None:
        with self._lock:
            if self in Heap._blocks:
                Heap._blocks.remove(self)
            _set(*_thresholds())
            least = 2 * _MOST if self._memory is None else min(2 * _MOST, _TRIED * self._memory)
            if not Heap._blocks and _resident() - Heap._before > least:
                _trim()

    def hold(self, bytes_: float, room: float) -> None:
        """Say how many bytes of tensors are alive at once from here on, of those that there is room for."""
        with self._lock:
            self._keeping = roomy(bytes_, room)
            if self in Heap._blocks:
                _set(*_thresholds())


def roomy(bytes_: float, room: float) -> bool:
    """Whether there is room for tensors of so many bytes and the holes between them."""
    return _HOLES * bytes_ <= room


def fit(*, tried: bool = False) -> None:
    """Give holes between tensors back where the process comes near to the cap around it; asked before every forward and product.

    Where something was ``tried`` holes are of other sizes than what comes next needs, and go sooner, with tensors that frames
    of a failure hold in circles.
    """
    cap = next((block._memory for block in list(Heap._blocks) if block._memory is not None), None)
    if cap is None or _resident() - Heap._before <= (_TRIED if tried else _FULL) * cap:
        return
    _trim()
    if tried and _resident() - Heap._before > _FULL * cap:
        give_back()


def give_back() -> None:
    """Free tensors that frames holding one another keep, and return freed memory to the system where the C library can."""
    gc.collect()
    _trim()


def _resident() -> int:
    """Bytes of the process that are in memory; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _thresholds() -> tuple[int, int]:
    """Sizes in bytes from which tensors are mapped one by one, and to which freed memory at the end of the heap is kept."""
    if not Heap._blocks:
        return _MOST, 2 * _MOST
    capped = [block for block in Heap._blocks if block._memory is not None]
    if not capped:
        return _KEPT, _KEPT
    if not all(block._keeping for block in capped):
        return _LEAST, _LEAST
    least = min(block._memory for block in capped if block._memory is not None)
    return min(_KEPT, max(_LEAST, least // _SHARE)), min(_KEPT, max(_LEAST, least))


@cache
def _glibc() -> Any:
    """The C library, where it is glibc and the environment does not say how it is to keep memory; else ``None``."""
    if any(name.startswith(_SAID) for name in os.environ):
        return None
    with suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - another library may have a mallopt of another meaning
        return library
    return None


def _set(mapped: int, kept: int) -> None:
    if (library := _glibc()) is not None:
        if not library.mallopt(_MMAP_THRESHOLD, mapped):  # before glibc 2.35, which maps all that is larger
            library.mallopt(_MMAP_THRESHOLD, _MOST)
        library.mallopt(_TRIM_THRESHOLD, kept)


def _trim() -> None:
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
