"""Sums of integers in units of powers of two: the specification in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def row_largest(terms: Sequence[Tensor], ends: Sequence[int]) -> Tensor:
    """See :func:`fastscape.ops.fixed_point.row_largest`."""
    rows = [torch.stack([_most(term[:, part]) for _, part in runs(ends, 0, ends[-1], empty=True)], 1) for term in terms]
    return torch.stack(rows).double().nan_to_num_(nan=math.inf, posinf=math.inf)


def fixed_point_sum(
    terms: Sequence[Tensor], weights: Tensor, units: Tensor, ends: Sequence[int], first: int, count: int
) -> Tensor:
    """See :func:`fastscape.ops.fixed_point.fixed_point_sum`."""
    limbs = len(units)
    total = torch.zeros(limbs, len(terms[0]), count, dtype=torch.int64, device=units.device)
    for term, weight in zip(terms, weights, strict=True):
        for index, part in runs(ends, first, count):
            here, of = slice(part.start - first, part.stop - first), units[:, :, index : index + 1]
            values = scaled(term[:, part].to(torch.float64, copy=True), -of[0], weight)
            values.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            for limb in range(limbs):
                whole = values.round()
                total[limb, :, here] += whole.long()
                if limb + 1 < limbs:
                    values = scaled(values.sub_(whole), of[limb] - of[limb + 1])
    return total


def fixed_point_value(total: Tensor, units: Tensor, ends: Sequence[int], first: int, dtype: torch.dtype) -> Tensor:
    """See :func:`fastscape.ops.fixed_point.fixed_point_value`."""
    out = torch.empty(total.shape[1:], dtype=dtype, device=total.device)
    for index, part in runs(ends, first, total.shape[2]):
        here, of = slice(part.start - first, part.stop - first), units[:, :, index : index + 1]
        high = total[0, :, here].double()
        value = scaled(high.clone(), of[0])
        if len(of) == 2:
            left = (total[0, :, here] - high.long()).double()  # what the conversion rounded away, at most 2^9
            value.add_(scaled(left, of[0]).add_(scaled(total[1, :, here].double(), of[1])))
        out[:, here] = value
    return out


def runs(ends: Sequence[int], first: int, count: int, *, empty: bool = False) -> Iterator[tuple[int, slice]]:
    """Parts, which end at these columns, that ``count`` columns from ``first`` touch, and their columns among them."""
    for index, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        low, high = max(start, first), min(stop, first + count)
        if low < high or empty:
            yield index, slice(low, high)


def _most(values: Tensor) -> Tensor:
    return values.abs().amax(1) if values.shape[1] else values.new_zeros(len(values))


def scaled(values: Tensor, exponent: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """``values``, overwritten, times a weight and a power of two, in two steps that stay in the range of float64."""
    half = exponent >> 1
    return values.mul_(weight * _power(half)).mul_(_power(exponent - half))


def _power(exponent: Tensor) -> Tensor:
    """2^n for integers n in [-1022, 1023], by their bits: exp2 need not be exact."""
    return ((exponent + 1023) << 52).view(torch.float64)
