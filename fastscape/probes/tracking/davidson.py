r"""The eigenvalue of largest absolute value of a matrix that changes slowly, by a generalised Davidson method that recycles.

Along training the Hessian is needed again and again, each time a little different. The Ritz pairs :math:`(\theta_j, x_j)` of the
time before give the first vector, and with :math:`M = \sum_j \theta_j x_j x_j^\top` a model of the matrix by which residuals
are preconditioned. Without them the method is Lanczos with full reorthogonalisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastscape._checks import integer, one_line
from fastscape.numerics.arrays import Array
from fastscape.numerics.gram_schmidt import NonFiniteRowsError, combine, gram, orthonormalise, random_rows, ritz_rounding
from fastscape.numerics.krylov import Matmat

KEEP = 4  # Ritz pairs: with 2 products rose by 7 %, with 20 they did not fall further
_SECOND, _PROBE = 0.1, 0.1  # of the second Ritz vector and the probe in the first vector: an eigenvalue may overtake
_RIVAL = 2 / 3  # of the eigenvalue: size of the second recycled one from which it is multiplied too, for it may have overtaken
_NEAR = 0.05  # of the eigenvalue: distance to a recycled one below which the preconditioner is not trusted
_ROWS = 64  # of a basis before it is shortened


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs: orthonormal ``vectors`` ``[m, D]`` as rows and their ``values`` ``[m]``, largest first."""

    vectors: Tensor
    values: Array
    __repr__ = one_line


@dataclass(frozen=True)
class LeadingPair:
    r"""The eigenvalue of largest absolute value.

    Attributes:
        value: Ritz value theta, with its sign.
        residual: bound on ||Hx - theta x|| for unit x, rounding included; some eigenvalue of H lies in theta +- residual.
        converged: whether the residual is at most the tolerance times \|theta\|.
        products: vectors multiplied.
        pairs: to recycle at the next matrix; those that were given where a product is not finite.
    """

    value: float
    residual: float
    converged: bool
    products: int
    pairs: RitzPairs | None


def leading_pair(
    matmat: Matmat,
    size: int,
    *,
    recycled: RitzPairs | None = None,
    probe: Tensor | None = None,
    tolerance: float = 1e-2,
    max_products: int = 200,
    keep: int = KEEP,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    draw: int = 0,
) -> LeadingPair:
    r"""Eigenvalue of largest absolute value of a symmetric matrix.

    The subspace grows by one vector a product: by :math:`t = P r - P x\, (x^\top P r) / (x^\top P x)` with the residual r of the
    Ritz pair (theta, x) and :math:`P = (M - \theta)^{-1}`, or by r itself without recycled pairs. The first vector is the
    recycled one with a tenth of the second and of a probe: started at an eigenvector alone, the residual would be zero whatever
    the others are. A second one of two thirds of its size or more, which may have overtaken, is multiplied by itself before the
    end; another is noticed where it has much of the probe. The gradient is a good one, because it lies mostly along the
    eigenvectors of large eigenvalues (Gur-Ari et al. 2018).

    Args:
        matmat: H as a function of ``[D, K]`` to ``[D, K]``.
        size: D.
        recycled: Ritz pairs of a matrix that was nearly this one.
        probe: ``[D]``, of any length; ``None`` for a random one.
        tolerance: residual relative to \|theta\|; the error of theta is of the order of its square over the relative gap.
        max_products: at most so many vectors are multiplied; what is known then is returned.
        keep: Ritz pairs to return for the next time.
        dtype, device: of the vectors that ``matmat`` takes.
        seed, draw: of the random vector: ``draw`` numbers the matrices of a sequence.

    Returns:
        :class:`LeadingPair`; value and residual are NaN where a product is not finite.

    Raises:
        ValueError: a tolerance outside (0, 1), or numbers that are not positive.

    Cost: one product per vector of the subspace, and of it two passes of Gram-Schmidt; memory ``2 n + keep`` vectors.

    Source: Morgan & Scott, "Generalizations of Davidson's method" (1986); Olsen, Jørgensen & Simons (1990) for the correction;
    Parks et al., "Recycling Krylov subspaces for sequences of linear systems" (2006).
    """
    integer("size", size, 1)
    limit = integer("max_products", max_products, 1)
    keep = integer("keep", keep, 1)
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie in (0, 1), got {tolerance!r}")
    if probe is None or recycled is None:
        row = random_rows(size, range(draw, draw + 1), seed, dtype=dtype, device=device)
    else:
        row = probe.reshape(1, -1).to(device, dtype)
    start = row if recycled is None else _mixed(recycled, row)
    space = _Subspace(matmat, start)
    rival = None if recycled is None or len(recycled.values) < 2 else (float(recycled.values[1]), recycled.vectors[1:2].to(start))
    while True:
        if not space.multiply():
            return LeadingPair(math.nan, math.nan, False, space.products, recycled)
        value, residual, norm = space.leading()
        converged = norm <= tolerance * abs(value)
        full = space.products >= limit or len(space.basis) == size
        if converged and not full and rival is not None and abs(rival[0]) >= _RIVAL * abs(value) and space.add(rival[1]):
            rival = None
            continue
        if converged or full:
            return LeadingPair(value, norm, bool(converged), space.products, space.pairs(keep))
        if len(space.basis) >= max(_ROWS, 2 * keep):
            space.shorten(keep)
        vector = residual if recycled is None else _corrected(recycled, value, space.vector, residual)
        if not space.add(vector):
            return LeadingPair(value, norm, bool(converged), space.products, space.pairs(keep))


class _Subspace:
    """An orthonormal basis Q (rows) with its images HQ and Q'HQ."""

    def __init__(self, matmat: Matmat, start: Tensor) -> None:
        self._matmat = matmat
        self.basis = start.new_empty((0, start.shape[1]))
        self.images = start.new_empty((0, start.shape[1]))
        self.products = 0
        self.vector = start
        self._pending = start / torch.linalg.vector_norm(start)
        self._ritz: tuple[Array, Array] = np.empty(0), np.empty((0, 0))
        self._rounding = 0.0

    def multiply(self) -> bool:
        """Multiply the pending row; whether the product is finite."""
        image = self._matmat(self._pending.T.contiguous()).T.to(self.basis)
        self.products += 1
        if not math.isfinite(float(image.sum())) and not bool(image.isfinite().all()):
            return False
        self.basis = torch.cat([self.basis, self._pending])
        self.images = torch.cat([self.images, image])
        projected = gram(self.basis, self.images)
        values, turn = np.linalg.eigh((projected + projected.T) / 2)
        order = np.argsort(-np.abs(values), kind="stable")
        self._ritz = values[order], turn[:, order]
        self._rounding = ritz_rounding(projected, abs(float(values[order[0]])), self.basis.dtype)
        return True

    def leading(self) -> tuple[float, Tensor, float]:
        """Ritz value of largest size, its residual ``[1, D]`` and the bound on its norm; the Ritz vector is kept."""
        values, turn = self._ritz
        first: Array = np.ascontiguousarray(turn[:, :1])
        self.vector = combine(self.basis, first)[0]
        image = combine(self.images, first)[0]
        residual = image - float(values[0]) * self.vector
        return float(values[0]), residual, float(torch.linalg.vector_norm(residual.double())) + self._rounding

    def add(self, row: Tensor) -> bool:
        """Orthonormalise the next row; false where the subspace holds it already."""
        length = torch.linalg.vector_norm(row)
        if not float(length) > 0:
            return False
        try:
            rows = orthonormalise((row / length).contiguous(), self.basis).rows
        except NonFiniteRowsError:
            return False
        self._pending = rows
        return len(rows) == 1

    def pairs(self, keep: int) -> RitzPairs:
        """The Ritz pairs of largest size."""
        values, turn = self._ritz
        return RitzPairs(combine(self.basis, np.ascontiguousarray(turn[:, :keep]))[0], values[:keep])

    def shorten(self, keep: int) -> None:
        """Keep the Ritz vectors of largest size only."""
        turn = np.ascontiguousarray(self._ritz[1][:, :keep])
        self.basis, self.images = combine(self.basis, turn)[0], combine(self.images, turn)[0]


def _mixed(recycled: RitzPairs, probe: Tensor) -> Tensor:
    """The first recycled vector with a tenth of the second and of the probe."""
    vectors = recycled.vectors.to(probe)
    start = vectors[:1].clone()
    length = float(torch.linalg.vector_norm(probe))
    if math.isfinite(length) and length > 0:
        start += _PROBE / length * probe
    if len(vectors) > 1:
        start += _SECOND * vectors[1:2]
    return start


def _corrected(recycled: RitzPairs, value: float, vector: Tensor, residual: Tensor) -> Tensor:
    """The residual preconditioned by the model of the matrix, orthogonal to the Ritz vector in the preconditioned product."""
    vectors = recycled.vectors.to(residual)
    distance = recycled.values - value
    least = _NEAR * abs(value)
    distance = np.where(np.abs(distance) < least, np.copysign(least, distance), distance)

    def preconditioned(row: Tensor) -> Tensor:
        inside = gram(vectors, row)
        weights = inside / distance[:, None] + inside / value
        found: Tensor = combine(vectors, weights)[0] - row / value
        return found

    step, image = preconditioned(residual), preconditioned(vector)
    across = float((vector.double() * image.double()).sum())
    along = float((vector.double() * step.double()).sum())
    found: Tensor = step - (along / across) * image if across else step
    return found
