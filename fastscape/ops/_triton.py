"""Shared parts of the Triton launchers: whether Triton is here, its import at the first call, block sizes, launch tables.

Triton is not imported with the package: that costs time, and ``TRITON_INTERPRET`` counts only until then.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape.ops._registry import Kernel, imported_later

AVAILABLE = importlib.util.find_spec("triton") is not None
VECTOR_BYTES = 16  # of the widest memory instruction: both addresses and rows must be multiples for it
Key = TypeVar("Key", bound=Hashable)
UNIT = 128  # elements of the counter of most: blocks of noise begin at multiples of it
LAYOUTS = 64  # kept: one per set of parameters, normalisation and block size in use


def kernel(module: str, function: str, limits: str = "") -> Kernel:
    """The launcher ``function`` of ``module``, imported at its first call; without Triton the reason why there is none."""
    if not AVAILABLE:
        return Kernel(None, "Triton", "triton is not installed")
    return Kernel(imported_later(module, function), "Triton", limits=limits)


def ceil_div(numerator: int, denominator: int) -> int:
    """Round the quotient up."""
    return -(-numerator // denominator)


@dataclass(frozen=True)
class Config:
    """Compile-time settings of a kernel: elements a program makes at a time, warps of a program."""

    block: int
    warps: int


def noise_config(distribution: str) -> Config:
    """Elements and warps of a program that writes noise.

    Thirty-two normals a thread spread the addressing within 72 registers (60 instructions an element on sm_90, 63 with sixteen).
    Signs: 64 elements a thread, as all warps compute all counters (6.6 instructions an element, 9.3 with four warps).
    """
    return Config(4096, 4) if distribution == "gaussian" else Config(4096, 2)


def perturb_config() -> Config:
    """Elements and warps of a program that keeps weights and noise in registers for all radii.

    Sixteen elements a thread: twice as many save 5 of 70 instructions an element, and spill where every row has its own scale.
    """
    return Config(2048, 4)


def sum_warps(distribution: str) -> int:
    """Warps of a program that sums 1024 lanes: eight normals or sixteen signs a thread and step."""
    return 4 if distribution == "gaussian" else 2


def language_type(dtype: torch.dtype) -> Any:
    """Triton's dtype of the same name."""
    return getattr(importlib.import_module("triton.language"), str(dtype).removeprefix("torch."))


def answers(tensors: Sequence[Tensor]) -> bool:
    """Whether kernels can take these tensors as they are: Triton is here, they are contiguous and on one CUDA device."""
    return AVAILABLE and all(t.is_cuda and t.device == tensors[0].device and t.is_contiguous() for t in tensors)


def key(seed: int) -> tuple[int, int]:
    """The generator's two key words as int32: a launch compiles once for all seeds."""
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    return low - ((low >> 31) << 32), high - ((high >> 31) << 32)


def on_device(values: Sequence[int] | NDArray[np.int64], device: torch.device) -> Tensor:
    """An int64 table for kernels on the current stream; the host does not wait for those before."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device, non_blocking=True)


def settled(table: Tensor) -> Tensor:
    """A table that kernels on any stream may read later."""
    if table.is_cuda:
        torch.cuda.current_stream(table.device).synchronize()
    return table


@dataclass(frozen=True)
class Layout:
    """Blocks of elements of several pieces, for a one-dimensional grid.

    Attributes:
        table: int64 ``[5, T]`` on the device; rows: end of each piece's blocks, their start, elements, first element in the whole
            parameter, slot of the tensor.
        blocks: number of blocks in all.
        pieces: T.
    """

    table: Tensor
    blocks: int
    pieces: int


@functools.lru_cache(maxsize=LAYOUTS)
def layout(
    slots: tuple[int, ...],
    counts: tuple[int, ...],
    groups: tuple[int, ...],
    block: int,
    device: torch.device,
    firsts: tuple[int, ...] = (),
    unit: int = 1,
) -> Layout:
    """Cut tensors in ``groups`` equal pieces each and those in blocks.

    Args:
        slots: position of each tensor in the caller's list.
        counts: elements of each tensor.
        groups: pieces of each tensor.
        block: elements of a block.
        device: where the kernel runs.
        firsts: element of the whole parameter that each tensor begins with; default 0.
        unit: blocks begin at multiples of it in the whole parameter.
    """
    many = np.array(groups, dtype=np.int64)
    lengths = np.array([count // group for count, group in zip(counts, groups, strict=True)], dtype=np.int64)
    elements = np.repeat(lengths, many)
    within = np.arange(many.sum()) - np.repeat(many.cumsum() - many, many)
    begins = within * elements + np.repeat(np.array(firsts or (0,) * len(counts), dtype=np.int64), many)
    blocks = -(-(elements + begins % unit) // block)
    ends = blocks.cumsum()
    rows = (ends, ends - blocks, elements, begins, np.repeat(np.array(slots, dtype=np.int64), many))
    return Layout(settled(on_device(np.stack(rows), device)), int(blocks.sum()), len(elements))


def noise_layout(slots: tuple[int, ...], sizes: Sequence[int], firsts: Sequence[int], block: int, device: torch.device) -> Layout:
    """The layout of undivided tensors, with blocks that begin where the generator's counters do."""
    counts, begins = (tuple(numbers[t] for t in slots) for numbers in (sizes, firsts))
    return layout(slots, counts, (1,) * len(slots), block, device, begins, UNIT)


def begin_of_whole(tensor: Tensor, first: int) -> int:
    """Address that the whole parameter would begin at, of which a tensor holds the elements from ``first`` on.

    Kernels count elements in the whole parameter, as the generator does.
    """
    return tensor.data_ptr() - first * tensor.element_size()


def aligned(addresses: Sequence[int], row_bytes: Sequence[int], length: int, first: int = 0) -> bool:
    """Whether every row of a tensor begins at a multiple of 16 bytes, and its pieces at multiples of 4 elements."""
    return length % 4 == 0 and first % 4 == 0 and not any(number % VECTOR_BYTES for number in (*addresses, *row_bytes))


def slots_by(keys: Sequence[Key], sizes: Sequence[int]) -> dict[Key, tuple[int, ...]]:
    """Positions of the tensors that one launch takes: equal keys, not empty."""
    found: dict[Key, tuple[int, ...]] = {}
    for slot, (value, size) in enumerate(zip(keys, sizes, strict=True)):
        if size:
            found[value] = (*found.get(value, ()), slot)
    return found
