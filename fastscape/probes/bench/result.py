"""Results of the benchmark of probes: what each unit costs on one model, data and machine."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastscape._checks import counted
from fastscape.numerics.arrays import Array, Shapes
from fastscape.reports.document import Document
from fastscape.runs.provenance import Provenance

FORWARD, GRADIENT = "forward", "gradient"
COPY, PERTURB = "weights copied", "weights perturbed"


@dataclass(frozen=True)
class BenchUnit:
    """One unit of work.

    Attributes:
        name: of the unit.
        meaning: what one is, in words.
        seconds: per unit in every timed round ``[R]``; empty where none was timed.
        calls: in a round, over which a value of ``seconds`` is the mean.
        items: units in a call: directions times radii, vectors of a block.
        loss: L(w) as the unit computed it; NaN where it computes none.
        deviation: largest difference of its numbers from the reference's, relative to the size of these; NaN where there is none.
        moved: bytes that one unit reads and writes; 0 where it does more than move weights.
        peak: most bytes of tensors alive at once in a call; ``None`` where not counted.
        remark: path and why.
        reason: why there are no timings; empty otherwise.
    """

    shapes: ClassVar[Shapes] = {"seconds": "*"}
    name: str
    meaning: str
    seconds: Array
    calls: int = 1
    items: int = 1
    loss: float = math.nan
    deviation: float = math.nan
    moved: int = 0
    peak: int | None = None
    remark: str = ""
    reason: str = ""

    @property
    def median(self) -> float:
        """Median seconds of one; NaN where none was timed."""
        return float(np.median(self.seconds)) if len(self.seconds) else math.nan

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the seconds."""
        if not len(self.seconds):
            return math.nan, math.nan
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float(low), float(high)

    @property
    def bandwidth(self) -> float:
        """Bytes per second; NaN where the unit does more than move weights."""
        return self.moved / self.median if self.moved and self.median else math.nan


@dataclass(frozen=True)
class BenchResult(Document):
    """Costs of the units of probes.

    Attributes:
        name, step: of the model.
        loss: L(w), that all units were checked against.
        units: all of them, those without timings included, in the order of the table.
        meta: machine, device, dtype, threads, versions, settings, rounds, seconds, stop reason.
        notes: flags of the run, in words.
    """

    kind: ClassVar[str] = "bench"

    name: str
    step: int | None
    loss: float
    units: tuple[BenchUnit, ...]
    meta: Provenance
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<BenchResult {self.name!r}: {len(self.timed)} of {counted(len(self.units), 'unit')} timed>"

    def __getitem__(self, name: str) -> BenchUnit:
        """The unit of a name.

        Raises:
            KeyError: no unit has it; the message lists the names.
        """
        for unit in self.units:
            if unit.name == name:
                return unit
        raise KeyError(f"unknown unit {name!r}; expected one of {', '.join(unit.name for unit in self.units)}")

    @property
    def timed(self) -> tuple[BenchUnit, ...]:
        """The units with timings."""
        return tuple(unit for unit in self.units if len(unit.seconds))

    def ratio(self, name: str, base: str = FORWARD) -> float:
        """Median over the rounds of a unit's seconds over another's; NaN where either was not timed."""
        above, below = self[name].seconds, self[base].seconds
        rounds = min(len(above), len(below))
        return float(np.median(above[:rounds] / below[:rounds])) if rounds else math.nan

    def pytest_benchmark(self) -> dict[str, Any]:
        """The timings as JSON data of the form that ``pytest-benchmark compare`` reads."""
        versions = self.meta.get("versions", {})
        return {
            "machine_info": {
                "node": "",
                "machine": self.meta.get("machine", ""),
                "python_version": versions.get("python", ""),
                "cpu": {"brand_raw": self.meta.get("machine", ""), "count": self.meta.get("cores")},
            },
            "commit_info": {"id": "unversioned", "branch": "", "dirty": False, "time": self.meta.get("created")},
            "benchmarks": [_statistics(unit, self) for unit in self.timed],
            "datetime": self.meta.get("created", ""),
            "version": "4.0.0",
        }


def _statistics(unit: BenchUnit, result: BenchResult) -> dict[str, Any]:
    seconds: Sequence[float] = [float(value) for value in unit.seconds]
    low, high = unit.quartiles
    deviation = statistics.stdev(seconds) if len(seconds) > 1 else 0.0
    total = sum(seconds)
    mean = total / len(seconds)
    return {
        "group": unit.name.partition(":")[0],
        "name": unit.name,
        "fullname": f"{result.name}::{unit.name}",
        "params": None,
        "param": None,
        "extra_info": {"meaning": unit.meaning, "remark": unit.remark, "items": unit.items, "device": result.meta.get("device")},
        "options": {"disable_gc": False, "timer": "perf_counter", "min_rounds": len(seconds), "warmup": True},
        "stats": {
            "min": min(seconds),
            "max": max(seconds),
            "mean": mean,
            "stddev": deviation,
            "rounds": len(seconds),
            "median": unit.median,
            "iqr": high - low,
            "q1": low,
            "q3": high,
            "iqr_outliers": 0,
            "stddev_outliers": 0,
            "outliers": "0;0",
            "ld15iqr": min(seconds),
            "hd15iqr": max(seconds),
            "ops": 1.0 / mean if mean else 0.0,
            "total": total,
            "iterations": unit.calls,
        },
    }
