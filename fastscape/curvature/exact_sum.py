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

_BITS = 62
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
) -> Tensor:
    r"""Sum of ``weights[b] * terms[b]`` over the terms of all processes.

    Args:
        terms: those of this process, ``[K, D]`` each; at least one, of zeros where it has none of its own.
        weights: of each.
        parts: of the columns, each with a quantum of its own.
        count: B, the number of terms of all processes together.
        limbs: 1 or 2.
        over: the processes.

    Returns:
        float64 ``[K, D]``, the same bits in all processes. A row with a term that is NaN or inf is NaN.
    """
    top = over.maximum(largest(terms, weights, parts))
    return summed(terms, weights, parts, top, count=count, limbs=limbs, over=over)


def largest(terms: Sequence[Tensor], weights: Sequence[float], parts: Sequence[slice]) -> Tensor:
    """Largest ``|weights[b] * terms[b]|`` in every row and part, ``[K, parts]`` in float64; inf where one is not finite."""
    top = terms[0].new_zeros(len(terms[0]), len(parts), dtype=torch.float64)
    for term, weight in zip(terms, weights, strict=True):
        sizes = [term[:, part].abs().amax(1) if part.stop > part.start else term.new_zeros(len(term)) for part in parts]
        top = torch.maximum(top, torch.stack(sizes, 1).double().mul_(weight))  # which keeps NaN
    return top.nan_to_num_(nan=math.inf, posinf=math.inf)


def summed(
    terms: Sequence[Tensor],
    weights: Sequence[float],
    parts: Sequence[slice],
    top: Tensor,
    *,
    count: int,
    limbs: int,
    over: Reduction,
) -> Tensor:
    """The sum of :func:`exact_sum`, whose largest term of all processes ``[K, parts]`` is known."""
    bits = _BITS - math.ceil(math.log2(max(count, 1)))
    bad = ~top.isfinite()
    exponents = torch.frexp(top.masked_fill(bad, 0.0)).exponent.long()
    units = [(exponents - (limb + 1) * bits).clamp_(min=_LOWEST) for limb in range(limbs)]
    total = torch.zeros(limbs, *terms[0].shape, dtype=torch.int64, device=top.device)
    some = bool(bad.any())
    for term, weight in zip(terms, weights, strict=True):
        for index, part in enumerate(parts):
            values = _scaled(term[:, part].to(torch.float64, copy=True), -units[0][:, index : index + 1], weight)
            if some:
                values.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            for limb in range(limbs):
                whole = values.round()
                total[limb, :, part] += whole.long()
                if limb + 1 < limbs:
                    values = _scaled(values.sub_(whole), (units[limb] - units[limb + 1])[:, index : index + 1])
    total = over.add(total)
    out = torch.empty(terms[0].shape, dtype=torch.float64, device=top.device)
    for index, part in enumerate(parts):
        out[:, part] = _rounded(total[:, :, part], [unit[:, index : index + 1] for unit in units])
    out[bad.any(1)] = math.nan
    return out


def _rounded(limbs: Tensor, units: Sequence[Tensor]) -> Tensor:
    """Integers of one or two limbs, in units of powers of two, as float64: rounded once, but for 2^-50 of that rounding."""
    high = limbs[0].double()
    if len(units) == 1:
        return _scaled(high, units[0])
    left = (limbs[0] - high.long()).double()  # what the conversion rounded away, at most 2^9
    return _scaled(high, units[0]).add_(_scaled(left, units[0]).add_(_scaled(limbs[1].double(), units[1])))


def _scaled(values: Tensor, exponent: Tensor, weight: float = 1.0) -> Tensor:
    """``values``, overwritten, times a weight and a power of two, in two steps that stay in the range of float64."""
    half = torch.div(exponent, 2, rounding_mode="floor")
    return values.mul_(weight * _power(half)).mul_(_power(exponent - half))


def _power(exponent: Tensor) -> Tensor:
    """2^n for integers n in [-1022, 1023], by their bits: exp2 need not be exact."""
    return ((exponent + 1023) << 52).view(torch.float64)


def disjoint(own: Array, over: Reduction, device: torch.device) -> Array:
    """Float64 numbers of which every process knows some and has zero for the others: all of them, bit for bit."""
    bits = torch.from_numpy(own).contiguous().view(torch.int64).to(device)
    found: Array = over.add(bits.clone()).cpu().view(torch.float64).numpy()
    return found
