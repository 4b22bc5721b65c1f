r"""Block Lanczos with full reorthogonalisation and thick restart: extreme eigenpairs and Gauss quadrature of one Krylov basis.

What is multiplied when, and when a pair is sure to be one of the wanted; the basis and its numbers are those of
:class:`~fastscape.numerics.factorisation.Factorisation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape._checks import one_line
from fastscape.numerics.arrays import Array
from fastscape.numerics.factorisation import Factorisation
from fastscape.numerics.gram_schmidt import NonFiniteRowsError, combine, orthonormalise, random_rows
from fastscape.numerics.repeats import certain

Matmat = Callable[[Tensor], Tensor]
Which = Literal["both", "largest", "smallest", "magnitude"]

CAPACITY = 200  # rows of a basis, unless told otherwise


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
        krylov: the basis and its numbers.
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
        self._matmat, self._seed = matmat, seed
        home = torch.device(basis_device) if basis_device is not None else start.device
        self.size = start.shape[0]
        self._wanted, self._which = wanted, which
        first = orthonormalise(start.T.to(home).contiguous(), start.new_empty((0, self.size), device=home))
        width = len(first.rows)
        if not width:
            raise ValueError("start must not be zero, got only zero vectors; start from random signs")
        least = least_capacity(self.size, wanted, width, which)
        self.capacity = min(self.size, max(least, CAPACITY) if capacity is None else capacity)
        if self.capacity < least:
            raise ValueError(
                f"capacity must be at least {least} vectors for {wanted} pairs and blocks of {width}, got {capacity}"
            )
        rows = start.new_empty((self.capacity, self.size), device=home)
        self.krylov = Factorisation(rows, first.rows, first.within, start.device)
        self._product = None if product is None else self._first_product(product, first.within)
        self._copies = self._mature = width if copies is None else min(copies, width)
        self._drawn, self._widened, self._trial = start.shape[1], 0, 0
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
        return self.krylov.done

    @property
    def next_products(self) -> int:
        """Vectors that the next step multiplies."""
        return 0 if self.done else self.krylov.pending

    @property
    def norm(self) -> float:
        """Largest |Ritz value| seen, also before a restart: a lower bound of the spectral norm of H."""
        return self.krylov.norm

    def step(self) -> bool:
        """Multiply one block and extend the basis; returns whether another step can follow."""
        if self.done:
            return False
        known = self.krylov
        if self.capacity < self.size and known.done + 2 * known.pending > self.capacity:
            self._restart()
        rows = known.block
        image, self._product = self._product, None
        if image is None:
            image = self._matmat(rows.T.to(known.device)).T.to(known.home, rows.dtype)
            self.products += len(rows)
        try:
            width = known.extend(image)
        except NonFiniteRowsError as error:
            self.nan_products += error.count
            self.stop_reason = "nan"
            return False
        self.steps += 1
        if self._widened and self.steps - self._widened >= self._trial:
            self._mature, self._widened = self._copies, 0
        if not width:
            self._close(len(image))
        return not self.done

    def _close(self, count: int) -> None:
        """Go on with random vectors after an invariant subspace, until it is sure to hold the wanted eigenvalues."""
        self._mature, self._widened = self._copies, 0
        if self.krylov.done == self.size:
            self.stop_reason = "complete"
        elif self.krylov.done >= self._minimum() and not self._doubtful(self._wanted, self._which, self._copies).any():
            self.stop_reason = "invariant"
        else:
            self._widen(min(count, self.capacity - self.krylov.done))
            self._mature = self._copies - self.krylov.pending
            self._widened, self._trial = self.steps, self.capacity  # the next invariant subspace tells, not the steps
            if not self.krylov.pending:
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
        width, least = self.krylov.pending, self._minimum()
        count = min(count, self.size - self.krylov.done - width)
        if self.capacity < self.size:
            count = min(count, (self.capacity - least) // 3 - width) if width else count
            if width and count > 0 and self.krylov.done + 2 * (width + count) > self.capacity:
                self._restart()
        if count < 1:
            return
        rows = self._refill(self.krylov.whole, count)
        self.krylov.append(rows)
        self._copies += len(rows)
        self._widened = self.steps

    def _minimum(self) -> int:
        return min(self.size, self._wanted * (2 if self._which == "both" else 1))

    def _refill(self, basis: Tensor, count: int) -> Tensor:
        """New orthonormal rows beside an invariant subspace, to find further copies of multiple eigenvalues."""
        count = min(count, self.size - len(basis))
        indices = range(self._drawn, self._drawn + count)
        self._drawn += count
        return orthonormalise(random_rows(self.size, indices, self._seed, dtype=basis.dtype, device=basis.device), basis).rows

    def _first_product(self, product: Tensor, within: Array) -> Tensor:
        if product.shape != (self.size, within.shape[1]):
            raise ValueError(f"product must have start's shape {[self.size, within.shape[1]]}, got {list(product.shape)}")
        inverse: Array = np.asarray(np.linalg.pinv(within), dtype=np.float64)
        return combine(self.krylov.local(product), inverse)[0]

    # ------------------------------------------------------------------ Ritz pairs

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
        known = self.krylov
        theta, _, residuals = known.ritz()
        chosen = self._order(theta, k, which)
        sure = ~self._doubtful(k, which, max(2, self._mature) if self.stop_reason is None else self._mature)[chosen]
        converged = (residuals[chosen] <= tolerance * known.scaled_norm) & sure
        found = known.vectors(chosen) if vectors else None
        return Eigenpairs(theta[chosen] * known.unit, residuals[chosen] * known.unit, converged, found)

    def _doubtful(self, k: int, which: Which, copies: int) -> NDArray[np.bool_]:
        """Ritz values among the k outermost in whose place further copies of those before them may belong."""
        theta, _, residuals = self.krylov.ritz()
        out = np.zeros(len(theta), dtype=bool)
        if self.krylov.done == self.size:
            return out
        rounding = 64 * torch.finfo(self.krylov.dtype).eps * self.krylov.scaled_norm
        for end in ("largest", "smallest") if which == "both" else (which,):
            order = self._order(theta, k, end)
            values = np.abs(theta[order]) if end == "magnitude" else theta[order]
            out[order[certain(values, residuals[order], copies, rounding) :]] = True
        return out

    # ------------------------------------------------------------------ restart

    def _restart(self) -> None:
        """Keep the Ritz vectors of the wanted ends, and the pending block, which all of them couple to."""
        m, width = self.krylov.done, self.krylov.pending
        keep = max(self._minimum(), min((m + self._minimum()) // 2, self.capacity - 4 * width))
        keep = min(keep, self.capacity - 2 * width)
        theta = self.krylov.ritz()[0]
        chosen = np.sort(_two_ends(m, keep) if self._which == "both" else self._order(theta, keep, self._which))
        self.krylov.compress(chosen)
        self.restarts += 1


def _two_ends(m: int, keep: int) -> NDArray[np.int64]:
    return np.concatenate([np.arange(keep // 2), np.arange(m - (keep - keep // 2), m)])


def least_capacity(size: int, wanted: int, block: int, which: Which = "both") -> int:
    """Rows of the smallest basis that can restart: the wanted pairs, and three blocks."""
    return min(size, wanted * (2 if which == "both" else 1) + 3 * block)
