"""The products of one operator in a spectral run, and what they tell: a Krylov basis, and probes of what it leaves."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastscape.curvature.soundness import AsymmetricProductError
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate, widened
from fastscape.numerics.krylov import BlockLanczos
from fastscape.numerics.trace import hutchinson, layer_forms, layer_grams
from fastscape.objective.objective import Objective
from fastscape.objective.sharding import whole
from fastscape.ops import direction, tensor_ids
from fastscape.probes.spectrum.state import Curvature, Fresh, Started, Sums
from fastscape.runs.evaluations import Evaluations

FRESH = 1 << 20  # index of the first probe of the complement: independent of all that start a basis
_ASYMMETRY = 1e-2  # of Q'HQ relative to the norm; float32 products have 1e-6 to 1e-4
_INEXACT = 0.3  # the same, for products by differences of gradients


class Multiplied:
    """Products of one operator, and all that is known from them.

    Args:
        objective, operator: the function, and its curvature.
        block: vectors per product.
        seed: of the random vectors.
        warm: vectors that start the basis as well ``[D, p]``.
        evaluations: loss and gradient are taken from; products are the operator's own.

    Attributes:
        basis: the Lanczos run; ``None`` before its first block was drawn.
        probes: number of random vectors among the starting ones, which come first.
        started, sums, fresh: see their classes; ``started`` is ``None`` before the first products.
        loss, accuracy, gradient_norm: at the weights.
        notes: flags in words.
        count: vectors multiplied for the estimates, without trials of paths.
        beside: vectors that others multiplied by the same operator.
    """

    def __init__(
        self,
        objective: Objective,
        operator: Curvature,
        *,
        block: int,
        seed: int,
        warm: Tensor | None,
        evaluations: Evaluations | None = None,
    ) -> None:
        self.objective, self.operator, self.block, self.seed, self.warm = objective, operator, block, seed, warm
        self.evaluations = evaluations or Evaluations()
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
        self.count = self.beside = 0
        self._pending: tuple[Tensor, Tensor, Array] | None = None

    # ------------------------------------------------------------------ products

    def begin(self, wanted: int, capacity: int) -> BlockLanczos:
        """Draw the first block of a basis for ``wanted`` eigenvalues at the upper end."""
        loss, self.accuracy = self.objective.evaluate_once()
        self.loss = self.evaluations.same_loss(loss)
        start = self._start()
        self.basis = BlockLanczos(
            self._multiply,
            start,
            wanted=wanted,
            capacity=max(capacity, 2 * wanted + 3 * start.shape[1]),
            copies=self.probes,
            seed=self.seed,
        )
        return self.basis

    def extend(self, basis: BlockLanczos) -> bool:
        """Multiply one block more; whether another can follow."""
        first = not basis.dimension
        going = basis.step()
        if basis.stop_reason == "nan":
            return False
        self._commit(first=first)
        if basis.steps == 2 or not going:
            self._check_symmetry(basis)
        return going

    def _start(self) -> Tensor:
        """Signs, the gradient and earlier eigenvectors, ``[D, p]``, all of norm sqrt(D)."""
        self.probes = min(max(1, self.block - 1), self.size)
        columns = [self._signs(0, self.probes)]
        gradient = self.evaluations.taken("gradient", (), self._gradient)["gradient"]  # before graphs are kept
        gradient = gradient.to(self.operator.device).double()
        prepare = getattr(self.operator, "prepare", None)
        if prepare is not None:  # which tells the dtype
            prepare(self.probes + 1 + (0 if self.warm is None else self.warm.shape[1]))
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

    def _gradient(self) -> dict[str, Tensor]:
        return {"gradient": torch.cat([whole(part).flatten() for part in self.objective.gradient().values()])}

    def _signs(self, first: int, count: int) -> Tensor:
        indices = list(range(first, first + count))
        parts = direction(self._ids, self.seed, indices, self._sizes, "rademacher")
        return torch.cat(parts, dim=1).to(self.operator.dtype).T

    def probe(self, basis: BlockLanczos, count: int) -> None:
        """Multiply ``count`` fresh probes of the complement."""
        first = FRESH + len(self.fresh.whole)
        signs = self._signs(first, count)
        left = basis.krylov.complement(signs)

        def numbers(images: Tensor, batches: Array) -> dict[str, Array]:
            forms = np.sum(layer_forms(left, images, self.operator.layers), axis=0)
            return {
                "forms": forms,
                "batches": batches,
                "layers": layer_forms(signs, images, self.operator.layers),
                "squares": torch.linalg.vector_norm(images, dim=0, dtype=torch.float64).square().cpu().numpy(),
                "whole": basis.krylov.whole_forms(signs, images, forms),
            }

        reduced = getattr(self.operator, "reduced", None)
        found = numbers(*self._product(left)) if reduced is None else reduced(left, numbers, (self.seed, first))
        self.count += 0 if reduced is None else count
        new = self.fresh
        for index in range(count):
            new.forms.append(float(found["forms"][index]))
            new.squares.append(float(found["squares"][index]))
            new.whole.append(float(found["whole"][index]))
            new.layers.append(found["layers"][:, index])
            new.batches.append(found["batches"][:, index])

    def _product(self, vectors: Tensor) -> tuple[Tensor, Array]:
        """H V, and the forms of every batch ``[B, K]``."""
        operator, count = self.operator, vectors.shape[1]
        if len(operator.batch_weights) > 1:
            images, forms = operator.forms(vectors)
        else:
            images, forms = operator.matmat(vectors), np.zeros((1, count))
        self.count += count
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
        factor = self.basis.krylov.start
        forms, squares = self.basis.krylov.start_forms()
        layers = np.einsum("rp,lrs,sp->lp", factor, grams, factor)[:, : self.probes]
        along = float(forms[self.probes, self.probes]) / self.size if self.has_gradient else math.nan
        self.started = Started(np.diag(forms)[: self.probes], squares[: self.probes], layers, along)

    def _check_symmetry(self, basis: BlockLanczos) -> None:
        choice = self.operator.choice
        limit = _INEXACT if choice is not None and choice.error else _ASYMMETRY
        asymmetry = basis.krylov.asymmetry
        if asymmetry > limit:
            raise AsymmetricProductError(
                f"products must be those of a symmetric matrix, got Q'HQ with an asymmetry of {asymmetry:.1g} of its norm; "
                "a custom backward of the model may be wrong (try torch.autograd.gradgradcheck), the loss may change between "
                "products (dropout, data that are shuffled), or float32 may be too coarse (dtype=torch.float64)"
            )

    # ------------------------------------------------------------------ what is known

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
        return hutchinson(np.array(self.fresh.forms), self.basis.krylov.span_sums()[0])

    @property
    def rounding(self) -> float:
        """Uncertainty that products leave of a sum over the space: four units of ||H||_F, and what differences are off."""
        square = 0.0 if self.basis is None else self.basis.krylov.span_sums()[1]
        choice = self.operator.choice
        off = 0.0 if choice is None else choice.error or 0.0
        return (4 * torch.finfo(self.operator.dtype).eps + off) * math.sqrt(square)

    def trace_estimate(self) -> Estimate:
        """The trace, deflated by the basis where two fresh probes or more are there."""
        if self.basis is not None and self.complete:
            return certain(self.basis.krylov.span_sums()[0], self.size, self.rounding)
        return widened(self._deflated() if self.deflated else self._whole(), self.rounding)


def certain(value: float, count: int, rounding: float = 0.0) -> Estimate:
    """A number from the whole space, without another error than ``rounding``."""
    return widened(Estimate(value, 0.0, (value, value), count), rounding)
