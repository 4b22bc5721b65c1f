"""When parameters are made as a forward uses them, and what that takes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from fastscape.evaluation.footprint import Cap, footprint
from fastscape.objective.batches import available_memory, fitted_dtype
from fastscape.objective.definition import Definition
from fastscape.objective.examination import is_large, streams
from fastscape.objective.on_use import largest_module, pinned

ASKED_FOR = "asked for"
_COPIES = 2  # of the weights that a gated evaluation holds at a time: its own, and those of a copy to compare with


def streamed_bytes(objective: Definition, dtype: torch.dtype) -> int:
    """Bytes of an evaluation whose parameters are made as the forward uses them, beside one more: the gate's.

    A forward, and twice the parameters of the largest module, those that are held elsewhere too, and data and buffers as cast.
    """
    found = footprint(objective, dtype)
    module, kept, whole = weights(objective.model, dtype)
    return _COPIES * (module + kept + max(0, found.copy - whole)) + found.forward


def _frozen(objective: Definition) -> Iterator[torch.Tensor]:
    return (tensor for name, tensor in objective.model.named_parameters() if name not in set(objective.names))


def weights(model: nn.Module, dtype: torch.dtype) -> tuple[int, int, int]:
    """Bytes of a model's parameters in a dtype: those of the largest module, those that are held elsewhere too, and all."""

    def size(tensor: torch.Tensor) -> int:
        return tensor.numel() * fitted_dtype(tensor.dtype, dtype).itemsize

    elsewhere, held = pinned(model), list(model.parameters())
    return largest_module(model, size), sum(size(tensor) for tensor in held if id(tensor) in elsewhere), sum(map(size, held))


def reason_to_stream(objective: Definition, dtype: torch.dtype, cap: Cap) -> str:
    """Why parameters are made as they are used where nothing was asked for; empty where copies of them fit, or must be had."""
    if not is_large(objective):
        return ""
    still = sum(tensor.numel() for tensor in _frozen(objective) if fitted_dtype(tensor.dtype, dtype) != tensor.dtype)
    if still > objective.size and streams(objective):
        return f"{still} parameters that do not move are cast as they are used"
    if cap.memory is None:
        needed: float = _COPIES * sum(tensor.numel() for tensor in objective.model.parameters()) * dtype.itemsize
        room: float = available_memory(objective.device)
        words = f"{room / 2**30:.3g} GiB of free memory"
    else:
        needed, room = footprint(objective, dtype).alone, cap.room()
        words = f"memory={cap.memory}"
    if needed <= room or not streams(objective):
        return ""
    return f"{needed / 2**30:.3g} GiB for copies of the parameters do not fit in {words}"
