"""The tensors of a module, wherever it holds them, and modules moved and cast without loss."""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_PARTS = ("_parameters", "_buffers", "_modules")


def held_tensors(model: nn.Module) -> list[Tensor]:
    """Tensors that the modules of a model hold outside their parameters and buffers, each once.

    In attributes, containers of any depth, dataclasses and other plain objects; what hides its state from ``vars`` is left out.
    """
    found: list[Tensor] = []
    seen: dict[int, object] = {id(module): module for module in model.modules()}
    pending = [value for module in model.modules() for name, value in vars(module).items() if name not in _PARTS]
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            found.append(value)
        elif type(value) not in weakref.ProxyTypes and not isinstance(value, (nn.Module, type, types.ModuleType)):
            pending += _within(value)
    return found


def _within(value: object) -> Iterator[object]:
    """Items, entries, attributes and slots of a value."""
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (tuple, list, set, frozenset)):
        yield from value
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        yield from attributes.values()
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and not name.startswith("__"):
                yield getattr(value, name, None)


def moved(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """``module.to(device, dtype)``, in place, without its complex tensors: ``to`` would drop their imaginary parts.

    Those are expected to be where they belong, and those without numbers to stay without.
    """
    apart = []
    for part in module.modules():
        both: list[dict[str, Any]] = [part._parameters, part._buffers]
        for held in both:
            for name, tensor in held.items():
                if tensor is not None and (tensor.is_complex() or tensor.is_meta):
                    apart.append((held, name, tensor))
    for held, name, _ in apart:
        held[name] = None
    try:
        module.to(device, dtype)  # also tells modules that keep a record of both, as those of Lightning do
    finally:
        for held, name, tensor in apart:
            held[name] = tensor
    return module
