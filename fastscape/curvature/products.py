"""Products of an objective's curvature matrix with blocks of vectors, over all batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastscape._clock import now
from fastscape._deadline import check_deadline
from fastscape._heap import fit, roomy
from fastscape.curvature.choice import Candidate, ProductChoice
from fastscape.curvature.paths import Matrix, PathName
from fastscape.curvature.plan import Plan
from fastscape.curvature.program import Parts
from fastscape.curvature.selection import Selection, block_key
from fastscape.curvature.sketch import synchronise
from fastscape.curvature.workspace import SLOW, Workspace
from fastscape.evaluation.points import Array
from fastscape.objective.objective import Objective

Take = Callable[[int, int, Parts, Parts], None]  # batch, first vector of the block, vectors, their products
REPLAY_AFTER = 500.0  # gradients' worth of products after which linearising, of 20 to 500, may pay


class Products:
    """Multiply blocks of rows with the curvature of an objective at the weights it has when this is made.

    Args:
        objective: the loss.
        matrix: ``"hessian"`` or ``"ggn"``.
        path: a path by name, or ``None`` to try them.
        memory: bytes that a computation may hold beside the vectors and their products.
        compile_: also try the graph compiled.

    Attributes:
        space: the loss on a private copy, with arithmetic and memory.
        selection: the paths.
        nan_products: vectors so far with NaN or inf in the product.
        impatient: whether what takes long to set up is tried after long use.
    """

    impatient = True

    def __init__(
        self, objective: Objective, matrix: Matrix, path: PathName | None, memory: int | None, *, compile_: bool = False
    ) -> None:
        self.objective = objective
        self.space = Workspace(objective, memory)
        self.selection = Selection(self.space, matrix, path, memory, compile_=compile_)
        self.nan_products = self._multiplied = 0

    @property
    def products(self) -> int:
        """Vectors multiplied so far, trials included."""
        return self._multiplied + self.selection.products

    def prepare(self, count: int, rows: Tensor | None = None, *, thorough: bool = False) -> ProductChoice:
        """See :meth:`Selection.prepare`."""
        return self.selection.prepare(count, rows, thorough=thorough)

    def obey(self, key: int, plan: Plan) -> None:
        """Multiply blocks of ``key`` vectors as was chosen before, without trying anything."""
        plan.obeyed(self.space, self.selection, key)

    def release(self) -> None:
        """Free what is kept of batches."""
        self.selection.release()

    def multiply(self, rows: Tensor) -> Tensor:
        """Products ``[K, D]`` of rows ``[K, D]``, in the dtype of products."""
        with self.space.heap(kept=True):
            self.prepare(len(rows), rows)
            beside = self._beside(len(rows), len(rows))
            rows = rows.to(self.space.work)
            out = torch.empty_like(rows, memory_format=torch.contiguous_format)
            self._multiply(rows, out, None, beside)
            return out.to(self.space.dtype)

    def forms(self, rows: Tensor, *, keep: bool) -> tuple[Tensor | None, Array]:
        """v'H_b v of rows ``[K, D]`` with every batch's own matrix, ``[batches, K]``, and the products if they are to be kept."""
        with self.space.heap(kept=True):
            self.prepare(len(rows), rows)
            beside = self._beside(len(rows), len(rows) if keep else 0)
            rows = rows.to(self.space.work)
            out = torch.empty_like(rows, memory_format=torch.contiguous_format) if keep else None
            forms = np.zeros((len(self.objective.batches), len(rows)))
            self._multiply(rows, out, forms, beside)
            return None if out is None else out.to(self.space.dtype), forms

    def _beside(self, count: int, kept: int) -> tuple[int, float]:
        """Vectors at a time, and bytes for a computation, beside all products that a call keeps; paths are chosen for eight.

        Raises:
            ValueError: memory does not hold them, with what is enough.
        """
        key, space = block_key(count), self.space
        candidate, chunk = self.selection.chosen[key], self.selection.choices[key].chunk
        if space.cap.memory is None:
            return chunk, space.limit
        vector = space.program.layout.size * torch.finfo(space.work).bits // 8
        room = space.limit - kept * vector
        if kept > key:
            space.hold(kept, candidate.peak)
            chunk = min(chunk, 1 + int((room - candidate.peak) / candidate.slope)) if candidate.slope else chunk
        chunk = max(1, chunk)
        batches = len(space.program.weights) if candidate.path.held else 1
        alive = min(room, candidate.held * (batches - 1) + candidate.peak + (chunk - 1) * candidate.slope)
        space.keeping = roomy(space.cap.room() - room + alive, space.cap.room())
        return chunk, room

    def _multiply(self, rows: Tensor, out: Tensor | None, forms: Array | None, beside: tuple[int, float]) -> None:
        self.prepare(len(rows), rows)
        candidate = self.selection.chosen[block_key(len(rows))]
        with self.space.arithmetic(draws=len(candidate.built) < len(self.space.program.weights)):
            start = now()
            self._over_batches(candidate, *beside, rows, self._sums(out, forms))
            synchronise(rows)
            seconds = now() - start
        self._spend(len(rows), seconds)
        self._count(len(rows), out, forms)

    def _count(self, vectors: int, out: Tensor | None, forms: Array | None) -> None:
        self._multiplied += vectors
        if out is not None and not math.isfinite(float(out.sum())):
            self.nan_products += int((~out.sum(1).isfinite()).sum())
        elif forms is not None:
            self.nan_products += int((~np.isfinite(forms).all(0)).sum())

    def _sums(self, out: Tensor | None, forms: Array | None) -> Take:
        """Add weighted products to ``out``, and forms to those of their batch, where they are wanted."""
        program = self.space.opened()
        shares = self.objective.samples / np.array(self.objective.batch_weights)

        def take(batch: int, start: int, vectors: Parts, found: Parts) -> None:
            stop, weight = start + len(vectors[0]), program.weights[batch]
            if out is not None:
                program.layout.gather(out[start:stop], found, weight, first=batch == 0)
            if forms is not None:
                whole = program.whole[batch]
                forms[whole, start:stop] += weight * shares[whole] * forms_of(vectors, found)

        return take

    def _over_batches(self, candidate: Candidate, chunk: int, room: float, rows: Tensor, take: Take) -> None:
        """Multiply with every batch, ``chunk`` vectors at a time; ``take(batch, first vector, vectors, products)``.

        Graphs are kept as far as ``room`` bytes hold them.
        """
        program = self.space.opened()
        for batch in range(len(program.weights)):
            product = candidate.built.get(batch)
            if product is None:
                product = candidate.path.build(batch)
                if candidate.path.held and self._fits(candidate, len(candidate.built) + 1, room):
                    candidate.built[batch] = product
            for start in range(0, len(rows), chunk):
                check_deadline()
                fit()
                vectors = program.layout.views(rows[start : start + chunk].contiguous())
                take(batch, start, vectors, product(vectors))
            del product

    def _fits(self, candidate: Candidate, batches: int, room: float) -> bool:
        return candidate.held * batches + (candidate.peak - candidate.held) <= room

    def _spend(self, count: int, seconds: float) -> None:
        """Try what takes long to set up once the products so far have cost as much as it may."""
        key, selection, gradient = block_key(count), self.selection, self.space.gradient_seconds
        selection.spent[key] += seconds
        patient = not self.impatient or key in selection.thorough or gradient > SLOW
        if not patient and selection.spent[key] > REPLAY_AFTER * len(self.space.program.weights) * gradient:
            self.prepare(key, thorough=True)


def forms_of(vectors: Sequence[Tensor], products: Sequence[Tensor]) -> Array:
    """V'Hv of a block ``[K]``, in float64."""
    total = sum((v * p).reshape(len(v), -1).sum(1, dtype=torch.float64) for v, p in zip(vectors, products, strict=True))
    found: Array = total.cpu().numpy()  # type: ignore[union-attr]
    return found
