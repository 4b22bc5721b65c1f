"""Checks that several ops share; each raises an exception naming the argument, its value and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fastscape._checks import integer
from fastscape.ops._tasks import DISTRIBUTIONS, TYPES

SUPPORTED = "float32, float64, bfloat16 or float16"
MOST_ELEMENTS = 2**34  # a 32-bit counter yields four normals


def key(ids: object, seed: object, directions: object) -> tuple[int, list[int]]:
    """Check the arguments that a schema would refuse without naming a remedy; returns the seed as int64, and the indices.

    The rest is checked by :func:`noise`, behind the dispatcher.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"ids must be an int64 tensor [T], got {type(ids).__name__}; write torch.tensor(ids)")
    number = integer("seed", seed, 0, 2**64)
    if not isinstance(directions, Iterable):
        raise TypeError(f"directions must be a sequence of indices, got {directions!r}; write [{directions!r}]")
    indices = [integer(f"directions[{position}]", index, 0, 2**32) for position, index in enumerate(directions)]
    return (number - 2**64 if number >= 2**63 else number), indices


def one_type(name: str, tensors: Sequence[Tensor], allowed: Sequence[torch.dtype]) -> None:
    """Check that tensors have one dtype among those allowed."""
    for position, tensor in enumerate(tensors):
        if tensor.dtype not in allowed or tensor.dtype != tensors[0].dtype:
            wanted = " or ".join(str(dtype) for dtype in allowed)
            raise ValueError(f"{name}[{position}] must be {wanted}, the same for all, got {tensor.dtype}")


def same_sizes(name: str, tensors: Sequence[Tensor], sizes: Sequence[int]) -> None:
    """Check numbers of elements."""
    if len(tensors) != len(sizes):
        raise ValueError(f"{name} must hold one tensor per weight, got {len(tensors)} for {len(sizes)}")
    for position, (tensor, size) in enumerate(zip(tensors, sizes, strict=True)):
        if tensor.numel() != size:
            raise ValueError(f"{name}[{position}] must have {size} elements, got {tensor.numel()}")


def contiguous(name: str, tensors: Sequence[Tensor]) -> None:
    """Check that elements lie in order."""
    for position, tensor in enumerate(tensors):
        if not tensor.is_contiguous():
            raise ValueError(f"{name}[{position}] must be contiguous, got strides {tensor.stride()}; call .contiguous()")


def noise(ids: Tensor, seed: int, directions: Sequence[int], distribution: str) -> None:
    """Check what identifies random directions: ids, a seed already wrapped to int64, indices, distribution."""
    if ids.dtype != torch.int64 or ids.ndim != 1:
        raise ValueError(f"ids must be an int64 tensor [T], got {ids.dtype} of shape {tuple(ids.shape)}; see tensor_ids()")
    integer("seed", seed, -(2**63), 2**63)
    for position, index in enumerate(directions):
        integer(f"directions[{position}]", index, 0, 2**32)
    kind(distribution)


def kind(distribution: str) -> None:
    """Check the name of a distribution."""
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution must be 'gaussian' or 'rademacher', got {distribution!r}")


def sizes(ids: Tensor, counts: Sequence[int], name: str = "sizes") -> None:
    """Check numbers of elements against ids."""
    if len(counts) != len(ids):
        raise ValueError(f"{name} must have one entry per id, got {len(counts)} for {len(ids)} ids")
    for position, count in enumerate(counts):
        integer(f"{name}[{position}]", count, 0, MOST_ELEMENTS + 1)


def firsts(counts: Sequence[int], begins: Sequence[int]) -> None:
    """Check where each tensor begins in the whole parameter; none given means at 0."""
    if begins and len(begins) != len(counts):
        raise ValueError(f"firsts must have one entry per tensor, got {len(begins)} for {len(counts)} tensors")
    for position, (count, first) in enumerate(zip(counts, begins, strict=False)):
        integer(f"firsts[{position}]", first, 0, MOST_ELEMENTS + 1 - count)


def groups(counts: Sequence[int], pieces: Sequence[int]) -> None:
    """Check that each tensor splits into its number of equal pieces."""
    if len(pieces) != len(counts):
        raise ValueError(f"groups must have one entry per tensor, got {len(pieces)} for {len(counts)} tensors")
    for position, (count, piece) in enumerate(zip(counts, pieces, strict=True)):
        integer(f"groups[{position}]", piece, 1, None)
        if count % piece:
            raise ValueError(f"groups[{position}] must divide the tensor's {count} elements, got {piece}")


def tensors(name: str, values: Sequence[Tensor], ids: Tensor) -> None:
    """Check a list of weights or vectors against the ids that go with it."""
    if len(values) != len(ids):
        raise ValueError(f"{name} must have one tensor per id, got {len(values)} for {len(ids)} ids")
    for position, value in enumerate(values):
        if value.dtype not in TYPES:
            raise ValueError(f"{name}[{position}] must be {SUPPORTED}, got {value.dtype}")
        if value.device != ids.device:
            raise ValueError(f"{name}[{position}] is on {value.device}, ids are on {ids.device}; move them to one device")


def factors(name: str, values: Tensor, shape: tuple[int, int], device: torch.device) -> None:
    """Check a float64 table of scales."""
    if values.dtype != torch.float64 or tuple(values.shape) != shape:
        raise ValueError(f"{name} must be float64 of shape {shape}, got {values.dtype} of shape {tuple(values.shape)}")
    if values.device != device:
        raise ValueError(f"{name} is on {values.device}, ids are on {device}; move them to one device")


def lanes(x: Tensor, lanes: Tensor, radii: Tensor) -> None:
    """Check a base value, its first and second differences along K lines at S radii, and the radii."""
    real = (torch.float32, torch.float64)
    if x.dtype not in real:
        raise ValueError(f"x must be float32 or float64, got {x.dtype}; convert it")
    if radii.dtype != torch.float64 or radii.ndim != 1:
        raise ValueError(f"radii must be float64 of shape [S], got {radii.dtype} of shape {tuple(radii.shape)}")
    fits = lanes.ndim == x.ndim + 3 and lanes.shape[3:] == x.shape and lanes.shape[1] in (1, 2)
    if lanes.dtype not in real or not fits or lanes.shape[2] not in (1, len(radii)):
        wanted = f"[K, 1 or 2, 1 or {len(radii)}, {', '.join(map(str, x.shape))}]"
        raise ValueError(f"lanes must be float32 or float64 of shape {wanted}, got {lanes.dtype} of shape {tuple(lanes.shape)}")
    for name, tensor in (("lanes", lanes), ("radii", radii)):
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x is on {x.device}; move them to one device")
