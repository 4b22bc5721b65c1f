"""Costs of probes on one model, data and machine: units timed in turns, after their numbers were compared."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Unpack

import numpy as np
import torch

from fastscape._checks import amount, check_memory, counted, first_line, integer
from fastscape._clock import now
from fastscape._keeping import keeps_result
from fastscape._state import entered, kept_generators
from fastscape.curvature.sketch import synchronise
from fastscape.numerics.arrays import Array
from fastscape.objective.objective import Objective, checked_objective
from fastscape.ops import status
from fastscape.probes.bench.responses import ROUNDINGS
from fastscape.probes.bench.result import BenchResult, BenchUnit
from fastscape.probes.bench.setting import Ready, Setting, Unit
from fastscape.probes.bench.units import bench_units
from fastscape.runs.anytime import Anytime
from fastscape.runs.peak import peak_bytes
from fastscape.runs.progress import Progress, reporter
from fastscape.runs.provenance import objective_meta
from fastscape.runs.run import Work, settled

_SLOW = 0.25  # seconds of making ready, which computes the numbers once, after which a unit is warm
_ROUND = 0.005  # seconds of a unit in a round below which it is called several times
_CALLS = 100  # at most
_LONG = 200  # characters of a remark: refusals of paths quote torch
_FEW = 5  # repeats below which quartiles say little


class BenchKeywords(Work, total=False):
    """Keywords beside how much is timed."""

    memory: int | None
    progress: Callable[[Progress], None] | None


@keeps_result
def bench(
    objective: Objective,
    *,
    count: int = 8,
    repeats: int = 9,
    **keywords: Unpack[BenchKeywords],
) -> BenchResult:
    r"""Costs of a forward, a gradient, a response, a quadratic form and a product here, in turns, beside plain torch.

    Every unit's loss is checked against L(w), and its numbers against those of another way to compute them (responses against
    float64 subtraction, products :math:`v^\top H v` against the exact quadratic form, Gauss-Newton products against a difference
    of outputs), before anything is timed; what disagrees is not timed. Then all units run once in every round, in rotating order,
    so that a busy machine disturbs them alike: ratios are medians of ratios within rounds.

    Args:
        objective: the loss L; D parameters.
        budget: seconds, or ``"60s"``, the default; units that do not fit are listed as left out. ``None`` times all of them.
        count: directions of a call of responses (one where a forward is slow), vectors of a block of products.
        repeats: rounds at most.
        memory: bytes for each way to evaluate, as for :func:`fastscape.responses` and :func:`fastscape.hessian`.
        seed: of the directions.
        name, step: of the model.
        progress: called before every unit with a :class:`fastscape.Progress`, whose ``stage`` names it.
        run: budget, memory, seed, name, step, progress, or some of them, in a :class:`fastscape.Run`.

    Returns:
        A :class:`BenchResult`: seconds per unit in every round, peak memory, deviations, paths. Whatever a unit raises is its
        row's reason. Ctrl-C gives what was timed, ``meta["stop_reason"] == "interrupted"``.

    Raises:
        ValueError: bad arguments.
        NondeterministicLossError: two evaluations at w differ.

    Cost: the budget, or without one about 1000 forwards and 20 ``repeats`` gradients; about ten copies of the parameters, and
    the graphs that products keep.

    Example:
        >>> import torch, fastscape as fs
        >>> objective = fs.Objective(torch.nn.Linear(4, 3), [(torch.ones(2, 4), torch.tensor([0, 2]))],
        ...                          criterion=torch.nn.functional.cross_entropy)
        >>> result = fs.bench(objective, repeats=2)
        >>> result.ratio("gradient") > 0
        True
    """
    work = settled(bench, keywords, budget="60s")
    clock = work.clock()
    checked_objective(objective)
    check_memory(work.memory)
    run = _Run(
        Anytime(clock),
        amount("repeats", repeats, 1),
        work.name,
        reporter(work.progress, ("words", "share")),
    )
    amount("count", count, 1), integer("seed", work.seed, 0, 2**63)
    began = now()
    loss, budget = math.nan, run.work.budget
    with clock.opening("unit", 20 * len(objective.batches)), ExitStack() as stack:
        entered(stack, kept_generators())
        with run.work.ends(lambda: run.rows):
            setting = Setting(objective, count, work.memory, work.seed, stack)
            loss = setting.loss
            run.prepare(setting)
            run.rounds()
    stop_reason = "all repeats done" if run.work.reason == "complete" else run.work.reason
    settings = {"budget": budget.seconds if budget.limited else None, "count": count, "repeats": repeats}
    return BenchResult(
        name=work.name,
        step=work.step,
        loss=loss,
        units=tuple(row.unit() for row in run.rows),
        meta=objective_meta(objective)
        | machine(objective.device)
        | {
            "seed": work.seed,
            "settings": settings | {"memory": work.memory},
            "rounds": run.done,
            "seconds": now() - began,
            "stop_reason": stop_reason,
        },
        notes=tuple(run.notes(stop_reason)),
    )


@dataclass
class _Row:
    """A unit, and what is known of it."""

    plan: Unit
    ready: Ready | None = None
    reason: str = ""
    deviation: float = math.nan
    calls: int = 1
    expected: float = 0.0  # seconds of a round of it
    peak: int | None = None
    seconds: list[float] = field(default_factory=list)

    def unit(self) -> BenchUnit:
        """As a part of the result."""
        ready = self.ready or Ready(lambda: None, ExitStack)  # type: ignore[arg-type]
        reason = self.reason or ("" if self.seconds else "the run ended before its turn")
        return BenchUnit(
            name=self.plan.name,
            meaning=self.plan.meaning,
            seconds=np.array(self.seconds, dtype=np.float64),
            calls=self.calls,
            items=ready.items,
            loss=ready.loss,
            deviation=self.deviation,
            moved=ready.moved,
            peak=self.peak,
            remark=ready.remark[:_LONG],
            reason=reason,
        )


class _Run:
    """Prepares units and times them; its attributes hold what is known, whatever ends it."""

    def __init__(self, work: Anytime, repeats: int, name: str, report: Callable[..., None] | None) -> None:
        self.work, self.repeats, self._name, self._report = work, repeats, name, report
        self.rows: list[_Row] = []
        self.done = 0
        self._references: dict[str, Array] = {}
        self._on = torch.empty(0)

    # ------------------------------------------------------------------ before timing

    def prepare(self, setting: Setting) -> None:
        """Make every unit ready that fits in the budget, check its numbers and count its memory."""
        self._on, plans = setting.replica.base[0], list(bench_units(setting))
        self.rows = [_Row(plan) for plan in plans]
        for row in sorted(self.rows, key=lambda row: row.plan.rank):
            self._show(f"preparing {row.plan.name}")
            needed, reserve = row.plan.forwards * setting.forward_seconds, sum(other.expected for other in self.rows)
            if not self.work.fits(needed, reserve):
                self._leave(row, needed + reserve)
                continue
            began = now()
            try:
                ready = row.plan.make()
                row.deviation, row.reason = self._compared(row.plan, ready, setting)
                if not row.reason:
                    self._warm(row, ready, reserve, cold=now() - began < _SLOW)
            except Exception as error:  # whatever a model or a path does in one unit is no reason to lose the others
                row.reason = f"{type(error).__name__}: {first_line(error)[:300]}"
                row.ready = None

    def _leave(self, row: _Row, needed: float) -> None:
        self.work.reason = "deadline"
        left = max(0.0, self.work.budget.remaining)
        row.reason = f"does not fit: about {needed:.2g} s with the timing of those before, {left:.2g} s of the budget left"

    def _compared(self, plan: Unit, ready: Ready, setting: Setting) -> tuple[float, str]:
        """Deviation of a unit's numbers from the reference, and why it must not be timed; empty where it may."""
        noise = ROUNDINGS * setting.noise(ready.dtype)
        if not (math.isnan(ready.loss) or ready.loss == setting.loss or abs(ready.loss - setting.loss) <= noise):
            return math.nan, f"its loss {ready.loss:.8g} is not L(w) = {setting.loss:.8g}; not timed"
        if ready.values is None:
            return math.nan, ""
        expected = ready.expected if ready.expected is not None else self._references.get(plan.kind)
        if expected is None:
            self._references[plan.kind] = ready.values
            return math.nan, ""
        size = min(len(expected), len(ready.values))
        found, truth = ready.values[:size], expected[:size]
        rms = math.sqrt(float(np.mean(expected**2)))
        if not math.isfinite(rms):
            return math.nan, ""
        worst = float(np.max(np.abs(found - truth)))
        deviation = worst / rms if rms else (0.0 if not worst else math.inf)
        if worst <= max(ready.tolerance * rms, ready.absolute, noise if not rms else 0.0):
            return deviation, ""
        return deviation, f"its numbers differ from the reference by {deviation:.1g} of their size; not timed"

    def _warm(self, row: _Row, ready: Ready, reserve: float, *, cold: bool) -> None:
        """Find out how long it takes, after a run if it is quick, and count its memory where there is time."""
        row.ready, row.peak = ready, ready.peak
        if not cold and ready.peak is None:  # counting takes 30 us an operation, which does not show here
            with ready.context():
                start = now()
                row.peak = peak_bytes(ready.run)[1]
                row.expected = now() - start
            return
        if cold:
            with ready.context():
                ready.run()
        once = self._timed(row) * ready.items
        row.calls = max(1, min(_CALLS, round(_ROUND / max(once, 1e-9))))
        row.expected = once * row.calls
        if ready.peak is None and self.work.fits(2 * once, reserve + row.expected):
            with ready.context():
                row.peak = peak_bytes(ready.run)[1]

    # ------------------------------------------------------------------ timing

    def rounds(self) -> None:
        """Time every unit once a round, in rotating order, until the repeats or the budget are done."""
        ready = [row for row in self.rows if row.ready is not None]
        for turn in range(self.repeats):
            if turn:
                self.work.need(sum(row.expected for row in ready))
            start = turn % max(1, len(ready))
            found: dict[int, float] = {}
            order = ready[start:] + ready[:start] if turn else sorted(ready, key=lambda row: row.expected)
            for row in order:  # first the quick ones, which a short budget should not lose to a slow one
                self._show(f"round {turn + 1} of {self.repeats}: {row.plan.name}")
                if not turn and not self.work.fits(row.expected):
                    self._leave(row, row.expected)
                    continue
                try:
                    found[id(row)] = self._timed(row)
                except Exception as error:
                    row.reason = f"{type(error).__name__}: {first_line(error)[:300]}"
                if not turn and id(row) in found:
                    row.seconds.append(found.pop(id(row)))
            ready = [row for row in ready if not row.reason]
            for row in ready:  # of later rounds whole ones count, so that ratios are of the same round
                if id(row) in found:
                    row.seconds.append(found[id(row)])
            self.done = turn + 1

    def _timed(self, row: _Row) -> float:
        """Seconds of one."""
        ready = row.ready
        assert ready is not None
        with ready.context():
            start = now()
            for _ in range(row.calls):
                ready.run()
            synchronise(self._on)
            return (now() - start) / (row.calls * ready.items)

    def _show(self, words: str) -> None:
        if self._report is not None:
            budget = self.work.budget
            state = Progress.under(budget, self._name, 0.0 if budget.limited else self.done / self.repeats, stage=words)
            self._report(state, words, state.fraction)

    # ------------------------------------------------------------------ afterwards

    def notes(self, stop_reason: str) -> list[str]:
        """Flags, in words."""
        timed = [row for row in self.rows if row.seconds]
        notes = []
        if stop_reason in ("deadline", "interrupted"):
            without = sum(not row.seconds for row in self.rows)
            notes.append(
                f"ended early ({stop_reason}): {counted(without, 'unit')} without timings, {counted(self.done, 'round')}"
            )
        if timed and self.done < _FEW:
            notes.append(f"{counted(self.done, 'round')}: quartiles say little; raise the budget or repeats")
        wide = [row.plan.name for row in timed if _spread(row.seconds) > 0.5]
        if wide:
            notes.append(f"quartiles more than 50 % of the median apart, a busy machine: {', '.join(wide)}")
        wrong = [row.plan.name for row in self.rows if row.reason.endswith("not timed")]
        if wrong:
            notes.append(f"wrong numbers: {', '.join(wrong)}")
        return notes


def _spread(seconds: list[float]) -> float:
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    return float((high - low) / middle) if middle else 0.0


def machine(device: torch.device) -> dict[str, object]:
    """Name of the processor that does the work, its cores, and which kernels answer."""
    found = status()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    kernels = found.native or f"reference: {found.native_reason}"
    return {"machine": name, "cores": os.cpu_count(), "kernels": kernels if device.type == "cpu" else f"{kernels}; {found.cuda}"}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
