"""Extreme eigenpairs of a symmetric matrix by block Lanczos, from products alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from fastscape._checks import integer, one_of
from fastscape.numerics.factorisation import Quadrature
from fastscape.numerics.gram_schmidt import random_rows
from fastscape.numerics.krylov import CAPACITY, BlockLanczos, Eigenpairs, Matmat, Which, least_capacity
from fastscape.numerics.spectra import Gap

__all__ = ["BlockLanczos", "Eigenpairs", "Extremes", "Quadrature", "extreme_pairs", "least_capacity"]

_PRODUCTS = 1000  # of extreme_pairs, unless told otherwise


@dataclass(frozen=True)
class Extremes:
    r"""Eigenpairs at the ends of a spectrum, and how they were found.

    Attributes:
        largest, smallest: :class:`Eigenpairs` of each end, outermost first; empty where that end was not asked for. For
            ``which="magnitude"``, ``largest`` holds the pairs of largest |theta|.
        gap: lambda_1 - lambda_2 with the bound from their residuals.
        spectral_norm: largest |Ritz value|, a lower bound where that end was not asked for.
        products: vectors multiplied; nan_products: those with NaN or inf.
        dimension: of the last basis; restarts: how often it was shortened.
        orthogonality_loss: Frobenius norm of Q'Q - I of the last basis.
        asymmetry: of Q'HQ, relative to the norm.
        stop_reason: ``"converged"``, ``"invariant"``, ``"complete"``, ``"products"``, ``"stopped"`` or ``"nan"``.
    """

    largest: Eigenpairs
    smallest: Eigenpairs
    gap: Gap
    spectral_norm: float
    products: int
    nan_products: int
    dimension: int
    restarts: int
    orthogonality_loss: float
    asymmetry: float
    stop_reason: str


def extreme_pairs(
    matmat: Matmat,
    size: int,
    k: int,
    *,
    start: Tensor | None = None,
    block: int = 4,
    tolerance: float = 1e-3,
    which: Which = "both",
    max_products: int | None = None,
    memory: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    basis_device: torch.device | str | None = None,
    seed: int = 0,
    keep_vectors: bool = False,
    stop: Callable[[], bool] | None = None,
) -> Extremes:
    r"""The k outermost eigenpairs of a symmetric matrix by block Lanczos (:class:`BlockLanczos`).

    A pair has converged when :math:`\|Hv - \theta v\| \le` ``tolerance`` :math:`\cdot \max |\theta|`, the largest over all Ritz
    values; the error of theta is then at most that, and of the order of its square over the gap to the next eigenvalue.
    Eigenvalues of multiplicity up to ``block`` are found with all their copies. Where ``block`` values (at least two) within the
    k are equal, random vectors join the next block and go through as many steps again before the values after them count as
    converged; a basis that becomes invariant goes on with random vectors in the same way. With ``block=1`` the second copy is
    looked for only after an invariant subspace.

    Args:
        matmat: H as a function of ``[D, K]`` to ``[D, K]``.
        size: D.
        k: pairs wanted at each end asked for.
        start: first block ``[D, p]`` (earlier eigenvectors, say) in place of random normals; its dtype and device count.
        block: vectors per product.
        tolerance: relative residual; 0 for a basis that spans the space.
        which: ``"both"``, ``"largest"``, ``"smallest"`` or ``"magnitude"``.
        max_products: at most so many vectors are multiplied (1000, or D if less, by default).
        memory: bytes that the basis may take; by default 200 vectors.
        dtype: of the vectors, float32 or float64.
        device: where ``matmat`` takes them.
        basis_device: where the basis lives, by default ``device``.
        seed: of the random normals.
        keep_vectors: return the eigenvectors.
        stop: asked before every product; true ends the run with what is known.

    Returns:
        :class:`Extremes`; ``converged`` is per pair, whatever the reason to stop.

    Raises:
        ValueError: k larger than D, a block that is not positive, or a memory too small (names the least).

    Cost: one product per vector, and the orthogonalisation of :class:`BlockLanczos`.
    """
    _check_request(size, k, which, tolerance)
    if start is None:
        width = min(integer("block", block, 1), size)
        start = random_rows(size, range(width), seed, dtype=dtype, device=device).T
    limit = min(size, _PRODUCTS) if max_products is None else integer("max_products", max_products, 1)
    rows = min(size, limit + start.shape[1])
    if memory is not None:
        least = least_capacity(size, k, start.shape[1], which)
        row = size * start.element_size()
        if memory < least * row:
            raise ValueError(f"memory must be at least {least * row} bytes for a basis of {least} vectors, got {memory}")
        rows = min(rows, memory // row)
    else:
        rows = min(rows, CAPACITY)
    rows = max(rows, least_capacity(size, k, start.shape[1], which))
    run = BlockLanczos(matmat, start, wanted=k, which=which, capacity=rows, basis_device=basis_device, seed=seed)
    reason = None
    while reason is None:
        if stop is not None and stop():
            reason = "stopped"
        elif run.products and run.products + run.next_products > limit:
            reason = "products"
        elif not run.step():
            reason = run.stop_reason
        elif run.settle(k, which, tolerance=tolerance):
            reason = "converged"
    ends = {end: run.pairs(k, end, tolerance=tolerance, vectors=keep_vectors) for end in _ends(which)}
    none = Eigenpairs(np.empty(0), np.empty(0), np.empty(0, dtype=bool))
    two = run.pairs(2, "largest")
    return Extremes(
        largest=ends.get("magnitude", ends.get("largest", none)),
        smallest=ends.get("smallest", none),
        gap=Gap.between(two.values, two.residuals),
        spectral_norm=run.norm,
        products=run.products,
        nan_products=run.nan_products,
        dimension=run.dimension,
        restarts=run.restarts,
        orthogonality_loss=run.krylov.orthogonality_loss(),
        asymmetry=run.krylov.asymmetry,
        stop_reason=reason,
    )


def _ends(which: Which) -> tuple[Which, ...]:
    return ("largest", "smallest") if which == "both" else (which,)


def _check_request(size: int, k: int, which: str, tolerance: float) -> None:
    integer("size", size, 1)
    if integer("k", k, 1) > size:
        raise ValueError(f"k must be at most D = {size}, got {k}; a matrix has no more eigenvalues than rows")
    one_of("which", which, get_args(Which))
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be in [0, 1), got {tolerance!r}")
