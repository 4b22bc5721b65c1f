r"""The block Lanczos factorisation :math:`HQ = Q T + F C`: the basis Q, the pending block F, and all numbers they give.

The whole projected matrix T is kept, as the products gave it, and its symmetric part is diagonalised; the residual of a Ritz
pair :math:`y = Qs` is :math:`\|Cs\|`. What rounding adds is measured by the antisymmetric part of T, also for products in half
precision, and is never below a few units in the last place of ||H|| (:func:`~fastscape.numerics.gram_schmidt.ritz_rounding`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape.numerics.arrays import Array
from fastscape.numerics.gram_schmidt import combine, gram, orthonormalise, ritz_rounding
from fastscape.ops import block_gram, block_update

_EXPONENT = 256  # of two, of the first products, beyond which products are scaled
_COLUMNS = 1 << 16  # of a basis that is rotated in place: pieces of 100 rows are 50 MiB in float64


@dataclass(frozen=True)
class Quadrature:
    r"""Gauss quadrature of the starting vectors' spectral measures.

    :math:`v_p^\top f(H) v_p / \|v_p\|^2 \approx \sum_j w_{pj} f(\theta_j)`, exact
    for polynomials of degree 2 s - 1 after s block steps.

    Attributes:
        nodes: ``[M]``, ascending.
        weights: ``[P, M]``, rows sum to one.
    """

    nodes: Array
    weights: Array


class Factorisation:
    """Q, T, F and C of a symmetric matrix, as blocks are multiplied, appended and rotated away; multiplies nothing itself.

    Args:
        rows: memory of the basis ``[capacity, D]``.
        first: orthonormal rows of the first block ``[r, D]``.
        start: the starting vectors in them, ``[r, p]``: V = Q_1 R.
        device: of what comes and goes; the basis may live elsewhere.

    Attributes:
        done: rows that have been multiplied: the number of Ritz values; ``pending`` rows of F follow them.
        unit: power of two that the products are divided by; 0 before it is known.
        rotating: whether the rows are being replaced, or an interruption left them half replaced.
    """

    def __init__(self, rows: Tensor, first: Tensor, start: Array, device: torch.device) -> None:
        self._rows, self.device, self.home = rows, device, rows.device
        self._rows[: len(first)] = first
        self._matrix = np.zeros((len(rows), len(rows)))  # T, and C in the rows below
        self._lost = np.zeros(len(rows))
        self.start, self._norms = start, np.linalg.norm(start, axis=0)
        self.done, self.pending, self._near, self._scale, self._norm = 0, len(first), 0, 0.0, 0.0
        self.unit = 0.0
        self.rotating = False
        self._frozen: Quadrature | None = None
        self._ritz: tuple[Array, Array, Array] | None = None

    # ------------------------------------------------------------------ rows

    @property
    def size(self) -> int:
        """D."""
        return self._rows.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the basis."""
        return self._rows.dtype

    @property
    def basis(self) -> Tensor:
        """Orthonormal rows ``[m, D]`` of the multiplied vectors."""
        return self._rows[: self.done]

    @property
    def block(self) -> Tensor:
        """The pending rows ``[b, D]``, which are multiplied next."""
        return self._rows[self.done : self.done + self.pending]

    @property
    def whole(self) -> Tensor:
        """The multiplied rows and the pending ones."""
        return self._rows[: self.done + self.pending]

    def local(self, vectors: Tensor) -> Tensor:
        """Columns ``[D, n]`` as contiguous rows beside the basis, in its dtype."""
        return vectors.T.to(self.home, self.dtype).contiguous()

    def append(self, rows: Tensor) -> None:
        """Add orthonormal rows to the pending block, which nothing that was multiplied couples to."""
        end = self.done + self.pending
        self._rows[end : end + len(rows)] = rows
        self._matrix[end : end + len(rows), :end] = 0.0
        self.pending += len(rows)

    def extend(self, image: Tensor) -> int:
        """Take the products of the pending block into T, and what is left of them as the next block; returns its width.

        Raises:
            NonFiniteRowsError: products with NaN or inf; nothing has changed.
        """
        image = self._scaled(image).contiguous()
        old, size = self.done, self.done + len(image)
        split = orthonormalise(image, self._rows[:size], near=min(self._near, old), scale=self._scale)
        rows, within = split.rows, split.within
        if size + len(rows) > self.size:  # more directions than the space has left: rounding
            rows, within = rows[: self.size - size], within[: self.size - size]
        width = len(rows)
        self._rows[size : size + width] = rows
        self._matrix[: size + width, old:size] = 0.0
        self._matrix[:size, old:size] = split.against
        self._matrix[size : size + width, old:size] = within
        self._lost[old:size] = split.lost
        self._near, self._scale = old, split.scale
        self.done, self.pending, self._ritz = size, width, None
        return width

    def _scaled(self, image: Tensor) -> Tensor:
        """Products divided by a power of two, which is exact, where squares of float64 would leave its range."""
        if not self.unit:
            exponent = math.frexp(float(image.abs().max()))[1]
            self.unit = 2.0 ** min(max(exponent, -1000), 1000) if abs(exponent) > _EXPONENT else 1.0
        return image if self.unit == 1 else image / self.unit

    def compress(self, chosen: NDArray[np.int64]) -> None:
        """Keep the chosen Ritz vectors in place of the multiplied rows, and the pending block, which all of them couple to."""
        if self._frozen is None:
            self._frozen = self.quadrature()
        m, width = self.done, self.pending
        turn = self.ritz()[1][:, chosen]
        image = self._matrix[:m, :m] @ turn
        kept = turn.T @ image
        coupling = self._matrix[m : m + width, :m] @ turn
        lost = np.linalg.norm(image - turn @ kept, axis=0) + self._lost[:m] @ np.abs(turn)
        self.rotating = True
        _rotate(self._rows, m, width, turn)
        size = len(chosen)
        self._matrix[:] = 0.0
        self._matrix[:size, :size] = kept
        self._matrix[size : size + width, :size] = coupling
        self._lost[:] = 0.0
        self._lost[:size] = lost
        self.done, self._near, self._ritz, self.rotating = size, 0, None, False

    # ------------------------------------------------------------------ numbers

    @property
    def projected(self) -> Array:
        """T = Q'HQ ``[m, m]``, symmetric part."""
        result: Array = self._symmetric() * self.unit
        return result

    def _symmetric(self) -> Array:
        square = self._matrix[: self.done, : self.done]
        result: Array = (square + square.T) / 2
        return result

    def ritz(self) -> tuple[Array, Array, Array]:
        """Ritz values ascending, their coefficients, and residual norms, the values and norms in units of :attr:`unit`."""
        if self._ritz is None:
            m = self.done
            theta, vectors = np.linalg.eigh(self._symmetric())
            self._norm = max(self._norm, float(np.abs(theta).max(initial=0.0)))
            coupling = self._matrix[m : m + self.pending, :m]
            squares = np.sum((coupling @ vectors) ** 2, axis=0) + (self._lost[:m] @ np.abs(vectors)) ** 2
            rounding = ritz_rounding(self._matrix[:m, :m], max(self._norm, self._scale), self.dtype)
            self._ritz = theta, vectors, np.sqrt(squares) + rounding
        return self._ritz

    def vectors(self, chosen: NDArray[np.int64]) -> Tensor | None:
        """Ritz vectors ``[D, n]``; ``None`` where the basis is half rotated."""
        if self.rotating:
            return None
        return combine(self.basis, self.ritz()[1][:, chosen])[0].T if len(chosen) else self._rows[:0].T

    @property
    def scaled_norm(self) -> float:
        """:attr:`norm` in units of :attr:`unit`."""
        self.ritz()
        return self._norm

    @property
    def norm(self) -> float:
        """Largest |Ritz value| seen, also before a restart: a lower bound of the spectral norm of H."""
        return self.scaled_norm * self.unit

    @property
    def asymmetry(self) -> float:
        """Largest |T - T'| relative to the largest |Ritz value|: rounding for a symmetric H, its asymmetry otherwise."""
        square = self._matrix[: self.done, : self.done]
        return float(np.abs(square - square.T).max(initial=0.0)) / self._norm if self.norm > 0 else 0.0

    def orthogonality_loss(self, probes: int | None = None) -> float:
        """Frobenius norm of Q'Q - I, exactly (m^2 D multiplications) or estimated with random signs (2 m D per probe)."""
        basis, m = self.basis, self.done
        if probes is None:
            return float(np.linalg.norm(gram(basis, basis) - np.eye(m)))
        signs: Array = np.where(np.random.default_rng(0).random((m, probes)) < 0.5, -1.0, 1.0)
        return float(np.linalg.norm(gram(basis, combine(basis, signs)[0]) - signs) / np.sqrt(probes))

    def quadrature(self) -> Quadrature:
        """Block Gauss quadrature of the starting vectors, of the last basis before the first restart."""
        if self._frozen is not None:
            return self._frozen
        theta, vectors, _ = self.ritz()
        overlaps = self.start.T @ vectors[: len(self.start)]  # [P, M]
        with np.errstate(invalid="ignore", divide="ignore"):
            return Quadrature(theta * self.unit, (overlaps / self._norms[:, None]) ** 2)

    def span_sums(self) -> tuple[float, float]:
        """Traces of Q'HQ and of Q'H^2 Q over the span of the basis: their part of tr(H) and tr(H^2), exact."""
        columns = self._matrix[: self.done + self.pending, : self.done]
        squares = float(np.sum(columns**2) + np.sum(self._lost[: self.done] ** 2))
        return float(np.trace(self.projected)), squares * self.unit * self.unit

    def start_forms(self) -> tuple[Array, Array]:
        """V'HV ``[p, p]`` and ||Hv||^2 ``[p]`` of the starting vectors, after the first step and before a restart."""
        width = len(self.start)
        columns = self._matrix[: self.done + self.pending, :width] @ self.start
        return self.start.T @ columns[:width] * self.unit, np.sum(columns**2, axis=0) * self.unit * self.unit

    def whole_forms(self, probes: Tensor, images: Tensor, forms: Array) -> Array:
        r"""Forms v'Hv ``[n]`` of probes v ``[D, n]``, from the products and forms of their complements (I - QQ') v.

        Cost: 2 m n D multiplications, no product.
        """
        inside, crossed = (gram(self.basis, part.T.to(self.home, self.dtype)) for part in (probes, images))
        total: Array = forms + np.sum(inside * (2 * crossed + self.projected @ inside), axis=0)
        return total

    def complement(self, vectors: Tensor) -> Tensor:
        """Vectors ``[D, n]`` without their part in the basis, (I - QQ') g."""
        rows = self.local(vectors)
        if self.done:
            rows, _ = block_update(rows, self.basis, block_gram(self.basis, rows))
        return rows.T.to(self.device)


def _rotate(basis: Tensor, m: int, width: int, turn: Array) -> None:
    """Replace the first m rows by their combinations ``turn`` and move the pending rows behind them, in place."""
    left = torch.from_numpy(np.ascontiguousarray(turn.T)).to(basis.device)
    pending = basis[m : m + width].clone()
    for first in range(0, basis.shape[1], _COLUMNS):
        piece = basis[:m, first : first + _COLUMNS].double()
        basis[: len(left), first : first + _COLUMNS] = (left @ piece).to(basis.dtype)
    basis[len(left) : len(left) + width] = pending
