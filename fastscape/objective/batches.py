"""Batches: read them once, move and cast them, and fingerprint them."""

from __future__ import annotations

import hashlib
import math
import operator
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastscape._checks import counted
from fastscape._clock import now
from fastscape._state import preserved_rng
from fastscape.objective.structures import Arrays, arrays_of, digest, leaves, map_tensors, raw_bytes, strided, tensors_of

_UNKNOWN_BATCHES, _UNKNOWN_BYTES = 4096, 4 << 30  # read of data that may have no end: more than a probe goes through in its time
_SILENT = 10.0  # seconds after which a message says that such data are being read
_SAMPLE = 16  # batches from which the bytes of all are foreseen

Batch = Any

_COMPLEX = {
    torch.float64: torch.complex128,
    torch.complex128: torch.complex128,
}  # torch hardly computes with narrower than complex64


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on ``device`` (host: without swapping, as the system estimates)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def materialise(data: Iterable[Batch], memory: int | None) -> list[Batch]:
    """Read ``data`` once into memory, so that every evaluation sees the same batches.

    Tensors are copied: a loader may reuse its buffers, and the user may go on using theirs. Reading leaves the global
    random generators where they were, although a shuffling loader draws from them.

    Raises:
        ValueError: no batches, or more bytes than ``memory`` (default: half of what is available); without ``memory``, data of
            unknown length, which may have no end, beyond 4096 batches or 4 GiB.
        TypeError: ``data`` is not an iterable of batches, or a batch holds what cannot be copied.

    Warns:
        UserWarning: data of unknown length that is still read after 10 seconds, and whenever that has doubled.
    """
    if isinstance(data, (Tensor, Mapping, str)) or not isinstance(data, Iterable):
        indexed = hasattr(data, "__getitem__") and not isinstance(data, (Tensor, Mapping, str))
        remedy = "torch.utils.data.DataLoader(data, batch_size=...)" if indexed else "wrap a single batch as [batch]"
        raise TypeError(f"data must be an iterable of batches (a list or a DataLoader), got {type(data).__name__}; {remedy}")
    reading = _Reading(data, memory)
    batches: list[Batch] = []
    with preserved_rng(), torch.inference_mode(False):
        for batch in data:
            reading.take(_bytes(batch))
            batches.append(_copied(batch, len(batches)))
    if not batches:
        raise ValueError("data must hold at least one batch, got none; an iterator that was read before is empty")
    return batches


def _copied(batch: Batch, index: int) -> Batch:
    """A batch of its own, whose tensors do not belong to a graph."""
    try:
        return map_tensors(batch, _copy, np.copy)
    except TypeError as error:
        raise TypeError(f"{error}: data[{index}]") from error


def _bytes(batch: Batch) -> int:
    """Bytes of the tensors and arrays of a batch."""
    tensors = sum(part.nbytes for tensor in tensors_of(batch) for part in strided(tensor))
    return tensors + sum(array.nbytes for array in arrays_of(batch))


def fitted_dtype(found: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    """Target of casting a dtype for a model in ``dtype``: real ones to it, complex ones to its width, others to nothing.

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


class _Reading:
    """Bounds on what is read of data: its bytes, and the number of batches where it has no length.

    Args:
        data: the iterable.
        memory: bytes that were asked for, or ``None``.
    """

    def __init__(self, data: Iterable[Batch], memory: int | None) -> None:
        self._length = _length(data)
        half = available_memory(torch.device("cpu")) // 2
        self._limit = memory or (half if self._length is not None else min(half, _UNKNOWN_BYTES))
        self._most = math.inf if memory else max(_UNKNOWN_BATCHES, 2 * (self._length or 0))
        self._count = self._bytes = 0
        self._kind, self._began, self._told = type(data).__name__, now(), _SILENT

    def take(self, size: int) -> None:
        """Count a batch of ``size`` bytes, and refuse what is too much."""
        self._count, self._bytes = self._count + 1, self._bytes + size
        read = f"{counted(self._count, 'batch')} of {self._bytes / 2**20:.3g} MiB"
        endless = f"data of unknown length ({self._kind}) may have no end"
        remedy = "pass list(itertools.islice(data, n)) for the first n batches, or memory= to read up to so many bytes"
        if self._length is None and (self._count > self._most or (self._bytes > self._limit and self._most < math.inf)):
            raise ValueError(f"data must end, got {read} and more to come: {endless}; {remedy}")
        if self._count > self._most:
            raise ValueError(f"data must end, got {read} and more to come, with a length of {self._length}; {remedy}")
        expected = self._bytes / self._count * (self._length or 0)
        if self._bytes > self._limit or (self._count == _SAMPLE and expected > 2 * self._limit):
            whole = f", about {expected / 2**20:.3g} MiB in all {self._length}" if self._length else ""
            raise ValueError(
                f"data must fit in memory={self._limit / 2**20:.3g} MiB, got {read}{whole} and more to come; pass fewer batches "
                "(itertools.islice) or a larger memory="
            )
        if self._length is None and now() - self._began > self._told:
            self._told *= 2
            warnings.warn(f"still reading data: {read} so far; {endless}; {remedy}", stacklevel=4)


def _length(data: object) -> int | None:
    """Number of batches, where ``data`` has a length."""
    try:
        return operator.length_hint(data, -1) if operator.length_hint(data, -1) >= 0 else None
    except Exception:  # a __len__ of the user's that raises
        return None


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


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
