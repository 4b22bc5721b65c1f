"""Time rivals in turns, so that a busy machine disturbs them alike, and record them for RESULTS.md."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def medians(rivals: dict[str, Callable[[], object]], repeats: int = 9, *, warm: bool = False) -> dict[str, float]:
    """Median seconds of each rival over ``repeats`` rounds in which every rival runs once; one round before, unless ``warm``."""
    for run in () if warm else rivals.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    names = list(rivals)
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            rivals[name]()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def record(benchmark, title: str, times: dict[str, float], *, baseline: str, per: float = 1.0, unit: str = "s") -> None:
    """Keep a table: what each rival took, and its speed-up over the baseline.

    Args:
        benchmark: pytest-benchmark's fixture.
        title: of the table.
        times: seconds by rival.
        baseline: the rival that ratios refer to.
        per: elements, outputs or evaluations in those seconds.
        unit: of seconds divided by ``per``: ``"s"``, ``"us"`` or ``"ns"`` each.
    """
    factor = {"s": 1.0, "us": 1e6, "ns": 1e9}[unit] / per
    rows = {
        name: {"time": round(seconds * factor, 4), "ratio": round(times[baseline] / seconds, 3)}
        for name, seconds in times.items()
    }
    keep(benchmark, title, rows, unit=unit, baseline=baseline)


def keep(benchmark, title: str, rows: dict[str, dict[str, float]], *, unit: str, baseline: str) -> None:
    """Keep a table of ``{"time": ..., "ratio": ...}`` by rival; a benchmark may have several."""
    table = {"title": title, "unit": unit, "baseline": baseline, "threads": torch.get_num_threads(), "rows": rows}
    benchmark.extra_info.setdefault("tables", []).append(table)
