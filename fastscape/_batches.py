"""Batches of any structure: read them once, move and cast them, count and fingerprint them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastscape._checks import counted
from fastscape._state import preserved_rng

Batch = Any
Leaf = TypeVar("Leaf")


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on ``device`` (host: the kernel's estimate, or its free pages)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Apply ``function`` to every tensor of a nested batch (tensors, mappings, sequences); keep its structure."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        mapped = {key: map_tensors(value, function) for key, value in batch.items()}
        return mapped if type(batch) is dict else type(batch)(mapped)  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, function) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(value, function) for value in batch)
    return batch


def tensors_of(batch: Batch) -> Iterator[Tensor]:
    """Yield the tensors of a nested batch in a fixed order."""
    return leaves(batch, Tensor)


def leaves(batch: Batch, kind: type[Leaf]) -> Iterator[Leaf]:
    """Yield what is of a kind in a nested batch, in a fixed order."""
    if isinstance(batch, kind):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from leaves(value, kind)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from leaves(value, kind)


def materialise(data: Iterable[Batch], memory: int | None) -> list[Batch]:
    """Read ``data`` once into memory, so that every evaluation sees the same batches.

    Tensors are copied: a loader may reuse its buffers, and the user may go on using theirs. Reading leaves the global
    random generators where they were, although a shuffling loader draws from them.

    Raises:
        ValueError: no batches, or more bytes than ``memory`` (default: half of what is available).
        TypeError: ``data`` is not an iterable of batches.
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
            size += sum(tensor.nbytes for tensor in tensors_of(batch))
            if size > limit:
                raise ValueError(
                    f"data must fit in memory={limit / 2**20:.0f} MiB, got {counted(len(batches) + 1, 'batch')} of "
                    f"{size / 2**20:.0f} MiB and more to come; pass fewer batches (itertools.islice) or a larger memory="
                )
            batches.append(map_tensors(batch, _copy))
    if not batches:
        raise ValueError("data must hold at least one batch, got none; an iterator that was read before is empty")
    return batches


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def placed(batch: Batch, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
    """Move a batch to ``device`` and cast its floating-point tensors to ``dtype``; integers and masks keep theirs."""

    def place(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device=device, dtype=dtype if tensor.is_floating_point() else None)

    return map_tensors(batch, place)


def fingerprint(items: Iterable[tuple[str, Batch]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of every tensor, in order."""
    digest = hashlib.sha256()
    for name, batch in items:
        digest.update(f"{name}:{type(batch).__name__};".encode())
        for tensor in tensors_of(batch):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            if flat.numel():
                digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
