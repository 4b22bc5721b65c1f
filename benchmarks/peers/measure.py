"""Time and memory of a call in this process."""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

# freed blocks go back to the system at once: the high-water mark is that of live memory, not of a fragmented heap
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    return statistics.median(seconds(call) for _ in range(repeats))


def resident(kind: str) -> float:
    """MiB of this process: ``VmRSS`` now, ``VmHWM`` the most since the mark was reset."""
    return int(re.search(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def extra_memory(call: Callable[[], Result]) -> tuple[Result, float]:
    """The result of a call and the MiB of resident memory that it took at its peak above those before it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    result = call()
    return result, max(0.0, resident("VmHWM") - before)
