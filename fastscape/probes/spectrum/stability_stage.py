"""Stability of an optimizer within a spectral run: between its eigenvalues and its trace, from the run's time and memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastscape._clock import now
from fastscape.numerics.krylov import least_capacity
from fastscape.numerics.spectra import Stability
from fastscape.objective.batches import available_memory
from fastscape.objective.objective import Objective
from fastscape.probes.spectrum.assembly import with_note
from fastscape.probes.spectrum.recursions import Recursion
from fastscape.probes.spectrum.result import SpectrumResult
from fastscape.probes.spectrum.run import SpectralRun
from fastscape.probes.spectrum.stability import Products, Top, largest, stability
from fastscape.probes.spectrum.state import Curvature

_SINGLE = {"graph, batched": "graph", "replay": "graph", "channels-last": "graph"}  # for one product, with little set-up
_SHARE, _BATCHES = 0.3, 0.1  # of the time: for an eigenvalue of P^-1 H, which takes 20 to 100 products; for batches alone
_MOST = 400  # products to that eigenvalue


def least_rows(size: int, moves: Recursion, block: int) -> int:
    """Rows of the smallest basis that the stability needs beside the run's; none where its eigenvalue is enough."""
    return least_capacity(size, 1, min(block, size), "largest") if _own_eigenvalue(moves) else 0


def _own_eigenvalue(moves: Recursion) -> bool:
    return moves.preconditioner is not None or isinstance(moves.weight_decay, Tensor)


class StabilityStage:
    """The stability of one recursion, measured in the middle of a run.

    Args:
        run: of the spectrum; its reserve is set here.
        moves: the optimizer's recursion.
        make: operator of an objective by the path of a name.
        memory: bytes that the run's basis and the stability's may take together.
    """

    def __init__(
        self, run: SpectralRun, moves: Recursion, make: Callable[[Objective, str | None], Curvature], *, memory: int | None
    ) -> None:
        self.run, self.moves, self.make, self.memory = run, moves, make, memory
        self.products = 0
        self.found: Stability | None = None
        self._slowest = 0.0  # seconds of a block of this stage
        self._share = 0.0  # seconds
        if run.work.budget.limited:
            share = _SHARE if _own_eigenvalue(moves) else _BATCHES if len(run.known.objective.batches) > 1 else 0.0
            self._share = run.work.reserve = share * max(run.work.budget.remaining, 0.0)

    def measure(self) -> None:
        """Multiply, as long as two blocks for the trace still fit after it, and within its share in any case."""
        run, began = self.run, self.run.work.budget.elapsed

        def stop() -> bool:
            unit = self._slowest or run.work.unit
            shared = run.work.budget.elapsed - began + unit <= self._share
            return not run.work.fits(unit if shared else unit + 2 * run.work.unit)

        self.found = self._stability(stop)

    def added(self, result: SpectrumResult) -> SpectrumResult:
        """The result with the stability, of which an interrupted run has what takes no products."""
        words = result.meta | {"stability_products": self.products}
        result = dataclasses.replace(result, products=result.products + self.products, meta=words)
        found = self.found
        if found is None:
            if result.meta["stop_reason"] == "nan products" or not len(result.eigenvalues):
                return result
            found = self._stability(lambda: True)
        result = dataclasses.replace(result, stability=found)
        if not found.reason:
            return result
        bound = f", at least {found.at_least:.3g}" if math.isfinite(found.at_least) else ""
        return with_note(result, f"no stability ratio of the optimizer{bound}: {found.reason}")

    def _stability(self, stop: Callable[[], bool]) -> Stability:
        run, choice = self.run, self.run.known.operator.choice
        pairs = run.pairs("largest", 1)
        single = "graph" if choice is None else _SINGLE.get(choice.name, choice.name)

        def top(matrix: Products) -> Top:
            return largest(
                matrix,
                tolerance=run.goals.eigenvalues,
                max_products=_MOST,
                seed=run.known.seed,
                block=run.known.block,
                memory=self._room(),
                stop=stop,
            )

        return stability(
            run.known.objective,
            self.moves,
            lambda of: _Counted(self.make(of, single), self),
            top,
            whole=_Counted(run.known.operator, self),
            raw=Top(float(pairs.values[0]), float(pairs.residuals[0])) if len(pairs.values) else Top(math.nan, math.nan),
            stop=stop,
            once=self._once,
        )

    def _once(self, index: int, make: Callable[[], float]) -> float:
        """The number of a batch, with the products that it took."""
        before = self.products

        def value() -> dict[str, float]:
            return {"value": make(), "products": self.products - before}

        found = self.run.known.evaluations.taken("batch sharpness", (index, self.moves.weight_decay), value)
        self.products = before + int(found["products"])
        return float(found["value"])

    def _room(self) -> int:
        """Bytes for the basis: what the run's leaves."""
        request = (self.memory, self.run.capacity)
        found = self.run.known.evaluations.taken("room", request, lambda: {"bytes": self._left()}, always=True)
        return int(found["bytes"])

    def _left(self) -> int:
        operator = self.run.known.operator
        row = operator.shape[0] * torch.finfo(operator.dtype).bits // 8
        least = least_rows(operator.shape[0], self.moves, self.run.known.block) * row
        if self.memory is None:
            return max(available_memory(operator.device) // 4, least)
        return max(self.memory - self.run.capacity * row, least)

    def count(self, operator: Curvature, vectors: int, seconds: float) -> None:
        """Products that were made."""
        self.products += vectors
        self._slowest = max(self._slowest, seconds)
        if operator is self.run.known.operator:
            self.run.known.beside += vectors


class _Counted:
    """Products of an operator, reported to the stage."""

    def __init__(self, operator: Curvature, stage: StabilityStage) -> None:
        self.operator, self.stage = operator, stage
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device

    def matmat(self, vectors: Tensor, /) -> Tensor:
        """H V."""
        evaluations = self.stage.run.known.evaluations
        began = now() + evaluations.seconds
        found = self.operator.matmat(vectors)
        if found.device.type == "cuda":
            torch.cuda.synchronize(found.device)
        self.stage.count(self.operator, vectors.shape[1], now() + evaluations.seconds - began)
        return found
