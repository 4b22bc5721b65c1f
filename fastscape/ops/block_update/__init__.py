r"""Rows minus combinations of other rows :math:`R - C^\top L`, and their squared norms: the update pass of Gram-Schmidt."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastscape.ops import _native, _tasks, _triton
from fastscape.ops._registry import define
from fastscape.ops.block_gram import adjacent, check_blocks, operands
from fastscape.ops.block_update.reference import block_update as _reference


def _check(right: Tensor, left: Tensor, coefficients: Tensor) -> None:
    check_blocks(left, right)
    shape = (left.shape[0], right.shape[0])
    if coefficients.dtype != torch.float64 or tuple(coefficients.shape) != shape:
        found = f"{coefficients.dtype} of shape {tuple(coefficients.shape)}"
        raise ValueError(f"coefficients must be float64 of shape {shape}, one row per row of left, got {found}")
    if coefficients.device != left.device:
        raise ValueError(f"coefficients is on {coefficients.device}, left is on {left.device}; move them to one device")


def _fake(right: Tensor, left: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    out = right.new_empty(right.shape)
    return out, right.new_empty((right.shape[0],), dtype=torch.float64)


def _native_kernel(right: Tensor, left: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    left, right, coefficients = adjacent(left), adjacent(right), coefficients.contiguous()
    out = torch.empty(right.shape, dtype=right.dtype)
    squares = np.empty((-(-right.shape[1] // _tasks.SUM_BLOCK), right.shape[0]))
    task = _tasks.UpdateTask(
        **operands(left, right),
        out=out.data_ptr(),
        coefficients=coefficients.data_ptr(),
        squares=_tasks.address(squares),
    )
    _native.library.call("update", task)
    return out, torch.from_numpy(squares.sum(0))


_OPERATOR = define(
    "block_update(Tensor right, Tensor left, Tensor coefficients) -> (Tensor, Tensor)",
    summary="rows minus combinations of rows, and their norms",
    reference=_reference,
    fake=_fake,
    check=_check,
    kernels={
        "CPU": _native.kernel(_native_kernel),
        "CUDA": _triton.kernel("fastscape.ops.block_update.triton", "block_update"),
    },
)


def block_update(right: Tensor, left: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    r"""Rows minus combinations of other rows, and the squared norms of the results.

    .. math:: R'_j = R_j - \sum_i c_{ij} L_i, \qquad s_j = \sum_e (R'_{je})^2

    computed in float64 and rounded once; the norm is that of the rounded rows, so that ``out / sqrt(s)`` has norm one.

    Args:
        right: ``[m, D]``, float32 or float64; rows of any stride are read in place if their elements are adjacent.
        left: ``[k, D]`` of the same dtype and device.
        coefficients: float64 ``[k, m]``, usually ``block_gram(left, right)``.

    Returns:
        the rows, a new ``[m, D]`` tensor of the same dtype, and their squared norms, float64 ``[m]``; the same bits for any
        number of threads.

    Raises:
        ValueError: naming the argument.

    Cost: reads ``left`` once for every 8 rows of ``right`` and ``right`` once, writes m D elements.
    """
    out, squares = _OPERATOR(right, left, coefficients)
    return out, squares
