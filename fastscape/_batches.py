"""Batches: read them once, move and cast them, and fingerprint them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastscape._checks import counted
from fastscape._state import preserved_rng
from fastscape._structures import Arrays, arrays_of, digest, leaves, map_tensors, raw_bytes, strided, tensors_of

Batch = Any

_COMPLEX = {
    torch.float64: torch.complex128,
    torch.complex128: torch.complex128,
}  # torch hardly computes with narrower than complex64


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on ``device`` (host: the kernel's estimate, or its free pages)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def materialise(data: Iterable[Batch], memory: int | None) -> list[Batch]:
    """Read ``data`` once into memory, so that every evaluation sees the same batches.

    Tensors are copied: a loader may reuse its buffers, and the user may go on using theirs. Reading leaves the global
    random generators where they were, although a shuffling loader draws from them.

    Raises:
        ValueError: no batches, or more bytes than ``memory`` (default: half of what is available).
        TypeError: ``data`` is not an iterable of batches, or a batch holds what cannot be copied.
    """
    if isinstance(data, (Tensor, Mapping, str)) or not isinstance(data, Iterable):
        raise TypeError(
            f"data must be an iterable of batches (a list or a DataLoader), got {type(data).__name__}; "
            "wrap a single batch as [batch]"
        )
    limit = available_memory(torch.device("cpu")) // 2 if memory is None else memory
    batches: list[Batch] = []
    size = 0
    with preserved_rng(), torch.inference_mode(False):
        for batch in data:
            size += _bytes(batch)
            if size > limit:
                raise ValueError(
                    f"data must fit in memory={limit / 2**20:.0f} MiB, got {counted(len(batches) + 1, 'batch')} of "
                    f"{size / 2**20:.0f} MiB and more to come; pass fewer batches (itertools.islice) or a larger memory="
                )
            batches.append(_copied(batch, len(batches)))
    if not batches:
        raise ValueError("data must hold at least one batch, got none; an iterator that was read before is empty")
    return batches


def _copied(batch: Batch, index: int) -> Batch:
    """A batch of its own, whose tensors do not belong to a graph."""
    try:
        return map_tensors(batch, lambda tensor: tensor.detach().clone(), np.copy)
    except TypeError as error:
        raise TypeError(f"{error}: data[{index}]") from error


def _bytes(batch: Batch) -> int:
    """Bytes of the tensors and arrays of a batch."""
    tensors = sum(part.nbytes for tensor in tensors_of(batch) for part in strided(tensor))
    return tensors + sum(array.nbytes for array in arrays_of(batch))


def fitted_dtype(found: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    """What a dtype is cast to for a model in ``dtype``: real ones to it, complex ones to its width, others to nothing.

    Complex numbers are of at least 32-bit parts: complex128 beside float64, and complex64 beside every other dtype.
    """
    if dtype is None:
        return found
    if found.is_complex:
        return _COMPLEX.get(dtype, torch.complex64)
    return dtype if found.is_floating_point else found


def cast(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on a device and in the :func:`fitted_dtype`; itself where it is that already."""
    return tensor.to(device=device, dtype=fitted_dtype(tensor.dtype, dtype))


def placed(batch: Batch, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
    """Move a batch to ``device`` and cast its numbers to the :func:`fitted_dtype`; integers and masks keep theirs.

    The batch sizes of a packed sequence stay on the CPU, where torch wants them. NumPy arrays of floats are cast too, where
    NumPy has the dtype.
    """
    still = {id(packed.batch_sizes) for packed in leaves(batch, PackedSequence)}

    def place(tensor: Tensor) -> Tensor:
        return tensor if id(tensor) in still else cast(tensor, device, dtype)

    return map_tensors(batch, place, None if dtype is None else lambda array: _cast_array(array, dtype))


def _cast_array(array: Arrays, dtype: torch.dtype) -> Arrays:
    """An array of floats or complex numbers in the fitted dtype; float32 where NumPy has none."""
    if array.dtype.kind not in "fc" or array.dtype.itemsize > 16:
        return array.copy()
    wanted = fitted_dtype(torch.from_numpy(np.empty(0, array.dtype.newbyteorder("="))).dtype, dtype)
    names = {torch.float16: np.float16, torch.float64: np.float64, torch.complex64: np.complex64, torch.complex128: np.complex128}
    return array.astype(names.get(wanted, np.float32))


def fingerprint(items: Iterable[tuple[str, Batch]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of every tensor, in order, and of what else there is in a batch."""
    whole = hashlib.sha256()
    for name, batch in items:
        whole.update(f"{name}:{type(batch).__name__};".encode())
        parts = batch if type(batch) in (tuple, list) else [batch]
        if not all(isinstance(part, Tensor) and part.layout == torch.strided and not part.is_nested for part in parts):
            whole.update(digest(batch))
            continue
        for tensor in parts:
            whole.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
            for part in raw_bytes(tensor):
                whole.update(part)
    return whole.hexdigest()
