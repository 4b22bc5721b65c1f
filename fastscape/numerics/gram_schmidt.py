r"""Orthonormal bases of tall blocks by classical Gram-Schmidt, a matrix product per pass, with rank detection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscape.numerics.arrays import Array
from fastscape.ops import Distribution, block_gram, block_update, direction

_ROUNDING = 32  # units in the last place of the largest product below which a direction is rounding
_PASSES = 6  # two do for a block of full rank; each further one divides what is left by 1e7 (float32) or more
_SETTLED = 0.3  # overlap with the basis, and distance of the Gram matrix from I, after which a pass was the last
_ORTHONORMAL = 4  # units in the last place by which inner products of the rows of a basis may differ from those of I
_DIAGONALISED = 8  # float64 units in the last place of ||T|| that diagonalising T costs beside the square root of its rows


@dataclass(frozen=True)
class Orthonormalised:
    r"""Rows F with :math:`W = S^\top Q + C^\top F` up to ``lost``, for rows W and an orthonormal basis Q.

    Attributes:
        rows: F ``[r, D]``, orthonormal and orthogonal to Q; r is the numerical rank of what Q leaves of W.
        against: S ``[m, b]``.
        within: C ``[r, b]``.
        lost: norm of what was dropped of each row as rounding ``[b]``.
        scale: norm of the largest row, or ``scale`` as given.
    """

    rows: Tensor
    against: Array
    within: Array
    lost: Array
    scale: float


class NonFiniteRowsError(FloatingPointError):
    """Rows hold NaN or inf; ``count`` of them."""

    def __init__(self, count: int) -> None:
        super().__init__(f"rows must be finite, got {count} with NaN or inf")
        self.count = count

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.count,), self.__dict__


def combine(rows: Tensor, coefficients: Array) -> tuple[Tensor, Array]:
    """Combinations :math:`C^T R` of rows ``[k, D]`` by ``[k, n]``, summed in float64, and their norms ``[n]``."""
    zero = rows.new_zeros(coefficients.shape[1], rows.shape[1])
    out, squares = block_update(zero, rows, torch.from_numpy(-np.ascontiguousarray(coefficients)).to(rows.device))
    return out, np.sqrt(squares.cpu().numpy())


def gram(left: Tensor, right: Tensor) -> Array:
    """Products of rows ``[k, m]`` as a float64 array."""
    result: Array = block_gram(left, right).cpu().numpy()
    return result


def ritz_rounding(projected: Array, norm: float, dtype: torch.dtype) -> float:
    r"""Contribution of rounding to the residual of a Ritz pair of :math:`T = Q^\top H Q`, on any processor.

    .. math:: \|T - T^\top\|_2 + \bigl(4\,u_Q + (8 + \sqrt m)\,u_{64}\bigr)\,\|H\|

    The antisymmetric part of T is the rounding of the products, and the symmetric part, which moves the eigenvalues, holds as
    much of it; its norm is counted twice. The second term is that of a basis Q of m rows, orthonormal to 4 units :math:`u_Q` in
    the last place, and of the diagonalisation in float64: two orders of summation, or two LAPACKs, differ by this much where
    the residual in exact arithmetic is zero.

    Args:
        projected: T as the products gave it ``[m, m]``.
        norm: ||H||, or a lower bound near it.
        dtype: of Q.

    Source: Higham & Mary, "A new approach to probabilistic rounding error analysis" (2019), for the square root of m.
    """
    skew = projected - projected.T
    largest = float(np.abs(skew).max(initial=0.0)) or 1.0
    products = largest * math.sqrt(np.linalg.eigvalsh((skew / largest) @ (skew.T / largest)).max(initial=0.0))
    units = _ORTHONORMAL * torch.finfo(dtype).eps + (_DIAGONALISED + math.sqrt(len(projected))) * torch.finfo(torch.float64).eps
    return products + units * norm


def orthonormalise(block: Tensor, basis: Tensor, *, near: int = 0, scale: float = 0.0) -> Orthonormalised:
    r"""Split rows into their part in an orthonormal basis and an orthonormal basis of the rest.

    The first pass projects on ``basis[near:]`` (in a Lanczos recurrence everything else is zero up to rounding), the following
    ones on the whole basis, until one changes no row by more than 0.3 of its norm. Within the block the Gram matrix is
    diagonalised; directions that are shorter than 32 units in the last place of the largest row are dropped.

    Args:
        block: rows W ``[b, D]``, float32 or float64.
        basis: orthonormal rows Q ``[m, D]``, m may be 0.
        near: first row of the basis that the first pass projects on.
        scale: norm that counts as largest, if larger than the rows'.

    Returns:
        :class:`Orthonormalised`.

    Raises:
        NonFiniteRowsError: rows with NaN or inf.

    Cost: usually reads the basis twice (products and update of the second pass) and ``basis[near:]`` twice.

    Source: Giraud, Langou & Rozložník, "The loss of orthogonality in the Gram-Schmidt orthogonalization process" (2005).
    """
    against = np.zeros((len(basis), len(block)))
    rows = block
    if near < len(basis):
        against[near:] = gram(basis[near:], rows)
        rows, _ = block_update(rows, basis[near:], torch.from_numpy(against[near:]).to(rows.device))
    products = gram(rows, rows)
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.sqrt(np.diag(products) + np.sum(against**2, axis=0))
    if not np.isfinite(norms).all():
        raise NonFiniteRowsError(int(np.sum(~np.isfinite(norms))))
    scale = max(scale, float(norms.max(initial=0.0)))
    floor = _ROUNDING * torch.finfo(block.dtype).eps * scale
    rows, within, lost = _independent(rows, products, np.eye(len(block)), floor)
    for _ in range(_PASSES):
        if not len(rows):
            break
        moved = 0.0
        if len(basis):
            overlap = block_gram(basis, rows)
            rows, _ = block_update(rows, basis, overlap)
            moved = float(overlap.abs().max())
            against += overlap.cpu().numpy() @ within
        products = gram(rows, rows)
        deviation = float(np.abs(products - np.eye(len(rows))).max())
        if deviation > _ORTHONORMAL * torch.finfo(block.dtype).eps:
            rows, within, more = _independent(rows, products, within, floor)
            lost = np.hypot(lost, more)
        if max(moved, deviation) < _SETTLED:
            break
    return Orthonormalised(rows, against, within, lost, scale)


def _independent(rows: Tensor, products: Array, within: Array, floor: float) -> tuple[Tensor, Array, Array]:
    """Unit rows along the eigenvectors of the Gram matrix, their coefficients, and the norm of what fell below the floor.

    Norms are measured on the rotated rows: an eigenvalue of the Gram matrix is off by 1e-16 of the largest, its square root by
    1e-8, and would hide a coupling of 1e-9.
    """
    _, turn = np.linalg.eigh(products)
    turn = turn[:, ::-1]
    rotated, norms = combine(rows, turn)
    coefficients = norms[:, None] * (turn.T @ within)
    kept = np.linalg.norm(coefficients, axis=1) > floor
    lost: Array = np.linalg.norm(coefficients[~kept], axis=0)
    if not kept.all():
        rotated = rotated[torch.from_numpy(kept).to(rotated.device)]
    scale = torch.from_numpy(norms[kept]).to(rotated.device, rotated.dtype)
    return rotated.div_(scale[:, None]), coefficients[kept], lost


def random_rows(
    size: int,
    indices: range,
    seed: int,
    *,
    distribution: Distribution = "gaussian",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Random vectors as rows ``[n, D]``; row i depends on (seed, i) alone, whatever the number of rows and the device.

    Normals start a Krylov basis: signs restricted to a small eigenspace are often linearly dependent (three signs in three
    coordinates: 4 times in 5), and would hide copies of a multiple eigenvalue. Signs estimate traces with the least variance.
    """
    ids = torch.zeros(1, dtype=torch.int64, device=device)
    return direction(ids, seed, list(indices), [size], distribution)[0].to(dtype)
