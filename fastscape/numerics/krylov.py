r"""Block Lanczos with full reorthogonalisation and thick restart: extreme eigenpairs and Gauss quadrature of one Krylov basis.

With orthonormal Q and a block F orthogonal to it, :math:`HQ = Q T + F C`. The whole projected matrix T is kept, as the
products gave it, and its symmetric part is diagonalised; the residual of a Ritz pair :math:`y = Qs` is :math:`\|Cs\|`. What
rounding adds is measured by the antisymmetric part of T, also for products in half precision, and is never below a few units
in the last place of ||H|| (:func:`~fastscape.numerics.gram_schmidt.ritz_rounding`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape._checks import one_line
from fastscape.numerics.arrays import Array
from fastscape.numerics.gram_schmidt import NonFiniteRowsError, combine, gram, orthonormalise, random_rows, ritz_rounding
from fastscape.numerics.repeats import certain
from fastscape.ops import block_gram, block_update

Matmat = Callable[[Tensor], Tensor]
Which = Literal["both", "largest", "smallest", "magnitude"]

CAPACITY = 200  # rows of a basis, unless told otherwise
_EXPONENT = 256  # of two, of the first products, beyond which products are scaled
_COLUMNS = 1 << 16  # of a basis that is rotated in place: pieces of 100 rows are 50 MiB in float64


@dataclass(frozen=True)
class Eigenpairs:
    r"""Ritz pairs from one end of a spectrum.

    Attributes:
        values: Ritz values theta ``[n]``, outermost first: descending, but ascending for the smallest ones.
        residuals: bound on ||Hv - theta v|| for unit v, with rounding ``[n]``; some eigenvalue of H lies in theta +- residual.
        converged: residual <= tolerance * max |theta| over all Ritz values of the basis ``[n]``.
        vectors: Ritz vectors ``[D, n]``, or ``None``.
    """

    values: Array
    residuals: Array
    converged: NDArray[np.bool_]
    vectors: Tensor | None = None
    __repr__ = one_line


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


class BlockLanczos:
    """A Krylov basis of a symmetric matrix that grows by one block product per :meth:`step`.

    Each block is orthogonalised against the whole basis by two passes of classical Gram-Schmidt (more where a pass still
    changes it), which leaves no copies of converged eigenvalues. A block that loses rank shrinks. When the basis is full, the
    Ritz vectors at the wanted ends are kept and the rest is dropped (thick restart), so that the outer Ritz values never move
    inwards. A product with NaN or inf ends the run; what was known stays.

    Args:
        matmat: H as a function of ``[D, K]`` to ``[D, K]``; any dtype may come back.
        start: first block ``[D, p]``, float32 or float64: the dtype of the basis. Vectors may be linearly dependent.
        product: H times ``start``, where it is known.
        wanted: pairs that a restart must keep at each end that is wanted.
        which: ends that a restart keeps.
        capacity: rows of the basis, the current block included; default 200, or D if less.
        basis_device: where the basis lives, default ``start``'s device; ``"cpu"`` for one that does not fit on an accelerator.
        copies: how many of the starting vectors are random: so many copies of an eigenvalue are found; default all.
        seed: of the random vectors that continue after an invariant subspace, or look for further copies.

    Attributes:
        products: vectors multiplied; ``nan_products`` of them were not finite.
        steps, restarts: so far.
        stop_reason: ``None``, ``"invariant"`` (T is exact), ``"complete"`` (the basis spans the space) or ``"nan"``.

    Raises:
        ValueError: a start that is not ``[D, p]``, zero or not finite, or a capacity too small to restart (names the least).

    Cost: per step of b vectors with m in the basis, one product of b vectors, and 2 (m + 2 b) b D multiplications, twice;
    memory (m + b) D.

    Source: Golub & Underwood, "The block Lanczos method" (1977); Wu & Simon, "Thick-restart Lanczos" (2000).
    """

    def __init__(
        self,
        matmat: Matmat,
        start: Tensor,
        *,
        product: Tensor | None = None,
        wanted: int = 1,
        which: Which = "both",
        capacity: int | None = None,
        basis_device: torch.device | str | None = None,
        copies: int | None = None,
        seed: int = 0,
    ) -> None:
        if start.ndim != 2 or 0 in start.shape or start.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"start must be float32 or float64 [D, p], got {start.dtype} of shape {list(start.shape)}")
        if not bool(torch.isfinite(start).all()):
            raise ValueError("start must be finite, got NaN or inf; leave out the vectors that hold it")
        self._matmat, self._device, self._seed = matmat, start.device, seed
        self._home = torch.device(basis_device) if basis_device is not None else start.device
        self.size = start.shape[0]
        self._wanted, self._which = wanted, which
        first = orthonormalise(start.T.to(self._home).contiguous(), start.new_empty((0, self.size), device=self._home))
        width = len(first.rows)
        if not width:
            raise ValueError("start must not be zero, got only zero vectors; start from random signs")
        least = least_capacity(self.size, wanted, width, which)
        self.capacity = min(self.size, max(least, CAPACITY) if capacity is None else capacity)
        if self.capacity < least:
            raise ValueError(
                f"capacity must be at least {least} vectors for {wanted} pairs and blocks of {width}, got {capacity}"
            )
        self._basis = start.new_empty((self.capacity, self.size), device=self._home)
        self._basis[:width] = first.rows
        self._matrix = np.zeros((len(self._basis), len(self._basis)))  # T, and C in the rows below
        self._lost = np.zeros(len(self._basis))
        self._done, self._pending, self._near, self._scale, self._norm = 0, width, 0, 0.0, 0.0
        self._coordinates, self._norms = first.within, np.linalg.norm(first.within, axis=0)
        self._product = None if product is None else self._first_product(product, first.within)
        self._copies = self._mature = width if copies is None else min(copies, width)
        self._drawn, self._widened, self._trial = start.shape[1], 0, 0
        self._unit = 0.0  # power of two that the products are divided by; 0 before it is known
        self._frozen: Quadrature | None = None
        self._rotating = False
        self._ritz: tuple[Array, Array, Array] | None = None
        self.products = self.nan_products = self.steps = self.restarts = 0
        self.stop_reason: str | None = None

    # ------------------------------------------------------------------ the basis

    @property
    def done(self) -> bool:
        """Whether no further step is possible or needed."""
        return self.stop_reason is not None

    @property
    def dimension(self) -> int:
        """Vectors in the basis that have been multiplied: the number of Ritz values."""
        return self._done

    @property
    def next_products(self) -> int:
        """Vectors that the next step multiplies."""
        return 0 if self.done else self._pending

    @property
    def basis(self) -> Tensor:
        """Orthonormal rows ``[m, D]`` of the multiplied vectors."""
        return self._basis[: self._done]

    @property
    def projected(self) -> Array:
        """T = Q'HQ ``[m, m]``, symmetric part."""
        result: Array = self._symmetric() * self._unit
        return result

    def _symmetric(self) -> Array:
        square = self._matrix[: self._done, : self._done]
        result: Array = (square + square.T) / 2
        return result

    def step(self) -> bool:
        """Multiply one block and extend the basis; returns whether another step can follow."""
        if self.done:
            return False
        if self.capacity < self.size and self._done + 2 * self._pending > self.capacity:
            self._restart()
        rows = self._basis[self._done : self._done + self._pending]
        image, self._product = self._product, None
        if image is None:
            image = self._matmat(rows.T.to(self._device)).T.to(self._home, rows.dtype)
            self.products += len(rows)
        try:
            self._extend(self._scaled(image).contiguous())
        except NonFiniteRowsError as error:
            self.nan_products += error.count
            self.stop_reason = "nan"
        return not self.done

    def _scaled(self, image: Tensor) -> Tensor:
        """Products divided by a power of two, which is exact, where squares of float64 would leave its range."""
        if not self._unit:
            exponent = math.frexp(float(image.abs().max()))[1]
            self._unit = 2.0 ** min(max(exponent, -1000), 1000) if abs(exponent) > _EXPONENT else 1.0
        return image if self._unit == 1 else image / self._unit

    def _extend(self, image: Tensor) -> None:
        """Take the products of the pending block into T, and what is left of them as the next block."""
        old, size = self._done, self._done + len(image)
        split = orthonormalise(image, self._basis[:size], near=min(self._near, old), scale=self._scale)
        rows, within = split.rows, split.within
        if size + len(rows) > self.size:  # more directions than the space has left: rounding
            rows, within = rows[: self.size - size], within[: self.size - size]
        width = len(rows)
        self._basis[size : size + width] = rows
        self._matrix[: size + width, old:size] = 0.0
        self._matrix[:size, old:size] = split.against
        self._matrix[size : size + width, old:size] = within
        self._lost[old:size] = split.lost
        self._near, self._scale = old, split.scale
        self._done, self._pending, self._ritz = size, width, None
        self.steps += 1
        if self._widened and self.steps - self._widened >= self._trial:
            self._mature, self._widened = self._copies, 0
        if not width:
            self._close(len(image))

    def _close(self, count: int) -> None:
        """Go on with random vectors after an invariant subspace, until it is sure to hold the wanted eigenvalues."""
        self._mature, self._widened = self._copies, 0
        if self._done == self.size:
            self.stop_reason = "complete"
        elif self._done >= self._minimum() and not self._doubtful(self._wanted, self._which, self._copies).any():
            self.stop_reason = "invariant"
        else:
            self._widen(min(count, self.capacity - self._done))
            self._mature = self._copies - self._pending
            self._widened, self._trial = self.steps, self.capacity  # the next invariant subspace tells, not the steps
            if not self._pending:
                self.stop_reason = "invariant"

    def settle(self, k: int, which: Which = "largest", *, tolerance: float = 1e-3) -> bool:
        """Whether the k outermost pairs have converged; random vectors join the next block where they may lack copies."""
        found = self.pairs(k, which, tolerance=tolerance)
        ends = 2 if which == "both" else 1
        if len(found.values) < min(ends * k, self.size):
            return False
        if bool(found.converged.all()):
            return True
        if not self.done and not self._widened and bool((found.residuals <= tolerance * self.norm).all()):
            self._trial = self._trial or self.steps
            self._widen(min(self._copies, max(1, k - self._copies)))
        return False

    def _widen(self, count: int) -> None:
        """Random vectors beside the pending block, as many as there is room for."""
        width, least = self._pending, self._minimum()
        count = min(count, self.size - self._done - width)
        if self.capacity < self.size:
            count = min(count, (self.capacity - least) // 3 - width) if width else count
            if width and count > 0 and self._done + 2 * (width + count) > self.capacity:
                self._restart()
        if count < 1:
            return
        end = self._done + width
        rows = self._refill(self._basis[:end], count)
        self._basis[end : end + len(rows)] = rows
        self._matrix[end : end + len(rows), :end] = 0.0
        self._pending += len(rows)
        self._copies += len(rows)
        self._widened = self.steps

    def _minimum(self) -> int:
        return min(self.size, self._wanted * (2 if self._which == "both" else 1))

    def _refill(self, basis: Tensor, count: int) -> Tensor:
        """New orthonormal rows beside an invariant subspace, to find further copies of multiple eigenvalues."""
        count = min(count, self.size - len(basis))
        indices = range(self._drawn, self._drawn + count)
        self._drawn += count
        return orthonormalise(random_rows(self.size, indices, self._seed, dtype=basis.dtype, device=self._home), basis).rows

    def _first_product(self, product: Tensor, within: Array) -> Tensor:
        if product.shape != (self.size, within.shape[1]):
            raise ValueError(f"product must have start's shape {[self.size, within.shape[1]]}, got {list(product.shape)}")
        rows = product.T.to(self._home, self._basis.dtype).contiguous()
        inverse: Array = np.asarray(np.linalg.pinv(within), dtype=np.float64)
        return combine(rows, inverse)[0]

    # ------------------------------------------------------------------ Ritz pairs

    def _decomposition(self) -> tuple[Array, Array, Array]:
        """Ritz values ascending, their coefficients, and residual norms."""
        if self._ritz is None:
            m = self._done
            theta, vectors = np.linalg.eigh(self._symmetric())
            self._norm = max(self._norm, float(np.abs(theta).max(initial=0.0)))
            coupling = self._matrix[m : m + self._pending, :m]
            squares = np.sum((coupling @ vectors) ** 2, axis=0) + (self._lost[:m] @ np.abs(vectors)) ** 2
            rounding = ritz_rounding(self._matrix[:m, :m], max(self._norm, self._scale), self._basis.dtype)
            self._ritz = theta, vectors, np.sqrt(squares) + rounding
        return self._ritz

    def _order(self, theta: Array, k: int, which: Which) -> NDArray[np.int64]:
        """Indices of the k outermost of ascending Ritz values; of both ends, k each."""
        n = len(theta)
        ends = {
            "largest": np.arange(n)[::-1][:k],
            "smallest": np.arange(n)[:k],
            "magnitude": np.argsort(-np.abs(theta), kind="stable")[:k],
        }
        if which != "both":
            return ends[which]
        return np.unique(np.concatenate([ends["largest"], ends["smallest"]]))[::-1]

    def pairs(self, k: int, which: Which = "largest", *, tolerance: float = 1e-3, vectors: bool = False) -> Eigenpairs:
        """The k outermost Ritz pairs of one end, fewer where the basis is smaller; ``"both"`` gives k of each end.

        Args:
            k: how many.
            which: ``"largest"``, ``"smallest"``, ``"magnitude"`` or ``"both"``.
            tolerance: a pair is converged if its residual is at most this times :attr:`norm`, unless it follows a run of equal
                values of which there may be more copies than the basis can hold.
            vectors: whether to form the Ritz vectors, which costs m k D multiplications.
        """
        theta, coefficients, residuals = self._decomposition()
        chosen = self._order(theta, k, which)
        sure = ~self._doubtful(k, which, max(2, self._mature) if self.stop_reason is None else self._mature)[chosen]
        found = None
        if vectors and not self._rotating:
            found = combine(self.basis, coefficients[:, chosen])[0].T if len(chosen) else self._basis[:0].T
        converged = (residuals[chosen] <= tolerance * self._norm) & sure
        return Eigenpairs(theta[chosen] * self._unit, residuals[chosen] * self._unit, converged, found)

    def _doubtful(self, k: int, which: Which, copies: int) -> NDArray[np.bool_]:
        """Ritz values among the k outermost in whose place further copies of those before them may belong."""
        theta, _, residuals = self._decomposition()
        out = np.zeros(len(theta), dtype=bool)
        if self._done == self.size:
            return out
        rounding = 64 * torch.finfo(self._basis.dtype).eps * self._norm
        for end in ("largest", "smallest") if which == "both" else (which,):
            order = self._order(theta, k, end)
            values = np.abs(theta[order]) if end == "magnitude" else theta[order]
            out[order[certain(values, residuals[order], copies, rounding) :]] = True
        return out

    def true_residuals(self, pairs: Eigenpairs) -> Array:
        """||Hv - theta v|| ``[n]`` of pairs with vectors, by n new products."""
        if pairs.vectors is None:
            raise ValueError("pairs must hold vectors; ask for pairs(..., vectors=True)")
        image = self._matmat(pairs.vectors.to(self._device)).to(self._home).double()
        self.products += len(pairs.values)
        difference = image - pairs.vectors.double() * torch.from_numpy(pairs.values.copy()).to(self._home)
        result: Array = torch.linalg.vector_norm(difference, dim=0).cpu().numpy()
        return result

    def orthogonality_loss(self, probes: int | None = None) -> float:
        """Frobenius norm of Q'Q - I, exactly (m^2 D multiplications) or estimated with random signs (2 m D per probe)."""
        basis, m = self.basis, self._done
        if probes is None:
            return float(np.linalg.norm(gram(basis, basis) - np.eye(m)))
        signs: Array = np.where(np.random.default_rng(0).random((m, probes)) < 0.5, -1.0, 1.0)
        return float(np.linalg.norm(gram(basis, combine(basis, signs)[0]) - signs) / np.sqrt(probes))

    @property
    def norm(self) -> float:
        """Largest |Ritz value| seen, also before a restart: a lower bound of the spectral norm of H."""
        self._decomposition()
        return self._norm * self._unit

    @property
    def asymmetry(self) -> float:
        """Largest |T - T'| relative to the largest |Ritz value|: rounding for a symmetric H, its asymmetry otherwise."""
        square = self._matrix[: self._done, : self._done]
        return float(np.abs(square - square.T).max(initial=0.0)) / self._norm if self.norm > 0 else 0.0

    # ------------------------------------------------------------------ what else the basis knows

    def quadrature(self) -> Quadrature:
        """Block Gauss quadrature of the starting vectors, of the last basis before the first restart."""
        if self._frozen is not None:
            return self._frozen
        theta, vectors, _ = self._decomposition()
        overlaps = self._coordinates.T @ vectors[: len(self._coordinates)]  # [P, M]
        with np.errstate(invalid="ignore", divide="ignore"):
            return Quadrature(theta * self._unit, (overlaps / self._norms[:, None]) ** 2)

    def span_sums(self) -> tuple[float, float]:
        """Traces of Q'HQ and of Q'H^2 Q over the span of the basis: their part of tr(H) and tr(H^2), exact."""
        columns = self._matrix[: self._done + self._pending, : self._done]
        squares = float(np.sum(columns**2) + np.sum(self._lost[: self._done] ** 2))
        return float(np.trace(self.projected)), squares * self._unit * self._unit

    @property
    def start(self) -> Array:
        """The starting vectors in the first block of the basis, ``[r, p]``: V = Q_1 R."""
        return self._coordinates

    def start_forms(self) -> tuple[Array, Array]:
        """V'HV ``[p, p]`` and ||Hv||^2 ``[p]`` of the starting vectors, after the first step and before a restart."""
        width = len(self._coordinates)
        columns = self._matrix[: self._done + self._pending, :width] @ self._coordinates
        return self._coordinates.T @ columns[:width] * self._unit, np.sum(columns**2, axis=0) * self._unit * self._unit

    def whole_forms(self, probes: Tensor, images: Tensor, forms: Array) -> Array:
        r"""Forms v'Hv ``[n]`` of probes v ``[D, n]``, from the products and forms of their complements (I - QQ') v.

        Cost: 2 m n D multiplications, no product.
        """
        inside, crossed = (gram(self.basis, part.T.to(self._home, self._basis.dtype)) for part in (probes, images))
        total: Array = forms + np.sum(inside * (2 * crossed + self.projected @ inside), axis=0)
        return total

    def complement(self, vectors: Tensor) -> Tensor:
        """Vectors ``[D, n]`` without their part in the basis, (I - QQ') g."""
        rows = vectors.T.to(self._home, self._basis.dtype).contiguous()
        if self._done:
            rows, _ = block_update(rows, self.basis, block_gram(self.basis, rows))
        return rows.T.to(self._device)

    # ------------------------------------------------------------------ restart

    def _restart(self) -> None:
        """Keep the Ritz vectors of the wanted ends, and the pending block, which all of them couple to."""
        if self._frozen is None:
            self._frozen = self.quadrature()
        m, width = self._done, self._pending
        theta, vectors, _ = self._decomposition()
        keep = max(self._minimum(), min((m + self._minimum()) // 2, self.capacity - 4 * width))
        keep = min(keep, self.capacity - 2 * width)
        chosen = np.sort(_two_ends(m, keep) if self._which == "both" else self._order(theta, keep, self._which))
        turn = vectors[:, chosen]
        square = self._matrix[:m, :m]
        image = square @ turn
        kept = turn.T @ image
        coupling = self._matrix[m : m + width, :m] @ turn
        lost = np.linalg.norm(image - turn @ kept, axis=0) + self._lost[:m] @ np.abs(turn)
        self._rotating = True
        _rotate(self._basis, m, width, turn)
        size = len(chosen)
        self._matrix[:] = 0.0
        self._matrix[:size, :size] = kept
        self._matrix[size : size + width, :size] = coupling
        self._lost[:] = 0.0
        self._lost[:size] = lost
        self._done, self._near, self._ritz, self._rotating = size, 0, None, False
        self.restarts += 1


def _two_ends(m: int, keep: int) -> NDArray[np.int64]:
    return np.concatenate([np.arange(keep // 2), np.arange(m - (keep - keep // 2), m)])


def _rotate(basis: Tensor, m: int, width: int, turn: Array) -> None:
    """Replace the first m rows by their combinations ``turn`` and move the pending rows behind them, in place."""
    left = torch.from_numpy(np.ascontiguousarray(turn.T)).to(basis.device)
    pending = basis[m : m + width].clone()
    for first in range(0, basis.shape[1], _COLUMNS):
        piece = basis[:m, first : first + _COLUMNS].double()
        basis[: len(left), first : first + _COLUMNS] = (left @ piece).to(basis.dtype)
    basis[len(left) : len(left) + width] = pending


def least_capacity(size: int, wanted: int, block: int, which: Which = "both") -> int:
    """Rows of the smallest basis that can restart: the wanted pairs, and three blocks."""
    return min(size, wanted * (2 if which == "both" else 1) + 3 * block)
