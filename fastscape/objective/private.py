"""The tensors of a module, wherever it holds them, and modules moved and cast without loss."""

from __future__ import annotations

import copy
import types
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
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


def eager(model: nn.Module) -> nn.Module:
    """The same model, its parameters and buffers shared, with the modules themselves in place of compiled ones inside.

    Names of parameters, and so directions, are those of the model that is not compiled.
    """
    if not any(_compiled(module) for module in model.modules()):
        return model
    views: dict[int, nn.Module] = {}

    def view(module: nn.Module) -> nn.Module:
        if id(module) not in views:
            original = _compiled(module) or module
            inside = {name: view(child) for name, child in original._modules.items() if child is not None}
            if any(child is not original._modules[name] for name, child in inside.items()):
                original = copy.copy(original)
                original._modules = {**original._modules, **inside}
            views[id(module)] = original
        return views[id(module)]

    return view(model)


def _compiled(module: nn.Module) -> nn.Module | None:
    """The module that ``torch.compile`` has wrapped into this one."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


def use_plain_experts(model: nn.Module) -> None:
    """Let mixtures of experts of transformers multiply expert by expert: their grouped kernels know no float64.

    Where a model cannot change its kernels it keeps them.
    """
    for module in model.modules():
        kernels = getattr(getattr(module, "config", None), "_experts_implementation", None)
        choose: Any = getattr(module, "set_experts_implementation", None)
        if kernels not in (None, "eager") and choose is not None:
            with suppress(ValueError, RuntimeError):
                choose("eager")


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
