r"""One run of the spectral probe: a Krylov basis from random probes and the gradient, then probes of what it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastscape.curvature.choice import AsymmetricProductError
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate, widened
from fastscape.numerics.krylov import BlockLanczos, Eigenpairs
from fastscape.numerics.trace import hutchinson, layer_forms, layer_grams, probes_needed
from fastscape.objective.objective import Objective
from fastscape.ops import direction, tensor_ids
from fastscape.probes.spectrum.state import Curvature, Deadline, Fresh, Goals, SpectrumProgress, Started, Sums
from fastscape.runs.budget import Budget, BudgetError, time_text

FRESH = 1 << 20  # index of the first probe of the complement: independent of all that start a basis
_ASYMMETRY = 1e-2  # of Q'HQ relative to the norm; float32 products have 1e-6 to 1e-4
_INEXACT = 0.3  # the same, for products by differences of gradients
_FIRST = 8  # fresh probes before the interval is looked at: with 4, 13 % of the intervals missed the trace of a 1/i spectrum
_MARGIN = 1.25  # how much longer than the slowest block so far the next may take


class SpectralRun:
    """Products of one operator, and all that is known from them.

    Attributes:
        basis: the Lanczos run; ``None`` before its first block was drawn.
        probes: number of random vectors among the starting ones, which come first.
        started, sums, fresh: see their classes; ``started`` is ``None`` before the first products.
        loss, accuracy, gradient_norm: at the weights.
        notes: flags in words.
        multiplied: vectors multiplied for the estimates, without trials of paths.
        multiplied_beside: vectors that others multiplied by the same operator.
        reserve: seconds that the basis leaves to what comes between it and the trace.
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
        progress: Callable[[SpectrumProgress], None] | None,
        reserve: float = 0.0,
    ) -> None:
        self.objective, self.operator, self.k, self.goals = objective, operator, k, goals
        self.block, self.seed, self.budget, self.capacity = block, seed, budget, capacity
        self.warm, self.name, self.progress = warm, name, progress
        self.size = operator.shape[0]
        known = tensor_ids(name for name, _ in objective.model.named_parameters())
        self._ids = torch.tensor([known[name] for name in objective.names], device=operator.device)
        self._sizes = [tensor.numel() for tensor in objective.base.values()]
        self.basis: BlockLanczos | None = None
        self.probes = 0
        self.started: Started | None = None
        self.has_gradient = False
        self.loss, self.gradient_norm = math.nan, math.nan
        self.accuracy: float | None = None
        self.sums = Sums(np.zeros(len(operator.layers)), np.zeros(len(operator.batch_weights)))
        self.fresh = Fresh()
        self.notes: list[str] = []
        self.multiplied = 0
        self.multiplied_beside = 0
        self.reserve = reserve
        self._unit = 0.0  # seconds of the slowest block
        self._pending: tuple[Tensor, Tensor, Array] | None = None

    # ------------------------------------------------------------------ stages

    def run(self, between: Callable[[], None] | None = None) -> str:
        """Multiply until the goals are met; returns why it ended. :class:`Deadline` and what a model raises pass through.

        ``between`` is called when the eigenvalues are found, before the trace is refined; its time counts.
        """
        self.loss, self.accuracy = self.objective.evaluate_once()
        start = self._start()
        self.basis = BlockLanczos(
            self._multiply,
            start,
            wanted=self.k,
            capacity=max(self.capacity, 2 * self.k + 3 * start.shape[1]),
            copies=self.probes,
            seed=self.seed,
        )
        self._check_budget()
        try:
            reason = self._grow(self.basis)
        except Deadline:
            reason = "deadline"  # of the eigenvalues: the time that was kept for the trace is left
        if reason == "nan products":
            return reason
        self.reserve = 0.0
        if between is not None:
            between()
        if reason == "complete":
            return "targets met"
        refined = self._refine(self.basis, deepen=reason == "targets met")
        return refined if reason == "targets met" else reason

    def _start(self) -> Tensor:
        """Signs, the gradient and earlier eigenvectors, ``[D, p]``, all of norm sqrt(D)."""
        self.probes = min(max(1, self.block - 1), self.size)
        columns = [self._signs(0, self.probes)]
        prepare = getattr(self.operator, "prepare", None)
        if prepare is not None:  # which tells the dtype
            prepare(self.probes + 1 + (0 if self.warm is None else self.warm.shape[1]))
        parts = self.objective.gradient().values()
        gradient = torch.cat([part.flatten() for part in parts]).to(self.operator.device).double()
        self.gradient_norm = float(torch.linalg.vector_norm(gradient))
        self.has_gradient = math.isfinite(self.gradient_norm) and self.gradient_norm > 0
        if self.has_gradient:
            columns.append((gradient * (math.sqrt(self.size) / self.gradient_norm)).to(self.operator.dtype)[:, None])
        elif self.gradient_norm == 0:
            self.notes.append("the gradient is zero: no curvature along it")
        else:
            self.notes.append("the gradient is not finite: no curvature along it")
        if self.warm is not None:
            columns.append(self.warm.to(self.operator.device, self.operator.dtype) * math.sqrt(self.size))
        return torch.cat(columns, dim=1)

    def _signs(self, first: int, count: int) -> Tensor:
        indices = list(range(first, first + count))
        parts = direction(self._ids, self.seed, indices, self._sizes, "rademacher")
        return torch.cat(parts, dim=1).to(self.operator.dtype).T

    def _check_budget(self) -> None:
        """Refuse a budget that cannot hold the first block."""
        prepare = getattr(self.operator, "prepare", None)
        if not self.budget.limited or prepare is None:
            return
        count = self.block if self.basis is None else self.basis.next_products  # with warm vectors more than the block
        choice = prepare(count)
        unit = choice.gradients * choice.gradient_seconds * count * len(self.operator.batch_weights)
        if not self.budget.admits(unit):
            enough = _MARGIN * self.budget.least(unit)
            raise BudgetError(
                f"budget must fit one block of {count} products, got {self.budget.seconds:g} s; it takes about {unit:.2g} s "
                f"after {self.budget.elapsed:.2g} s of preparation; a budget of {time_text(enough)} is enough to begin",
                enough,
            )

    def _grow(self, basis: BlockLanczos) -> str:
        """Extend the basis to the nodes and the eigenvalues wanted."""
        while not self._found(basis) or basis.dimension < min(self.goals.nodes, self.size):
            reason = self._step(basis)
            if reason is not None:
                return reason
        return "targets met"

    def _step(self, basis: BlockLanczos) -> str | None:
        """One block more; a reason where none can follow."""
        first = not basis.dimension
        if not first:
            self._admit(3)  # this block, and two of fresh probes after it
        if self.multiplied + basis.next_products > self.goals.products:
            return "product limit"
        began = self.budget.elapsed
        going = basis.step()
        self._unit = max(self._unit, self.budget.elapsed - began)
        if basis.stop_reason == "nan":
            return "nan products"
        self._commit(first=first)
        if basis.steps == 2 or not going:
            self._check_symmetry(basis)
        self._report("eigenvalues")
        if going:
            return None
        return "complete" if basis.stop_reason == "complete" else "targets met"

    def _foreseen(self, first: float) -> float:
        """Seconds of a block, from the trial of its path: the first one also prepares the path, which took ``first`` in all."""
        choice = self.operator.choice
        if choice is None:
            return first
        batches = len(self.operator.batch_weights)
        return min(first, choice.gradients * choice.gradient_seconds * self.multiplied * batches)

    def _found(self, basis: BlockLanczos) -> bool:
        return basis.dimension > 0 and basis.settle(self.k, tolerance=self.goals.eigenvalues)

    def _refine(self, basis: BlockLanczos, *, deepen: bool) -> str:
        """Probe the complement of the basis until the trace is as narrow as wanted; deepen the basis where that is cheaper."""
        count = max(2, self.block)
        while True:
            estimate = self.trace_estimate()
            if self.complete or (len(self.fresh) >= _FIRST and self._narrow(estimate)):
                return "targets met"
            needed = self._needed(estimate)
            growth = min(basis.dimension, self.size - basis.dimension)
            if deepen and needed > growth and self._pays(basis, needed, growth) and self._has_room(basis, growth):
                goal = basis.dimension + growth
                self.fresh.restart()
                while basis.dimension < goal and not basis.done:
                    reason = self._step(basis)
                    if reason not in (None, "complete", "targets met"):
                        return str(reason)
                continue
            if self.multiplied + count > self.goals.products + (0 if len(self.fresh) else count):
                return "product limit"
            self._admit(1)
            began = self.budget.elapsed
            self._probe(basis, count)
            self._unit = max(self._unit, self.budget.elapsed - began)
            self._report("trace")

    def _needed(self, estimate: Estimate) -> int:
        """Further probes to the target by the spread of two blocks or more; 0 where it does not tell."""
        half = (self.goals.trace or 0.0) * abs(estimate.value)
        if len(self.fresh) < 2 * max(2, self.block) or not (math.isfinite(estimate.stderr) and half > 0):
            return 0
        return probes_needed(np.array(self.fresh.forms), half) - len(self.fresh)

    def _pays(self, basis: BlockLanczos, needed: int, growth: int) -> bool:
        """Whether more basis vectors save more probes than they cost, if each takes half as much variance as those before did.

        Also where as many probes as basis vectors were not enough: then both are doubled.
        """
        if len(self.fresh) >= basis.dimension or growth == self.size - basis.dimension:
            return True
        left = float(np.var(self.fresh.forms, ddof=1))
        taken = float(np.var(np.concatenate([self.plain()[0], self.fresh.whole]), ddof=1)) - left
        after = max(left - 0.5 * taken * growth / basis.dimension, 0.0)
        return needed * after / left + growth + len(self.fresh) < needed

    def _has_room(self, basis: BlockLanczos, growth: int) -> bool:
        room = basis.capacity if basis.capacity == self.size else basis.capacity - 2 * basis.next_products
        return not basis.done and basis.dimension + growth <= room

    def _narrow(self, estimate: Estimate) -> bool:
        if self.goals.trace is None:
            return True
        low, high = estimate.interval
        return bool((high - low) / 2 <= self.goals.trace * abs(estimate.value)) or not math.isfinite(estimate.value)

    def _probe(self, basis: BlockLanczos, count: int) -> None:
        signs = self._signs(FRESH + len(self.fresh.whole), count)
        left = basis.complement(signs)
        images, batches = self._product(left)
        forms = np.sum(layer_forms(left, images, self.operator.layers), axis=0)
        layers = layer_forms(signs, images, self.operator.layers)
        squares = torch.linalg.vector_norm(images, dim=0, dtype=torch.float64).square().cpu().numpy()
        whole = basis.whole_forms(signs, images, forms)
        new = self.fresh
        for index in range(count):
            new.forms.append(float(forms[index]))
            new.squares.append(float(squares[index]))
            new.whole.append(float(whole[index]))
            new.layers.append(layers[:, index])
            new.batches.append(batches[:, index])

    # ------------------------------------------------------------------ products

    def _product(self, vectors: Tensor) -> tuple[Tensor, Array]:
        """H V, and the forms of every batch ``[B, K]``."""
        operator, count = self.operator, vectors.shape[1]
        if len(operator.batch_weights) > 1:
            images, forms = operator.forms(vectors)
        else:
            images, forms = operator.matmat(vectors), np.zeros((1, count))
        self.multiplied += count
        return images, forms

    def _multiply(self, vectors: Tensor) -> Tensor:
        images, forms = self._product(vectors)
        self._pending = vectors, images, forms
        return images

    def _commit(self, *, first: bool) -> None:
        """Add the products of the last step to the sums over the basis."""
        assert self._pending is not None
        vectors, images, forms = self._pending
        self._pending = None
        if first:
            grams = layer_grams(vectors, images, self.operator.layers)
            self._first(grams)
            layers = np.trace(grams, axis1=1, axis2=2)
        else:
            layers = layer_forms(vectors, images, self.operator.layers).sum(axis=1)
        self.sums.layers += layers
        self.sums.batches += forms.sum(axis=1)
        self.sums.dimension += vectors.shape[1]  # a restart leaves more than the basis has

    def _first(self, grams: Array) -> None:
        """Forms of the starting vectors from Q_1' (H Q_1)_l by layer ``[L, r, r]`` and V = Q_1 R."""
        assert self.basis is not None
        factor = self.basis.start
        forms, squares = self.basis.start_forms()
        layers = np.einsum("rp,lrs,sp->lp", factor, grams, factor)[:, : self.probes]
        along = float(forms[self.probes, self.probes]) / self.size if self.has_gradient else math.nan
        self.started = Started(np.diag(forms)[: self.probes], squares[: self.probes], layers, along)

    def _admit(self, blocks: int) -> None:
        if not self.admits(blocks * self._unit):
            raise Deadline

    def admits(self, unit: float, blocks: int = 0) -> bool:
        """Whether a unit of ``unit`` seconds, and blocks after it, fit in the budget less the reserve, with a margin."""
        return self.budget.admits(_MARGIN * (unit + blocks * self._unit), self.reserve)

    @property
    def block_seconds(self) -> float:
        """Of the slowest block so far."""
        return self._unit

    def _check_symmetry(self, basis: BlockLanczos) -> None:
        choice = self.operator.choice
        limit = _INEXACT if choice is not None and choice.error else _ASYMMETRY
        if basis.asymmetry > limit:
            raise AsymmetricProductError(
                f"products must be those of a symmetric matrix, got Q'HQ with an asymmetry of {basis.asymmetry:.1g} of its norm; "
                "a custom backward of the model may be wrong (try torch.autograd.gradgradcheck), the loss may change between "
                "products (dropout, data that are shuffled), or float32 may be too coarse (dtype=torch.float64)"
            )

    def _report(self, stage: str) -> None:
        if self.progress is None or self.basis is None:
            return
        expected = max(self.goals.nodes, self.multiplied) + (2 * self.block if stage == "eigenvalues" else 0)
        elapsed = self.budget.elapsed
        fraction = min(1.0, max(self.multiplied / expected, elapsed / self.budget.seconds))
        remaining = min(elapsed * (1 - fraction) / fraction if fraction else math.nan, max(self.budget.remaining, 0.0))
        values = self.pairs("largest", 1).values
        top = float(values[0]) if len(values) else math.nan
        estimate = self.trace_estimate()
        trace = estimate if math.isfinite(estimate.value) else None
        self.progress(SpectrumProgress(self.name, stage, self.multiplied, fraction, elapsed, remaining, top, trace))

    # ------------------------------------------------------------------ what is known

    def pairs(self, which: str, count: int, *, vectors: bool = False) -> Eigenpairs:
        """Ritz pairs of one end, none before the first step."""
        assert self.basis is not None
        return self.basis.pairs(count, which, tolerance=self.goals.eigenvalues, vectors=vectors)  # type: ignore[arg-type]

    def plain(self) -> tuple[Array, Array]:
        """Forms v'Hv and ||Hv||^2 of the probes that started the basis ``[p]``; empty before the first step."""
        return (np.empty(0), np.empty(0)) if self.started is None else (self.started.forms, self.started.squares)

    @property
    def complete(self) -> bool:
        """Whether the basis spans the space: everything is exact."""
        return self.basis is not None and self.basis.stop_reason == "complete"

    @property
    def deflated(self) -> bool:
        """Whether the trace is estimated with the basis: always, once there are fresh probes.

        On a flat spectrum whole probes would vary less; taking the smaller of two errors makes it too small.
        """
        return self.complete or len(self.fresh) > 1

    def _whole(self) -> Estimate:
        return hutchinson(np.concatenate([self.plain()[0], self.fresh.whole]))

    def _deflated(self) -> Estimate:
        assert self.basis is not None
        return hutchinson(np.array(self.fresh.forms), self.basis.span_sums()[0])

    @property
    def rounding(self) -> float:
        """Uncertainty that products leave of a sum over the space: four units of ||H||_F, and what differences are off."""
        square = 0.0 if self.basis is None else self.basis.span_sums()[1]
        choice = self.operator.choice
        off = 0.0 if choice is None else choice.error or 0.0
        return (4 * torch.finfo(self.operator.dtype).eps + off) * math.sqrt(square)

    def trace_estimate(self) -> Estimate:
        """The trace, deflated by the basis where two fresh probes or more are there."""
        if self.basis is not None and self.complete:
            return known(self.basis.span_sums()[0], self.size, self.rounding)
        return widened(self._deflated() if self.deflated else self._whole(), self.rounding)


def known(value: float, count: int, rounding: float = 0.0) -> Estimate:
    """A number from the whole space, without another error than ``rounding``."""
    return widened(Estimate(value, 0.0, (value, value), count), rounding)
