r"""Gram matrix of two tall-skinny blocks :math:`L R^\top`, in float64: the projection pass of block Lanczos and Gram-Schmidt."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastscape.ops import _native, _tasks, _triton
from fastscape.ops._registry import define
from fastscape.ops.block_gram.reference import block_gram as _reference


def check_blocks(left: Tensor, right: Tensor) -> None:
    """Check two blocks of rows of one length, dtype and device."""
    for name, block in (("left", left), ("right", right)):
        if block.ndim != 2 or block.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} must be float32 or float64 rows [n, D], got {block.dtype} of shape {tuple(block.shape)}")
    if right.shape[1] != left.shape[1]:
        raise ValueError(f"right must have rows of left's length {left.shape[1]}, got {right.shape[1]}")
    if right.dtype != left.dtype or right.device != left.device:
        found = f"{right.dtype} on {right.device}"
        raise ValueError(f"right must be {left.dtype} on {left.device} as left is, got {found}; convert one of them")


def adjacent(block: Tensor) -> Tensor:
    """The block itself if the elements of its rows are adjacent, at any distance between rows; else a contiguous copy."""
    return block if block.stride(1) == 1 else block.contiguous()


def operands(left: Tensor, right: Tensor) -> dict[str, int]:
    """The fields of a native task that two blocks fill, whatever is done with them."""
    return {
        "left": left.data_ptr(),
        "right": right.data_ptr(),
        "left_rows": left.shape[0],
        "right_rows": right.shape[0],
        "left_stride": left.stride(0),
        "right_stride": right.stride(0),
        "length": left.shape[1],
        "type": _tasks.TYPES[left.dtype],
    }


def _fake(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty((left.shape[0], right.shape[0]), dtype=torch.float64)


def _native_kernel(left: Tensor, right: Tensor) -> Tensor:
    left, right = adjacent(left), adjacent(right)
    blocks = -(-left.shape[1] // _tasks.SUM_BLOCK)
    partial = np.empty((blocks, left.shape[0], right.shape[0]))
    task = _tasks.GramTask(
        **operands(left, right),
        partial=_tasks.address(partial),
    )
    _native.library.call("gram", task)
    out = torch.empty(left.shape[0], right.shape[0], dtype=torch.float64)
    partial.sum(0, out=out.numpy())
    return out


_OPERATOR = define(
    "block_gram(Tensor left, Tensor right) -> Tensor",
    summary="products of rows in float64",
    reference=_reference,
    fake=_fake,
    check=check_blocks,
    kernels={
        "CPU": _native.kernel(_native_kernel),
        "CUDA": _triton.kernel("fastscape.ops.block_gram.triton", "block_gram"),
    },
)


def block_gram(left: Tensor, right: Tensor) -> Tensor:
    r"""Products of the rows of two blocks, :math:`G_{ij} = \sum_e L_{ie} R_{je}`, summed in float64.

    With :func:`fastscape.ops.block_update`, one pass of classical Gram-Schmidt: ``block_update(w, v, block_gram(v, w))``.

    Args:
        left: ``[k, D]``, float32 or float64; rows of any stride are read in place if their elements are adjacent.
        right: ``[m, D]`` of the same dtype and device.

    Returns:
        float64 ``[k, m]``. Products of float32 are exact, so the relative error is that of a float64 sum; the same bits for
        any number of threads.

    Raises:
        ValueError: naming the argument.

    Cost: reads ``left`` once for every 8 rows of ``right`` (CPU; 4 on a GPU) and ``right`` once from memory: k D + m D elements;
    stores nothing of size D.
    """
    result: Tensor = _OPERATOR(left, right)
    return result
