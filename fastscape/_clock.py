"""The clock: every budget, and every choice by measuring, reads it here, so that a test can replace it by a simulated one."""

from __future__ import annotations

import time
from collections.abc import Callable

read: Callable[[], float] = time.perf_counter  # replaced in tests
processor: Callable[[], float] = time.process_time
sleep: Callable[[float], None] = time.sleep


def now() -> float:
    """Monotonic seconds since some moment."""
    return read()


def processor_seconds() -> float:
    """Seconds that this process has computed."""
    return processor()


def pause(seconds: float) -> None:
    """Do nothing for so long, until what another process does can be seen."""
    sleep(seconds)
