"""Perturbed weights in CUDA C: one launch for all tensors of a dtype, all directions and all radii.

The bits of :mod:`fastscape.ops.perturb.reference`. It answers on CUDA devices where Triton is not installed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape.ops import _cuda

SOURCE = "cuda/perturb.cu"
THREADS, BLOCK = 128, 2048  # four normals at a time and thread, four times: enough to pay for finding the tensor
UNIT = 128  # of blocks: they begin at multiples of it in the whole parameter
END, SLOT = 0, 5  # columns of the segments
TYPES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "BFloat16", torch.float16: "Half"}


def available() -> str:
    """Why this kernel cannot be compiled here; empty if it can."""
    return _cuda.reason(SOURCE)


def options(weight: torch.dtype, out: torch.dtype, distribution: str, *, grouped: bool, shards: bool = False) -> tuple[str, ...]:
    """The macros of one instantiation."""
    return (
        f"-DFS_WEIGHT={TYPES[weight]}",
        f"-DFS_OUT={TYPES[out]}",
        f"-DFS_RADEMACHER={int(distribution == 'rademacher')}",
        f"-DFS_GROUPED={int(grouped)}",
        f"-DFS_SHARDS={int(shards)}",
        f"-DFS_THREADS={THREADS}",
        f"-DFS_BLOCK={BLOCK}",
    )


def segments(sizes: Sequence[int], groups: Sequence[int], slots: Sequence[int], firsts: Sequence[int] = ()) -> NDArray[np.int64]:
    """The rows ``Segment`` of the tensors at ``slots``, none of them empty, int64 ``[len(slots), 7]``."""
    chosen = np.array(slots, dtype=np.int64)
    counts, pieces = np.array(sizes, dtype=np.int64), np.array(groups, dtype=np.int64)
    columns = pieces.cumsum() - pieces
    begins = np.array(list(firsts) or [0] * len(sizes), dtype=np.int64)[chosen]
    blocks = -(-(counts[chosen] + begins % UNIT) // BLOCK)
    ends = blocks.cumsum()
    rows = (ends, ends - blocks, counts[chosen], (counts // pieces)[chosen], columns[chosen], chosen, begins)
    return np.stack(rows, axis=1)


def perturb(
    weights: Sequence[Tensor],
    ids: Tensor,
    seed: int,
    indices: Sequence[int],
    scales: Tensor,
    groups: Sequence[int],
    radii: Sequence[float],
    dtype: torch.dtype,
    distribution: str,
    firsts: Sequence[int] = (),
) -> list[Tensor]:
    """See :func:`fastscape.ops.perturb.perturb`.

    Raises:
        RuntimeError: the kernel does not compile or does not start; the message says what to install.
    """
    flat = [weight.contiguous() for weight in weights]
    sizes = [weight.numel() for weight in flat]
    out = [torch.empty(len(indices), len(radii), size, dtype=dtype, device=ids.device) for size in sizes]
    if not indices or not radii:
        return out
    slots_by_dtype: dict[torch.dtype, list[int]] = {}
    for slot, weight in enumerate(flat):
        if sizes[slot]:
            slots_by_dtype.setdefault(weight.dtype, []).append(slot)
    tables = [segments(sizes, groups, slots, firsts) for slots in slots_by_dtype.values()]
    steps = np.array(radii, dtype=np.float64).view(np.int64)
    addresses = ([tensor.data_ptr() for tensor in tensors] for tensors in (flat, out))
    with torch.cuda.device_of(ids):  # type: ignore[no-untyped-call]
        # the copy also makes the device's context current, which the driver's functions need
        places, targets, chosen, radii_bits, *rows = _on_device([*addresses, indices, steps, *tables], ids.device)
        shared = (places, targets, ids.contiguous(), chosen, scales.contiguous(), radii_bits)
        for weight_dtype, table, row in zip(slots_by_dtype, tables, rows, strict=True):
            grouped = any(groups[slot] > 1 for slot in table[:, SLOT])
            numbers = _numbers(len(table), len(indices), len(radii), scales.shape[1], seed)
            instance = options(weight_dtype, dtype, distribution, grouped=grouped, shards=any(firsts))
            _start(instance, int(table[-1, END]) * len(indices), (row, *shared, *numbers), ids.device)
    return out


def _on_device(arrays: Sequence[Sequence[int] | NDArray[np.int64]], device: torch.device) -> tuple[Tensor, ...]:
    """Flat int64 tensors on the device, by one copy."""
    flat = [np.array(array, dtype=np.int64).ravel() for array in arrays]
    return torch.split(torch.from_numpy(np.concatenate(flat)).to(device), [len(array) for array in flat])


def _numbers(size: int, directions: int, radii: int, columns: int, seed: int) -> tuple[_cuda.Argument, ...]:
    """The kernel's last arguments."""
    return (
        *map(ctypes.c_int32, (size, directions, radii)),
        ctypes.c_int64(columns),
        *map(ctypes.c_uint32, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)),
    )


def _start(instance: tuple[str, ...], blocks: int, arguments: tuple[Any, ...], device: torch.device) -> None:
    """Compile at the first call, then launch."""
    _cuda.launch(_cuda.function(SOURCE, "perturb", instance, device.index), blocks, THREADS, arguments, device.index)
