r"""Sums of weighted rows that no order can change: integers in units of a power of two, which add without rounding.

One unit for every row and part of its columns, from its largest magnitude: :mod:`fastscape.curvature.exact_sum` chooses it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastscape._checks import integer
from fastscape.ops import _native, _tasks
from fastscape.ops._checks import one_type
from fastscape.ops._registry import define
from fastscape.ops.block_gram import adjacent
from fastscape.ops.fixed_point import reference as _reference

_REAL = (torch.float32, torch.float64)


# ---------------------------------------------------------------------- checks


def _check_ends(ends: Sequence[int], columns: int) -> None:
    if not ends or ends[-1] != columns or any(a > b for a, b in zip([0, *ends[:-1]], ends, strict=True)):
        raise ValueError(f"ends must ascend to the {columns} columns, got {list(ends)[:8]}")


def _check_terms(terms: Sequence[Tensor], ends: Sequence[int]) -> None:
    if not terms:
        raise ValueError("terms must hold at least one tensor [K, D], got none; pass zeros")
    one_type("terms", terms, _REAL)
    for position, term in enumerate(terms):
        if term.ndim != 2 or term.shape != terms[0].shape or term.device != terms[0].device:
            found = f"{tuple(term.shape)} on {term.device}"
            raise ValueError(f"terms[{position}] must be [K, D] on one device, as terms[0] {tuple(terms[0].shape)}, got {found}")
    _check_ends(ends, terms[0].shape[1])


def _check_units(units: Tensor, rows: int, ends: Sequence[int], device: torch.device) -> None:
    shape = tuple(units.shape)
    if units.dtype != torch.int64 or units.device != device or shape not in [(limbs, rows, len(ends)) for limbs in (1, 2)]:
        wanted = f"int64 [1 or 2, {rows}, {len(ends)}] on {device}"
        raise ValueError(f"units must be {wanted}, got {units.dtype} of shape {shape} on {units.device}")


def _check_sum(terms: Sequence[Tensor], weights: Tensor, units: Tensor, ends: Sequence[int], first: int, count: int) -> None:
    _check_terms(terms, ends)
    _check_units(units, terms[0].shape[0], ends, terms[0].device)
    if weights.dtype != torch.float64 or tuple(weights.shape) != (len(terms),) or weights.device != units.device:
        found = f"{weights.dtype} of shape {tuple(weights.shape)} on {weights.device}"
        raise ValueError(f"weights must be float64 [{len(terms)}] on {units.device}, one of each term, got {found}")
    integer("first", first, 0, terms[0].shape[1] + 1)
    integer("count", count, 0, terms[0].shape[1] - first + 1)


def _check_value(total: Tensor, units: Tensor, ends: Sequence[int], first: int, dtype: torch.dtype) -> None:
    if total.dtype != torch.int64 or total.ndim != 3 or total.shape[0] != units.shape[0]:
        raise ValueError(f"total must be int64 [limbs, K, n] as units say, got {total.dtype} of shape {tuple(total.shape)}")
    if not ends:
        raise ValueError("ends must name the last column of each part, got none")
    _check_ends(ends, ends[-1])
    _check_units(units, total.shape[1], ends, total.device)
    integer("first", first, 0, ends[-1] - total.shape[2] + 1)
    if dtype not in _REAL:
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")


# ---------------------------------------------------------------------- shapes


def _fake_largest(terms: Sequence[Tensor], ends: Sequence[int]) -> Tensor:
    return terms[0].new_empty((len(terms), terms[0].shape[0], len(ends)), dtype=torch.float64)


def _fake_sum(terms: Sequence[Tensor], weights: Tensor, units: Tensor, ends: Sequence[int], first: int, count: int) -> Tensor:
    del weights, ends, first
    return units.new_empty((units.shape[0], terms[0].shape[0], count))


def _fake_value(total: Tensor, units: Tensor, ends: Sequence[int], first: int, dtype: torch.dtype) -> Tensor:
    del units, ends, first
    return total.new_empty(total.shape[1:], dtype=dtype)


# ---------------------------------------------------------------------- kernels


class _Rows:
    """Terms as the kernels read them: rows at any distance whose elements are adjacent."""

    def __init__(self, terms: Sequence[Tensor], ends: Sequence[int]) -> None:
        self.terms = [adjacent(term) for term in terms]
        self._kept = [
            np.array([term.data_ptr() for term in self.terms], dtype=np.int64),
            np.array([term.stride(0) for term in self.terms], dtype=np.int64),
            np.array(ends, dtype=np.int64),
        ]
        places = [_tasks.address(array) for array in self._kept]
        sizes = {"terms_count": len(terms), "rows": len(terms[0]), "parts": len(ends)}
        self.fields = dict(zip(("terms", "strides", "ends"), places, strict=True)) | sizes
        self.fields["type"] = _tasks.TYPES[terms[0].dtype]


def _native_largest(terms: Sequence[Tensor], ends: Sequence[int]) -> Tensor:
    rows = _Rows(terms, ends)
    block_ends = np.cumsum(-(-np.diff(ends, prepend=0) // _tasks.SUM_BLOCK), dtype=np.int64)
    out = torch.empty(len(terms), len(terms[0]), len(ends), dtype=torch.float64)
    partial = np.empty((len(terms), len(terms[0]), block_ends[-1]))
    where = {"block_ends": _tasks.address(block_ends), "partial": _tasks.address(partial), "largest": out.data_ptr()}
    _native.library.call("largest", _tasks.LargestTask(**rows.fields, **where))
    return out


def _native_sum(terms: Sequence[Tensor], weights: Tensor, units: Tensor, ends: Sequence[int], first: int, count: int) -> Tensor:
    rows, weights, units = _Rows(terms, ends), weights.contiguous(), units.contiguous()
    out = torch.empty(len(units), len(terms[0]), count, dtype=torch.int64)
    where = {"weights": weights.data_ptr(), "units": units.data_ptr(), "out": out.data_ptr()}
    _native.library.call("fixed_sum", _tasks.FixedSumTask(**rows.fields, **where, limbs=len(units), first=first, length=count))
    return out


def _native_value(total: Tensor, units: Tensor, ends: Sequence[int], first: int, dtype: torch.dtype) -> Tensor:
    total, units, columns = total.contiguous(), units.contiguous(), np.array(ends, dtype=np.int64)
    out = torch.empty(total.shape[1:], dtype=dtype)
    task = _tasks.FixedValueTask(
        total=total.data_ptr(),
        rows=total.shape[1],
        parts=len(ends),
        limbs=len(units),
        first=first,
        length=total.shape[2],
        ends=_tasks.address(columns),
        units=units.data_ptr(),
        out=out.data_ptr(),
        type=_tasks.TYPES[dtype],
    )
    _native.library.call("fixed_value", task)
    return out


# ---------------------------------------------------------------------- ops

_LARGEST = define(
    "row_largest(Tensor[] terms, int[] ends) -> Tensor",
    summary="largest magnitudes of rows, by parts",
    reference=_reference.row_largest,
    fake=_fake_largest,
    check=_check_terms,
    kernels={"CPU": _native.kernel(_native_largest)},
)
_SUM = define(
    "fixed_point_sum(Tensor[] terms, Tensor weights, Tensor units, int[] ends, int first, int count) -> Tensor",
    summary="sums of weighted rows in integers",
    reference=_reference.fixed_point_sum,
    fake=_fake_sum,
    check=_check_sum,
    kernels={"CPU": _native.kernel(_native_sum)},
)
_VALUE = define(
    "fixed_point_value(Tensor total, Tensor units, int[] ends, int first, ScalarType dtype) -> Tensor",
    summary="integers in units as numbers",
    reference=_reference.fixed_point_value,
    fake=_fake_value,
    check=_check_value,
    kernels={"CPU": _native.kernel(_native_value)},
)


def row_largest(terms: Sequence[Tensor], ends: Sequence[int]) -> Tensor:
    """Largest magnitude in every part of every row.

    Args:
        terms: B tensors ``[K, D]``, float32 or float64; rows of any stride are read in place if their elements are adjacent.
        ends: of T parts, the columns behind their last ones, ascending to D; a part may be empty.

    Returns:
        float64 ``[B, K, T]``; inf where an element is NaN or inf, 0 for an empty part.

    Raises:
        ValueError: naming the argument.

    Cost: reads the terms once.
    """
    found: Tensor = _LARGEST(list(terms), list(ends))
    return found


def fixed_point_sum(
    terms: Sequence[Tensor], weights: Tensor, units: Tensor, ends: Sequence[int], first: int, count: int
) -> Tensor:
    r"""Sums of weighted terms as integers, :math:`\sum_b \mathrm{round}(w_b f_b / 2^u)`, ties to even.

    Args:
        terms, ends: see :func:`row_largest`.
        weights: float64 ``[B]``.
        units: int64 ``[limbs, K, T]``, the exponents u of the units, with :math:`|w_b f_b| < 2^{u + 62}` / B; those of a second
            limb, which takes what the first rounding leaves, at most as many bits below.
        first, count: the columns that are summed.

    Returns:
        int64 ``[limbs, K, count]``, where NaN and inf count as zero. The same bits on every processor, and in any order.

    Raises:
        ValueError: naming the argument.

    Cost: reads the terms' columns once, writes 8 bytes a limb for each.
    """
    found: Tensor = _SUM(list(terms), weights, units, list(ends), first, count)
    return found


def fixed_point_value(total: Tensor, units: Tensor, ends: Sequence[int], first: int, dtype: torch.dtype) -> Tensor:
    """Numbers that integers of :func:`fixed_point_sum` stand for, ``[K, count]``.

    Args:
        total: int64 ``[limbs, K, count]``.
        units, ends, first: as they were summed with.
        dtype: of the numbers: float32, rounded from float64, or float64, rounded once, but for 2^-50 of that rounding.

    Raises:
        ValueError: naming the argument.
    """
    found: Tensor = _VALUE(total, units, list(ends), first, dtype)
    return found
