"""Writes into tensors that a forward must leave alone, seen before they are done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastscape.objective.structures import tensors_in

_OF_TORCH = ("aten", "prim", "prims", "mkldnn", "mkldnn_prepacked", "torchvision", "inductor", "fastscape")


class SharedWriteError(RuntimeError):
    """The forward is about to write into a parameter that is the user's own."""


class Names(Protocol):
    """Names of storages by address, such as a dictionary."""

    def get(self, place: int, /) -> str | None:
        """The name of what is at an address, if it has one."""
        ...


class WriteGuard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells of every operation inside the block that is to write into some storages, before it does.

    Operations of other libraries count as writing into all that they are given, whatever they declare. Writes past torch, through
    NumPy, are not seen.

    Args:
        found: gets the names of what would be written into; it may raise.
        names: of the storages, by address.
    """

    def __init__(self, found: Callable[[str], object], names: Names) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found, self._named = found, names

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        positions, keywords = _written(func)
        if positions or keywords:
            given = [args[place] for place in positions if place < len(args)]
            given += [kwargs[name] for name in keywords if kwargs and name in kwargs]
            for tensor in tensors_in(given):
                name = self._named.get(address(tensor))
                if name is not None:
                    self._found(name)
        return func(*args, **(kwargs or {}))


@cache
def _written(func: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Positions and names of an operation's arguments that it may write into."""
    trusted = func._schema.name.split("::")[0] in _OF_TORCH
    places = [
        (index, argument.name)
        for index, argument in enumerate(func._schema.arguments)
        if not trusted or (argument.alias_info is not None and argument.alias_info.is_write)
    ]
    return tuple(index for index, _ in places), tuple(name for _, name in places)


def address(tensor: Tensor) -> int:
    """Of a tensor's storage; 0 without one."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # a subclass without storage
        return 0
