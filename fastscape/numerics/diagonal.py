r"""Diagonal of a symmetric matrix A from its products with random signs, and sums of it over layers.

Hutchinson: :math:`E[\omega \circ A\omega] = \mathrm{diag} A`, a mean of independent terms. XDiag: with the projector
:math:`P_{(i)}` on the range of :math:`A\Omega` without probe i,

.. math:: d_i = \mathrm{diag}(P_{(i)} A) + \omega_i \circ (I - P_{(i)}) A \omega_i

and their mean over i. Every :math:`d_i` is unbiased; they are *not* independent, as each basis holds the other probes. Let
:math:`\sigma_m^2` be the variances by the orders of Hoeffding's decomposition of the mean. The variance of the :math:`d_i` over n
then estimates :math:`\sum \sigma_m^2 / m`, too little (intervals of 76 to 95 % in place of 95), the jackknife that leaves out a
probe :math:`\sum m\,\sigma_m^2`, too much (95 to 100 %). By Cauchy and Schwarz their geometric mean is at least
:math:`\sum \sigma_m^2`, with equality where one order leads: 1 for Hutchinson, 2 for XDiag of a flat spectrum.

Source: Bekas, Kokiopoulou & Saad, "An estimator for the diagonal of a matrix" (2007); Epperly, Tropp & Webber, "XTrace: making
the most of every sample in stochastic trace estimation" (arXiv 2301.07825), section 4; Efron & Stein, "The jackknife estimate of
variance" (1981).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate

PROBES = "Student's t over probes"
JACKKNIFE = "Student's t, geometric mean of the variances of leave-one-out estimates and of the jackknife over probes"
_NUMBERS = 1 << 22  # of a chunk, in float64
_PARALLEL = 1e-12  # 1 - cos^2 below which two directions are one, to rounding


@dataclass(frozen=True)
class Means:
    """Estimates of every element and of their sums.

    Attributes:
        values, variances: of the elements ``[D]``; variances are NaN below two probes.
        sums, sum_variances: of the layers, and of everything ``[L + 1]``.
        freedom: degrees of freedom of the sums' variances ``[L + 1]``.
        count: probes.
        method: how intervals are made, in words.
    """

    values: Array
    variances: Array
    sums: Array
    sum_variances: Array
    freedom: Array
    count: int
    method: str

    def estimate(self, index: int, rounding: float = 0.0) -> Estimate:
        """A sum with its 95 % interval, which ``rounding`` widens to either side."""
        value, error = float(self.sums[index]), float(np.sqrt(self.sum_variances[index]))
        half = float(stats.t.ppf(0.975, self.freedom[index])) * error + rounding
        return Estimate(value, float(np.hypot(error, rounding / 2)), (value - half, value + half), self.count, self.method)


def projected(basis: Tensor, images: Tensor) -> Tensor:
    r"""The diagonal of :math:`Q Q^\top A`, float64 ``[D]``, from orthonormal rows Q' and their products ``[k, D]``."""
    found = torch.zeros(basis.shape[1], dtype=torch.float64, device=basis.device)
    for row, image in zip(basis, images, strict=True):
        found += row.double() * image
    return found


def xdiag(basis: Tensor, images: Tensor, factor: Array, layers: Sequence[slice], signs: Callable[[int], Tensor]) -> Means:
    r"""XDiag, with the variances of this module.

    Args:
        basis: orthonormal rows of the range of :math:`A\Omega` ``[n, D]``, of n >= 2 probes.
        images: their products with A.
        factor: R with :math:`A\Omega = Q R` ``[n, n]``, invertible.
        layers: ranges of the columns, in order.
        signs: rows of :math:`\Omega^\top` in a layer, by its number ``[n, width]``.

    Cost: 8 D n^2 multiplications; memory of some chunks of 32 MiB beside the signs of a layer.
    """
    n, device = len(factor), basis.device
    turn, within, alone, cross = (torch.from_numpy(part).to(device) for part in _directions(factor))
    values, variances = (torch.empty(basis.shape[1], dtype=torch.float64, device=device) for _ in range(2))
    sums = torch.zeros(2, len(layers), n, dtype=torch.float64, device=device)
    for number, columns, drawn in _chunks(layers, signs, n):
        q, z, w = basis[:, columns].double(), images[:, columns].double(), drawn.double() * within[:, None]
        whole = (q * z).sum(0)
        q, z = turn.T @ q, turn.T @ z
        apart, along = q * z, w * q
        each = whole - apart + along
        pairs = alone @ apart + alone.sum(1)[:, None] * apart - q * (cross @ z) - z * (cross @ q) - alone @ along
        less = whole - (pairs + q * (cross @ w)) / (n - 1)  # the mean of all without a probe
        values[columns], variances[columns] = each.mean(0), _variance(each, less, 0)
        sums[0, number] += each.sum(1)
        sums[1, number] += less.sum(1)
    both = torch.cat([sums, sums.sum(1, keepdim=True)], dim=1)
    means, spread = both[0].mean(1).cpu().numpy(), _variance(both[0], both[1], 1).cpu().numpy()
    freedom = np.full(len(layers) + 1, n - 1.0)
    return Means(values.cpu().numpy(), variances.cpu().numpy(), means, spread, freedom, n, JACKKNIFE)


def _directions(factor: Array) -> tuple[Array, Array, Array, Array]:
    r"""What leaving out probes takes from the basis, in its coordinates.

    Returns:
        unit vectors :math:`s_i \propto R^{-\top} e_i` as columns, orthogonal to all columns of R but the i-th; :math:`s_i^\top R
        e_i`; and for pairs, with :math:`g = s_i^\top s_j`, the entries :math:`1 / (1 - g^2)` and :math:`g / (1 - g^2)` of the
        inverse of their Gram matrix (zero for i = j).
    """
    inverse = np.linalg.inv(factor).T
    norms = np.linalg.norm(inverse, axis=0)
    turn = inverse / norms
    cosines = turn.T @ turn
    np.fill_diagonal(cosines, 0.0)
    alone = 1 / np.maximum(1 - cosines**2, _PARALLEL)
    np.fill_diagonal(alone, 0.0)
    return turn, 1 / norms, alone, cosines * alone


def _variance(each: Tensor, less: Tensor, dim: int) -> Tensor:
    n = each.shape[dim]
    jackknife = (n - 1) ** 2 / n * less.var(dim)
    return torch.sqrt(each.var(dim) / n * jackknife)


def _chunks(layers: Sequence[slice], signs: Callable[[int], Tensor], rows: int) -> Iterator[tuple[int, slice, Tensor]]:
    width = max(1, _NUMBERS // rows)
    for number, layer in enumerate(layers):
        drawn = signs(number)
        for first in range(layer.start, layer.stop, width):
            columns = slice(first, min(first + width, layer.stop))
            yield number, columns, drawn[:, columns.start - layer.start : columns.stop - layer.start]


class Residuals:
    r"""Means of :math:`\omega \circ (I - P) A \omega` over independent signs, for a projector P that does not depend on them.

    Memory: two vectors in float64.
    """

    def __init__(self, size: int, layers: Sequence[slice], device: torch.device) -> None:
        self._layers, self.count = list(layers), 0
        self._mean = torch.zeros(size, dtype=torch.float64, device=device)
        self._squares = torch.zeros_like(self._mean)
        self._sums: list[Array] = []

    def add(self, signs: Tensor, rest: Tensor) -> None:
        r"""Rows :math:`\omega` and :math:`(I - P) A \omega` ``[b, D]``."""
        for row, image in zip(signs, rest, strict=True):
            term = row.double() * image
            self.count += 1
            off = term - self._mean
            self._mean += off / self.count
            self._squares += off * (term - self._mean)
            self._sums.append(np.array([float(term[layer].sum()) for layer in self._layers]))

    def means(self, exact: Tensor) -> Means:
        """The mean of what was added to the diagonal of PA, ``exact``."""
        n = self.count
        variances = self._squares / (n * (n - 1)) if n > 1 else torch.full_like(self._mean, torch.nan)
        known = np.array([float(exact[layer].sum()) for layer in self._layers])
        sums = np.array(self._sums).reshape(n, len(self._layers))
        each = np.column_stack([sums, sums.sum(1)])
        spread = each.var(0, ddof=1) / n if n > 1 else np.full(each.shape[1], np.nan)
        whole = np.append(known, known.sum()) + (each.mean(0) if n else 0.0)
        values = (exact + self._mean).cpu().numpy()
        return Means(values, variances.cpu().numpy(), whole, spread, np.full(len(whole), n - 1.0), n, PROBES)


def together(first: Means, second: Means) -> Means:
    """The mean of both, weighted by probes, where the errors of one are uncorrelated with those of the other.

    Degrees of freedom: Satterthwaite, "An approximate distribution of estimates of variance components" (1946).
    """
    count = first.count + second.count
    a, b = first.count / count, second.count / count
    one, two = a**2 * first.sum_variances, b**2 * second.sum_variances
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (one + two) ** 2 / (one**2 / first.freedom + two**2 / second.freedom)
    return Means(
        a * first.values + b * second.values,
        a**2 * first.variances + b**2 * second.variances,
        a * first.sums + b * second.sums,
        one + two,
        np.where(np.isfinite(found), found, count - 2.0),
        count,
        first.method,
    )
