"""Time rivals in turns, so that a busy machine disturbs them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def medians(rivals: dict[str, Callable[[], object]], repeats: int = 9) -> dict[str, float]:
    """Median seconds of each rival over ``repeats`` rounds in which every rival runs once; one warm-up round."""
    for run in rivals.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    names = list(rivals)
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            rivals[name]()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
