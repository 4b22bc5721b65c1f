"""Results of the benchmark of probes: what each unit costs on one model, data and machine."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastscape._checks import counted
from fastscape.estimators.scaling import Array
from fastscape.reports.axes import BLUE, GREY, nothing, single
from fastscape.reports.document import Document
from fastscape.reports.sections import Figure, Grid, Quantity, Section
from fastscape.reports.tables import number
from fastscape.runs.provenance import told

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORWARD, GRADIENT = "forward", "gradient"
COPY, PERTURB = "weights copied", "weights perturbed"
_MEANINGS = {
    "unit": "what is done once",
    "time": "median of the rounds",
    "quartiles": "first and third, over the rounds",
    "forwards": "median over the rounds of the unit's seconds over one forward's in the same round",
    "gradients": "the same over one gradient (forward and backward)",
    "GB/s": "bytes read and written over seconds, for the units that only move weights",
    "peak MiB": "most bytes of tensors alive at once in the unit, beyond what was there before; kernels' workspace not counted",
    "deviation": "largest difference from the reference of the same numbers, relative to their size; checked before timing",
    "runs": "timed rounds, and calls in each",
}
_HOW = {"unit": "what is done once", "one is": "what was timed", "how": "the path that was taken, and why"}


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
        return self.moved / self.median if self.moved else math.nan


@dataclass(frozen=True)
class BenchResult(Document):
    """What the units of probes cost.

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
    meta: dict[str, Any]
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
        raise KeyError(f"{name!r} is none of {', '.join(unit.name for unit in self.units)}")

    @property
    def timed(self) -> tuple[BenchUnit, ...]:
        """The units with timings."""
        return tuple(unit for unit in self.units if len(unit.seconds))

    def ratio(self, name: str, base: str = FORWARD) -> float:
        """Median over the rounds of a unit's seconds over another's; NaN where either was not timed."""
        above, below = self[name].seconds, self[base].seconds
        rounds = min(len(above), len(below))
        return float(np.median(above[:rounds] / below[:rounds])) if rounds else math.nan

    def section(self) -> Section:
        """See :class:`Document`."""
        missing = [unit for unit in self.units if not len(unit.seconds)]
        how = tuple({"unit": unit.name, "one is": unit.meaning, "how": unit.remark} for unit in self.timed)
        grids = [Grid("Cost of one", tuple(self._row(unit) for unit in self.timed), _MEANINGS), Grid("How", how, _HOW)]
        if missing:
            rows = tuple({"unit": unit.name, "why": unit.reason} for unit in missing)
            grids.append(Grid("Left out", rows, {"unit": "what is done once", "why": "why there are no timings"}))
        return Section(
            f"Cost of probes: {self.name}",
            _verdict(self),
            tuple(_quantities(self)),
            (
                Figure(
                    "Cost in forwards",
                    lambda ax: bars(self, ax),
                    "Median over the rounds of each unit's seconds over those of one forward in the same round, quartiles as a "
                    "line. Units of responses are one direction at one radius, of products one vector.",
                ),
            ),
            tuple(grids),
            told(self.meta, self.notes),
            tuple((key, str(value)) for key, value in self.meta.get("settings", {}).items()),
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Cost of every unit in forwards (needs matplotlib)."""
        return bars(self, ax)

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

    def _row(self, unit: BenchUnit) -> dict[str, str]:
        low, high = unit.quartiles
        return {
            "unit": unit.name,
            "time": time_words(unit.median),
            "quartiles": f"{time_words(low)} .. {time_words(high)}",
            "forwards": number(self.ratio(unit.name)),
            "gradients": number(self.ratio(unit.name, GRADIENT)),
            "GB/s": number(unit.bandwidth / 1e9) if unit.moved else "",
            "peak MiB": "" if unit.peak is None else number(unit.peak / 2**20),
            "deviation": "" if math.isnan(unit.deviation) else f"{unit.deviation:.0e}",
            "runs": f"{len(unit.seconds)} x {unit.calls}" if unit.calls > 1 else str(len(unit.seconds)),
        }


def time_words(seconds: float) -> str:
    """``1.23 ms``: three digits in the unit that suits; ``n/a`` for NaN."""
    if not math.isfinite(seconds):
        return "n/a"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _quantities(result: BenchResult) -> list[Quantity]:
    meta = result.meta
    versions = ", ".join(f"{name} {version}" for name, version in meta.get("versions", {}).items())
    rows = [
        Quantity("model", f"{meta.get('model')}, {meta.get('parameters'):,} parameters", f"{meta.get('dtype')}"),
        Quantity("data", f"{meta.get('samples'):g} terms", f"in {counted(meta.get('batches', 0), 'batch')}"),
        Quantity("loss", number(result.loss, 6), "L(w); every unit that computes it was held against this"),
        Quantity("device", str(meta.get("device")), str(meta.get("machine", ""))),
        Quantity("threads", str(meta.get("threads")), f"of {meta.get('cores')} cores"),
        Quantity("kernels", str(meta.get("kernels", "")), "what answers for fastscape's own operations"),
        Quantity("versions", versions, ""),
    ]
    for name, meaning in ((FORWARD, "L(w) once, no gradient"), (GRADIENT, "its gradient, forward included")):
        if any(unit.name == name for unit in result.timed):
            unit = result[name]
            low, high = unit.quartiles
            rows.append(
                Quantity(
                    f"one {name}", f"{time_words(unit.median)} [{time_words(low)}, {time_words(high)}]", f"{meaning}; quartiles"
                )
            )
    return rows


def _verdict(result: BenchResult) -> str:
    timed = result.timed
    if not timed:
        return f"Nothing was timed ({result.meta.get('stop_reason')})."
    parts = []
    responses = [unit for unit in timed if unit.name.startswith("even response")]
    if responses:
        best = min(responses, key=lambda unit: unit.median)
        parts.append(f"an even response takes {number(result.ratio(best.name))} forwards ({best.name.partition(': ')[2]})")
    products = [unit for unit in timed if unit.name.startswith("Hessian product")]
    if products:
        best = min(products, key=lambda unit: unit.median)
        parts.append(f"a Hessian product {number(result.ratio(best.name, GRADIENT))} gradients ({best.name.partition(': ')[2]})")
    rounds = max(len(unit.seconds) for unit in timed)
    tail = f"{len(timed)} of {counted(len(result.units), 'unit')} timed, up to {counted(rounds, 'repeat')}."
    return ("At best " + " and ".join(parts) + "; " if parts else "") + tail


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


def bars(result: BenchResult, ax: Axes | None = None) -> Axes:
    """Cost in forwards on a logarithmic axis, quartiles as lines."""
    ax = single(ax)
    title = "Cost of one, in forwards"
    rows = [(unit, result.ratio(unit.name)) for unit in reversed(result.timed)]
    rows = [(unit, ratio) for unit, ratio in rows if math.isfinite(ratio) and ratio > 0]
    if not rows:
        return nothing(ax, title, "no unit was timed beside a forward")
    floor = min(ratio for _, ratio in rows) / 3
    for place, (unit, ratio) in enumerate(rows):
        ax.barh(
            place, ratio - floor, left=floor, color=GREY if unit.name in (FORWARD, GRADIENT) else BLUE, alpha=0.85, height=0.6
        )
        low, high = (ratio * bound / unit.median for bound in unit.quartiles)
        ax.plot([low, high], [place, place], color="k", lw=1.2)
        ax.annotate(number(ratio), (max(ratio, high), place), (4, 0), textcoords="offset points", va="center", fontsize=7)
    ax.set(xscale="log", xlim=(floor, 6 * max(ratio for _, ratio in rows)), xlabel="forwards")
    ax.set_yticks(range(len(rows)), [unit.name for unit, _ in rows], fontsize=7)
    ax.set_title(title, fontsize=10)
    return ax
