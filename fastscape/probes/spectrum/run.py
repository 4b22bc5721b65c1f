"""One run of the spectral probe: when to extend the basis, when to probe what it leaves, and when to end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from fastscape.numerics.estimate import Estimate
from fastscape.numerics.krylov import BlockLanczos, Eigenpairs
from fastscape.numerics.trace import probes_needed
from fastscape.objective.objective import Objective
from fastscape.probes.spectrum.multiplied import Multiplied
from fastscape.probes.spectrum.state import Curvature, Goals
from fastscape.runs.anytime import Anytime, Deadline
from fastscape.runs.budget import Budget, BudgetError, time_text
from fastscape.runs.evaluations import Evaluations
from fastscape.runs.progress import Progress

_FIRST = 8  # fresh probes before the interval is looked at: with 4, 13 % of the intervals missed the trace of a 1/i spectrum
_MARGIN = 1.25  # how much longer than the slowest block so far the next may take


class SpectralRun:
    """A run to its goals or its deadline.

    Attributes:
        known: what has been multiplied.
        work: the time; its reserve is what the basis leaves to what comes between it and the trace.
    """

    def __init__(
        self,
        objective: Objective,
        operator: Curvature,
        *,
        k: int,
        goals: Goals,
        block: int,
        seed: int,
        budget: Budget,
        capacity: int,
        warm: Tensor | None,
        name: str,
        progress: Callable[[Progress], None] | None,
        evaluations: Evaluations | None = None,
    ) -> None:
        self.known = Multiplied(objective, operator, block=block, seed=seed, warm=warm, evaluations=evaluations)
        self.work = Anytime(budget, margin=_MARGIN, evaluations=evaluations)  # a unit is the slowest block
        self.k, self.goals, self.capacity, self.name, self.progress = k, goals, capacity, name, progress

    def run(self, between: Callable[[], None] | None = None) -> str:
        """Multiply until the goals are met; returns why it ended. :class:`Deadline` and what a model raises pass through.

        ``between`` is called when the eigenvalues are found, before the trace is refined; its time counts.
        """
        basis = self.known.begin(self.k, self.capacity)
        self._check_budget(basis)
        try:
            reason = self._grow(basis)
        except Deadline:
            reason = "deadline"  # of the eigenvalues: the time that was kept for the trace is left
        if reason == "nan products":
            return reason
        self.work.reserve = 0.0
        if between is not None:
            between()
        if reason == "complete":
            return "targets met"
        refined = self._refine(basis, deepen=reason == "targets met")
        return refined if reason == "targets met" else reason

    def _check_budget(self, basis: BlockLanczos) -> None:
        """Refuse a budget that cannot hold the first block."""
        budget, operator = self.work.budget, self.known.operator
        prepare = getattr(operator, "prepare", None)
        if not budget.limited or prepare is None:
            return
        count = basis.next_products  # with warm vectors more than the block
        choice = prepare(count)
        unit = choice.gradients * choice.gradient_seconds * count * len(operator.batch_weights)
        if not (self.work.evaluations.replaying or budget.admits(unit)):
            enough = _MARGIN * budget.least(unit)
            raise BudgetError(
                f"budget must fit one block of {count} products, got {budget.seconds:g} s; it takes about {unit:.2g} s "
                f"after {budget.elapsed:.2g} s of preparation; a budget of {time_text(enough)} is enough to begin",
                enough,
            )

    def _grow(self, basis: BlockLanczos) -> str:
        """Extend the basis to the nodes and the eigenvalues wanted."""
        while not self._found(basis) or basis.dimension < min(self.goals.nodes, self.known.size):
            reason = self._step(basis)
            if reason is not None:
                return reason
        return "targets met"

    def _step(self, basis: BlockLanczos) -> str | None:
        """One block more; a reason where none can follow."""
        if basis.dimension:
            self.work.need(3 * self.work.unit)  # this block, and two of fresh probes after it
        if self.known.count + basis.next_products > self.goals.products:
            return "product limit"
        with self.work.slowest():
            going = self.known.extend(basis)
        if basis.stop_reason == "nan":
            return "nan products"
        self._report("eigenvalues")
        if going:
            return None
        return "complete" if basis.stop_reason == "complete" else "targets met"

    def _found(self, basis: BlockLanczos) -> bool:
        return basis.dimension > 0 and basis.settle(self.k, tolerance=self.goals.eigenvalues)

    def _refine(self, basis: BlockLanczos, *, deepen: bool) -> str:
        """Probe the complement of the basis until the trace is as narrow as wanted; deepen the basis where that is cheaper."""
        known = self.known
        count = max(2, known.block)
        while True:
            estimate = known.trace_estimate()
            if known.complete or (len(known.fresh) >= _FIRST and self._narrow(estimate)):
                return "targets met"
            needed = self._needed(estimate)
            growth = min(basis.dimension, known.size - basis.dimension)
            if deepen and needed > growth and self._pays(basis, needed, growth) and self._has_room(basis, growth):
                goal = basis.dimension + growth
                known.fresh.restart()
                while basis.dimension < goal and not basis.done:
                    reason = self._step(basis)
                    if reason not in (None, "complete", "targets met"):
                        return str(reason)
                continue
            if known.count + count > self.goals.products + (0 if len(known.fresh) else count):
                return "product limit"
            self.work.need()
            with self.work.slowest():
                known.probe(basis, count)
            self._report("trace")

    def _needed(self, estimate: Estimate) -> int:
        """Further probes to the target by the spread of two blocks or more; 0 where it does not tell."""
        half = (self.goals.trace or 0.0) * abs(estimate.value)
        if len(self.known.fresh) < 2 * max(2, self.known.block) or not (math.isfinite(estimate.stderr) and half > 0):
            return 0
        return probes_needed(np.array(self.known.fresh.forms), half) - len(self.known.fresh)

    def _pays(self, basis: BlockLanczos, needed: int, growth: int) -> bool:
        """Whether more basis vectors save more probes than they cost, if each takes half as much variance as those before did.

        Also where as many probes as basis vectors were not enough: then both are doubled.
        """
        if len(self.known.fresh) >= basis.dimension or growth == self.known.size - basis.dimension:
            return True
        left = float(np.var(self.known.fresh.forms, ddof=1))
        taken = float(np.var(np.concatenate([self.known.plain()[0], self.known.fresh.whole]), ddof=1)) - left
        after = max(left - 0.5 * taken * growth / basis.dimension, 0.0)
        return needed * after / left + growth + len(self.known.fresh) < needed

    def _has_room(self, basis: BlockLanczos, growth: int) -> bool:
        room = basis.capacity if basis.capacity == self.known.size else basis.capacity - 2 * basis.next_products
        return not basis.done and basis.dimension + growth <= room

    def _narrow(self, estimate: Estimate) -> bool:
        if self.goals.trace is None:
            return True
        low, high = estimate.interval
        return bool((high - low) / 2 <= self.goals.trace * abs(estimate.value)) or not math.isfinite(estimate.value)

    def _report(self, stage: str) -> None:
        if self.progress is None:
            return
        known = self.known
        expected = max(self.goals.nodes, known.count) + (2 * known.block if stage == "eigenvalues" else 0)
        values = self.pairs("largest", 1).values
        top = float(values[0]) if len(values) else math.nan
        estimate = known.trace_estimate()
        trace = estimate if math.isfinite(estimate.value) else None
        found: dict[str, Any] = {"stage": stage, "unit": "product", "done": known.count, "lambda_max": top, "trace": trace}
        self.progress(Progress.under(self.work.budget, self.name, known.count / expected, **found))

    def pairs(self, which: str, count: int, *, vectors: bool = False) -> Eigenpairs:
        """Ritz pairs of one end, none before the first step."""
        assert self.known.basis is not None
        return self.known.basis.pairs(count, which, tolerance=self.goals.eigenvalues, vectors=vectors)  # type: ignore[arg-type]
