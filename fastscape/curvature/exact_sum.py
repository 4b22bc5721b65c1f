r"""Weighted sums over batches that have the same bits in whatever order, and by however many processes, they are taken.

.. math:: q_b = \mathrm{round}(w_b f_b / \delta), \qquad \sum_b w_b f_b = \delta \sum_b q_b, \qquad
          \delta = 2^{e - 62 + \lceil \log_2 B \rceil}

for the least e with :math:`|w_b f_b| < 2^e` for all elements of a parameter in one vector. Sums of 64-bit integers are exact
and cannot overflow here, :math:`|\sum q_b| \le 2^{62}`, so that only the sum is rounded, once. The error is at most
:math:`B \delta / 2`, about :math:`B^2 2^{-62}` of the largest term; a second limb, of what the first rounding leaves, makes
:math:`\delta` as much smaller again.

Source: the idea is that of Demmel & Nguyen, "Fast reproducible floating-point summation" (2013).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastscape.numerics.arrays import Array
from fastscape.ops import fixed_point_sum, fixed_point_value, row_largest

_BITS = 62
_PIECE = 1 << 22  # bytes of the integers that are exchanged at once
_LOWEST = -1074  # exponent of the smallest float64, of which all are multiples
_MANY = 64  # terms above which one limb leaves less than float32 needs for elements 2^-24 of the largest


class Reduction(Protocol):
    """Element-wise reductions over processes, in place; each returns the same bits on all of them."""

    def maximum(self, tensor: Tensor) -> Tensor:
        """Largest of each element, none of them NaN."""
        ...

    def add(self, tensor: Tensor) -> Tensor:
        """Sum of each element."""
        ...


class Alone:
    """The reduction over a single process."""

    def maximum(self, tensor: Tensor) -> Tensor:
        """See :class:`Reduction`."""
        return tensor

    def add(self, tensor: Tensor) -> Tensor:
        """See :class:`Reduction`."""
        return tensor


def limbs_for(dtype: torch.dtype, terms: int) -> int:
    """Limbs that sums of ``terms`` numbers of a dtype are taken in."""
    return 2 if dtype == torch.float64 or terms > _MANY else 1


def exact_sum(
    terms: Sequence[Tensor],
    weights: Sequence[float],
    parts: Sequence[slice],
    *,
    count: int,
    limbs: int,
    over: Reduction,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    r"""Sum of ``weights[b] * terms[b]`` over the terms of all processes.

    Args:
        terms: those of this process, ``[K, D]`` each; at least one, of zeros where it has none of its own.
        weights: of each.
        parts: of the columns, each with a quantum of its own.
        count: B, the number of terms of all processes together.
        limbs: 1 or 2.
        over: the processes.
        dtype: of the result.

    Returns:
        ``[K, D]``, rounded from float64, the same bits in all processes. A row with a term that is NaN or inf is NaN.

    Cost: reads the terms twice, and exchanges 8 bytes a limb for each element.
    """
    top = over.maximum(largest(terms, weights, parts))
    return summed(terms, weights, parts, top, count=count, limbs=limbs, over=over, dtype=dtype)


def largest(terms: Sequence[Tensor], weights: Sequence[float], parts: Sequence[slice]) -> Tensor:
    """Largest ``|weights[b] * terms[b]|`` in every row and part, ``[K, parts]`` in float64; inf where one is not finite."""
    sizes = row_largest(terms, [part.stop for part in parts])
    scales = torch.tensor(weights, dtype=torch.float64, device=sizes.device)
    return (sizes * scales[:, None, None]).amax(0).nan_to_num_(nan=math.inf, posinf=math.inf)


def summed(
    terms: Sequence[Tensor],
    weights: Sequence[float],
    parts: Sequence[slice],
    top: Tensor,
    *,
    count: int,
    limbs: int,
    over: Reduction,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The sum of :func:`exact_sum`, whose largest term of all processes ``[K, parts]`` is known, rounded to ``dtype``.

    Columns go a piece at a time, so that integers stay in the cache on their way through the processes.
    """
    bits = _BITS - math.ceil(math.log2(max(count, 1)))
    bad = ~top.isfinite()
    exponents = torch.frexp(top.masked_fill(bad, 0.0)).exponent.long()
    units = torch.stack([(exponents - (limb + 1) * bits).clamp_(min=_LOWEST) for limb in range(limbs)])
    scales = torch.tensor(weights, dtype=torch.float64, device=top.device)
    ends = [part.stop for part in parts]
    out = torch.empty(terms[0].shape, dtype=dtype, device=top.device)
    rows, columns = out.shape
    step = max(1, _PIECE // (8 * limbs * max(1, rows)))
    for first in range(0, columns, step):
        total = fixed_point_sum(terms, scales, units, ends, first, min(step, columns - first))
        out[:, first : first + step] = fixed_point_value(over.add(total), units, ends, first, dtype)
    out[bad.any(1)] = math.nan
    return out


def disjoint(own: Array, over: Reduction, device: torch.device) -> Array:
    """Float64 numbers of which every process knows some and has zero for the others: all of them, bit for bit."""
    bits = torch.from_numpy(own).contiguous().view(torch.int64).to(device)
    found: Array = over.add(bits.clone()).cpu().view(torch.float64).numpy()
    return found
