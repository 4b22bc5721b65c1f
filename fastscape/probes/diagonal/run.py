"""Work of the diagonal in blocks of products, and its result at any time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscape._checks import counted
from fastscape._clock import now
from fastscape.curvature.operator import CurvatureOperator
from fastscape.numerics.arrays import Array
from fastscape.numerics.diagonal import Means, Residuals, projected, together, xdiag
from fastscape.numerics.gram_schmidt import combine, orthonormalise
from fastscape.objective.batches import available_memory
from fastscape.objective.objective import Objective
from fastscape.ops import block_gram, block_update, direction, tensor_ids
from fastscape.runs.anytime import Anytime
from fastscape.runs.budget import Budget
from fastscape.runs.evaluations import Evaluations
from fastscape.runs.progress import Progress, reporter

BLOCK = 4  # probes of a block
_MARGIN = 1.25  # how much longer than the last block the next may take
_MOST = 256  # rows of a basis: D n^2 multiplications for the errors
_VECTORS = 3  # for a row: of the basis, its product, and the signs again at the end
_SUMS = 4  # vectors in float64 beside the basis
_SETTLED = 2 * BLOCK  # probes of which a complete basis leaves rounding, after which no others tell more


@dataclass(frozen=True)
class Goals:
    """Request of the user; see :func:`fastscape.diagonal`."""

    products: int | None
    estimator: str
    operator: str
    seed: int
    memory: int | None


class DiagonalRun:
    """One run; its attributes hold what is known, whatever ends it."""

    def __init__(
        self, objective: Objective, operator: CurvatureOperator, goals: Goals, budget: Budget, evaluations: Evaluations
    ) -> None:
        self.objective, self.operator, self.goals, self.evaluations = objective, operator, goals, evaluations
        self.work = Anytime(budget, margin=_MARGIN, evaluations=evaluations)
        self.size, self.layers = operator.shape[0], list(operator.layers.values())
        self.loss, self.products, self.drawn = math.nan, 0, 0
        self.notes: list[str] = []
        self.captured = False
        known = tensor_ids(name for name, _ in objective.model.named_parameters())
        self._ids = [known[name] for name in objective.names]
        self._sizes = [tensor.numel() for tensor in objective.base.values()]

    def run(self, name: str, progress: Callable[[Progress], None] | None) -> None:
        """Multiply until the goals or the budget end it; :attr:`work` has the reason."""
        report = reporter(progress)
        with self.work.ends(lambda: self.products, errors=lambda _: self.products):
            self.loss = self.evaluations.same_loss(self.objective.evaluate_once()[0])
            choice = self.operator.prepare(BLOCK)
            self._begin()
            first = choice.gradients * choice.gradient_seconds * 2 * BLOCK * len(self.operator.batch_weights)
            for width in self.work.stream(self._widths(), first, "block of products"):
                if not self._block(width):
                    self.work.reason = "nan products"
                    self.notes.append("a product holds NaN or inf, which ends the run")
                    break
                if report is not None:
                    goal = self.goals.products
                    share = self.products / goal if goal else 0.0
                    told: dict[str, Any] = {"unit": "product", "done": self.products, "total": goal}
                    report(Progress.under(self.work.budget, name, min(share, 1.0), **told))

    # ------------------------------------------------------------------ products

    def _begin(self) -> None:
        """Room for what is to be multiplied."""
        dtype, device = self.operator.dtype, self.operator.device
        rows = self._capacity()
        self.basis, self.images = (torch.empty(rows, self.size, dtype=dtype, device=device) for _ in range(2))
        self.factor = np.zeros((rows, rows))
        self.inside = self.dimension = 0  # probes whose products span the basis; rows of it
        self.closed = rows < 2
        self.outside = Residuals(self.size, self.layers, torch.device(device))
        self.squares = torch.zeros(self.size, dtype=torch.float64, device=device)  # of the rows of A, summed over probes
        self.exact = torch.full((self.size,), torch.nan, dtype=torch.float64, device=device)
        self._scale, self._settled = 0.0, 0
        self._pending: tuple[Tensor, Tensor] | None = None

    def _capacity(self) -> int:
        """Rows of the basis by memory and products; 0 for none."""
        if self.goals.estimator != "xdiag":
            return 0
        row = self.size * torch.finfo(self.operator.dtype).bits // 8
        most = min(_MOST, self.size, (self.goals.products or 2 * _MOST) // 2)

        def fitting() -> dict[str, Any]:
            memory = self.goals.memory
            room = (available_memory(self.operator.device) // 4 if memory is None else memory) - 8 * _SUMS * self.size
            return {"rows": max(0, min(most, room // (_VECTORS * row)))}

        rows = int(self.evaluations.taken("capacity", (most, self.goals.memory), fitting, always=True)["rows"])
        if rows < min(most, 2 * BLOCK):
            self.notes.append(f"memory holds {counted(rows, 'vector')} of a basis: Hutchinson's estimator beside it")
        return rows

    def _widths(self) -> Iterator[int]:
        """Probes of each block."""
        while True:
            left = math.inf if self.goals.products is None else self.goals.products - self.products
            if self.goals.estimator == "exact":
                left = self.size - self.products
            elif not self.closed and self.dimension == len(self.basis):
                self.closed, self.captured = True, self.dimension == self.size
            alone = self.closed or self.goals.estimator == "exact"
            width = int(min(BLOCK, left if alone else min(left // 2, len(self.basis) - self.dimension)))
            if width < 1 or self._settled >= _SETTLED:
                return
            yield width

    def _block(self, width: int) -> bool:
        """One block; false where products hold NaN or inf."""
        if self.goals.estimator == "exact":
            return self._columns(width)
        signs = torch.cat(self._signs(range(self.drawn, self.drawn + width)), dim=1)
        images = self._multiplied(signs)
        if images is None:
            return False
        self.drawn += width
        for image in images:
            self.squares += image.double().square()
        if self.closed:
            self._outside(signs, images)
            return True
        self._pending = signs, images
        began = now()
        split = orthonormalise(images, self.basis[: self.dimension], scale=self._scale)
        new = len(split.rows)
        then = self.dimension + new + width  # after the next block, when the errors take as long as all blocks did
        self.work.reserve = (now() - began) * then**2 / ((then - width) * width) if then > width else 0.0
        products = self._multiplied(split.rows) if new else split.rows
        if products is None:
            return False
        old, end = self.dimension, self.dimension + new
        self.basis[old:end], self.images[old:end] = split.rows, products
        self._scale, self._pending, self.dimension = split.scale, None, end
        if new == width:
            self.factor[:old, old:end], self.factor[old:end, old:end] = split.against, split.within
            self.inside = end
        else:
            self.closed = self.captured = True  # the range of A, to rounding: what others see is no more than that
        return True

    def _columns(self, width: int) -> bool:
        """Columns of A."""
        rows = torch.zeros(width, self.size, dtype=self.operator.dtype, device=self.operator.device)
        first = self.products
        rows[range(width), range(first, first + width)] = 1.0
        images = self._multiplied(rows)
        if images is None:
            return False
        for index, image in enumerate(images, first):
            self.exact[index] = image[index].double()
            self.squares[index] = image.double().square().sum()
        return True

    def _multiplied(self, rows: Tensor) -> Tensor | None:
        found = self.operator.rows(rows)
        self.products += len(rows)
        return found if bool(torch.isfinite(found).all()) else None

    def _outside(self, signs: Tensor, images: Tensor) -> None:
        """Probes of what the basis leaves."""
        basis = self.basis[: self.dimension]
        rest = images
        for _ in range(2 if len(basis) else 0):  # the second pass takes the rounding of the first
            rest, squares = block_update(rest, basis, block_gram(basis, rest))
        self.outside.add(signs, rest)
        if self.captured and len(basis):
            floor = 32 * torch.finfo(rest.dtype).eps * self._scale
            self._settled = self._settled + len(signs) if float(squares.max()) <= floor**2 else 0

    def _signs(self, probes: range) -> list[Tensor]:
        return [self._layer_signs(number, probes) for number in range(len(self._ids))]

    def _layer_signs(self, number: int, probes: range) -> Tensor:
        ids = torch.tensor(self._ids[number : number + 1], device=self.operator.device)
        drawn = direction(ids, self.goals.seed, list(probes), self._sizes[number : number + 1], "rademacher")
        return drawn[0].to(self.operator.dtype)

    # ------------------------------------------------------------------ what is known

    def means(self) -> Means | None:
        """Estimates from what was multiplied; ``None`` where it tells nothing."""
        found = self.work.analysed(self._means, None) if self.products else None
        if found is None and self.work.error is not None:
            found = self.work.analysed(self._plain, None)
        return found

    def _means(self) -> Means | None:
        if self.goals.estimator == "exact":
            return self._known()
        if self._pending is not None:
            signs, images = self._pending
            self._outside(signs, images)
            self._pending = None
        basis, images = self.basis[: self.dimension], self.images[: self.dimension]
        n = self.inside
        outside = self.outside.means(projected(basis, images)) if self.outside.count else None
        if n < 2 or (self.captured and self.outside.count > 1):
            return outside
        inside = xdiag(
            basis[:n], images[:n], self.factor[:n, :n], self.layers, lambda number: self._layer_signs(number, range(n))
        )
        return inside if outside is None or outside.count < 2 else together(inside, outside)

    def _plain(self) -> Means | None:
        """Hutchinson's estimator, which takes little memory, where the other fails."""
        found, self.dimension, n = Residuals(self.size, self.layers, self.basis.device), 0, self.inside
        for probe in range(n):
            signs = torch.cat(self._signs(range(probe, probe + 1)), dim=1)
            found.add(signs, combine(self.basis[:n], self.factor[:n, probe : probe + 1])[0])
        return found.means(torch.zeros_like(self.squares)) if n else None

    def _known(self) -> Means:
        """Elements that were multiplied out; of sums, those that are complete."""
        values: Array = self.exact.cpu().numpy()
        sums = np.array([values[part].sum() for part in self.layers])
        zero = np.zeros(len(sums) + 1)
        variances = np.where(np.isnan(values), math.nan, 0.0)
        return Means(values, variances, np.append(sums, sums.sum()), zero, zero + 1.0, self.products, "exact")
