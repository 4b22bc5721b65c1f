"""Register an op: one schema, one reference, at most one kernel per device; torch's dispatcher is the only switchboard.

The reference answers on every device; a kernel registered for CPU (C++) or CUDA (Triton) takes over there. Ops have no
derivative rules on purpose, and say so loudly: under ``torch.func.jvp`` a ``torch.library`` op returns a zero tangent without a
word. This is the only file that touches private torch names.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "fastscape"
REMEDIES = {
    "C++": "FASTSCAPE_NATIVE=0 takes PyTorch's reference",
    "Triton": "where triton is not installed, PyTorch's reference answers",
    "CUDA C": "where cuda-bindings is not installed, PyTorch's reference answers",
}
_LIBRARY: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]


class KernelError(RuntimeError):
    """A kernel failed on arguments that it takes: its compiler or device is at fault, and nothing answers for it unseen."""


@dataclass(frozen=True)
class Kernel:
    """An implementation for one device.

    Attributes:
        function: takes the op's arguments; ``None`` where it cannot run here.
        language: ``"C++"``, ``"Triton"``, ``"CUDA C"``.
        reason: why it cannot run here.
        limits: for which arguments it falls back to materialising, in words.
    """

    function: Callable[..., Any] | None
    language: str
    reason: str = ""
    limits: str = ""


@dataclass(frozen=True)
class Operator:
    """A registered op; calling it goes through the dispatcher."""

    name: str
    schema: str
    summary: str
    reference: Callable[..., Any]
    kernels: Mapping[str, Kernel]

    def __call__(self, *arguments: Any) -> Any:
        """Dispatch on the tensors among the arguments."""
        return self.overload(*arguments)

    @functools.cached_property
    def overload(self) -> Any:
        """The overload that the dispatcher, ``opcheck`` and exported graphs know."""
        return getattr(getattr(torch.ops, NAMESPACE), self.name).default

    def kernel(self, device: str) -> Callable[..., Any] | None:
        """The kernel that answers on a device type, or ``None`` where the reference does."""
        found = self.kernels.get(device.upper())
        return found.function if found else None


OPERATORS: dict[str, Operator] = {}


def imported_later(module: str, function: str) -> Callable[..., Any]:
    """The function of a module that is imported at the first call."""

    def launch(*arguments: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*arguments)

    return launch


def define(
    schema: str,
    *,
    summary: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    check: Callable[..., None],
    kernels: Mapping[str, Kernel] | None = None,
) -> Operator:
    """Register an op.

    Args:
        schema: as for ``torch.library.define``, without the namespace.
        summary: what it computes, in a few words (for ``fs.status()``).
        reference: the specification in plain PyTorch, for any device.
        fake: shapes and dtypes of the results, from those of the arguments.
        check: raises an exception naming the argument; runs before every implementation.
        kernels: by dispatch key, ``"CPU"`` or ``"CUDA"``.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, _checked(check, reference), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", _checked(check, fake), lib=_LIBRARY)
    torch.library.register_vmap(f"{NAMESPACE}::{name}", functools.partial(_one_by_one, name), lib=_LIBRARY)
    _LIBRARY.impl(name, _refuse_derivatives(name), "Autograd", with_keyset=True)
    for device, kernel in (kernels or {}).items():
        if kernel.function is not None:
            _LIBRARY.impl(name, _checked(check, _named(name, kernel.language, kernel.function)), device)
    operator = Operator(name, schema, summary, reference, dict(kernels or {}))
    OPERATORS[name] = operator
    return operator


def _checked(check: Callable[..., None], function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        check(*arguments)
        return function(*arguments)

    return call


def _named(name: str, language: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, whose failures other than of memory name it and what takes its place."""

    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (ValueError, MemoryError, torch.OutOfMemoryError):  # of the arguments' contents, and of no kernel
            raise
        except Exception as error:
            failure = f"the {language} kernel of {NAMESPACE}::{name} failed with {type(error).__name__}: {error}"
            raise KernelError(f"{failure}; {REMEDIES[language]}") from error

    return call


def _tensors(arguments: Sequence[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _tensors(argument)


def _refuse_derivatives(name: str) -> Callable[..., Any]:
    def guard(keyset: torch.DispatchKeySet, *arguments: Any) -> Any:
        for tensor in _tensors(arguments):
            wanted = tensor.requires_grad and torch.is_grad_enabled()
            if wanted or torch._unpack_dual(tensor, level=0)[1] is not None:
                raise RuntimeError(f"{NAMESPACE}::{name} has no derivative rule: keep it outside the differentiated function")
        overload = getattr(getattr(torch.ops, NAMESPACE), name).default
        return overload.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    return guard


def _one_by_one(name: str, info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
    """Batching rule of every op: a loop, stacked (the engine batches by the ops' own K axis)."""
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default
    results = [overload(*_picked(arguments, in_dims, index)) for index in range(info.batch_size)]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    columns = [torch.stack(column) for column in zip(*results, strict=True)]
    container = type(results[0])
    return container(columns), container([0] * len(columns))


def _picked(arguments: Any, dims: Any, index: int) -> list[Any]:
    """The arguments of one element of the batch."""
    return [
        argument
        if dim is None
        else argument.select(dim, index)
        if isinstance(argument, Tensor)
        else _picked(argument, dim, index)
        for argument, dim in zip(arguments, dims, strict=True)
    ]
