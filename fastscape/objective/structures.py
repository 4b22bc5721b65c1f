"""Batches of any structure: find their tensors and arrays, replace them, and tell two batches apart.

A value is opened as :mod:`copy` and :mod:`pickle` open it: containers by their items, types registered with
``torch.utils._pytree`` by their children, and every other object by what ``__reduce_ex__`` says that it consists of. So
dataclasses, named tuples, packed sequences, ``UserDict`` and objects with attributes or slots need no code of their own.
"""

from __future__ import annotations

import copyreg
import hashlib
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import BUILTIN_TYPES, CONSTANT_NODES, SUPPORTED_NODES

from fastscape._checks import first_line

Leaf = TypeVar("Leaf")
Arrays = np.ndarray[Any, Any]

_CONSTANT = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type, Enum, np.generic, np.dtype),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, torch.Generator),
    *(types.ModuleType, types.BuiltinFunctionType, weakref.ref),
)
_NAMED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)  # their repr holds an address
_ITEMS = (tuple, list, set, frozenset, deque)
_REMEDY = "make the batch of tensors, or register its type with torch.utils._pytree.register_pytree_node"


def tensors_in(values: object) -> Iterator[Tensor]:
    """Tensors among the arguments or results of a call: those in mappings, tuples and lists, repeated as they are."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors_in(value)
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_in(value)


def leaves(batch: object, kind: type[Leaf] | tuple[type[Leaf], ...]) -> list[Leaf]:
    """Objects of a kind in a batch, each once, in a fixed order; those found are not opened.

    Raises:
        TypeError: something in the batch cannot be opened, and may hold tensors.
    """
    return _found(batch, lambda value: isinstance(value, kind))


def tensors_of(batch: object) -> list[Tensor]:
    """The tensors of a batch, each once, in a fixed order."""
    return leaves(batch, Tensor)


def arrays_of(batch: object) -> list[Arrays]:
    """The NumPy arrays of numbers in a batch, each once, in a fixed order."""
    return _found(batch, _is_array)


def map_tensors(batch: Any, function: Callable[[Tensor], Tensor], arrays: Callable[[Arrays], Arrays] | None = None) -> Any:
    """A copy of a batch with ``function`` of each of its tensors, in the order of :func:`tensors_of`, and ``arrays`` of arrays.

    A tensor that stands in several places is one tensor in the copy too.

    Raises:
        TypeError: the type of something in the batch is not copied faithfully.
    """
    if isinstance(batch, Tensor):
        return function(batch)
    tensors = tensors_of(batch)
    memo: dict[int, Any] = {id(tensor): function(tensor) for tensor in tensors}
    expected = {id(tensor) for tensor in memo.values()}
    if arrays is not None:
        memo.update((id(array), arrays(array)) for array in arrays_of(batch))
    made = substituted(batch, memo)
    if {id(tensor) for tensor in tensors_of(made)} != expected:
        raise TypeError(f"data must hold what can be copied, got {_name(batch)} with tensors that its copy shares; {_REMEDY}")
    return made


def substituted(value: Any, memo: dict[int, Any]) -> Any:
    """A copy with other objects in place of those whose ids are in ``memo``, to which the copies of the others are added."""
    if id(value) in memo:
        return memo[id(value)]
    memo.setdefault(id(memo), []).append(value)  # the id of what is gone would be used again
    try:
        return _rebuilt(value, memo)
    except TypeError as error:
        if _REMEDY in str(error):
            raise
        raise _refusal(value, error) from error
    except Exception as error:  # whatever a type does on being rebuilt
        raise _refusal(value, error) from error


def digest(batch: object) -> bytes:
    """SHA-256 of a batch: types, keys, constants, and dtypes, shapes and bytes of tensors and arrays."""
    return _Digests().of(batch)


def strided(tensor: Tensor) -> list[Tensor]:
    """The dense real tensors that one of any layout consists of."""
    tensor = tensor.detach()
    if tensor.is_nested:
        return [part for row in tensor.unbind() for part in strided(row)]
    if tensor.layout == torch.sparse_coo:
        whole = tensor.coalesce()
        return [whole.indices(), *strided(whole.values())]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), *strided(tensor.values())]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), *strided(tensor.values())]
    if tensor.is_quantized:
        return [tensor.int_repr(), tensor.dequantize()]
    if tensor.is_mkldnn:
        return [tensor.to_dense()]
    if tensor.is_complex():
        return [torch.view_as_real(tensor.resolve_conj())]
    return [tensor.resolve_neg()]


def raw_bytes(tensor: Tensor) -> Iterator[Any]:
    """Buffers with the bytes of a tensor of any layout."""
    for part in strided(tensor):
        flat = part.cpu().contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data


# ---------------------------------------------------------------------- private


def _found(batch: object, wanted: Callable[[object], bool]) -> list[Any]:
    found = []
    seen: dict[int, object] = {}  # holds what was seen: the id of what is gone would be used again
    pending = [batch]
    while pending:
        value = pending.pop()
        if id(value) in seen or (isinstance(value, _CONSTANT) and not wanted(value)):
            continue
        seen[id(value)] = value
        if wanted(value):
            found.append(value)
        elif not isinstance(value, Tensor) and not _is_array(value):
            pending += reversed(_parts(value))
    return found


def _parts(value: Any) -> list[Any]:
    """Parts of a value, but for the keys of mappings and the callables that rebuild it."""
    if isinstance(value, _CONSTANT):
        return []
    if _is_registered(value):
        children, context = SUPPORTED_NODES[type(value)].flatten_fn(value)
        return [*children, context]
    if type(value) in _ITEMS:
        return list(value)
    if type(value) is dict:
        return list(value.values())
    if isinstance(value, np.ndarray):
        return list(value.flat)
    if isinstance(value, types.FunctionType):  # what it closes over cannot be replaced: a tensor there is refused on copying
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        return [*cells, *(value.__defaults__ or ())]
    return _reduced(value)[1:]


def _reduced(value: Any) -> list[Any]:
    """Recipe to rebuild an object: a callable or name, then arguments, state, items and entries."""
    reductor = copyreg.dispatch_table.get(type(value))
    try:
        found: Any = reductor(value) if reductor is not None else value.__reduce_ex__(4)
        if isinstance(found, str):
            return [found]
        function, arguments, state, items, entries = (*found, None, None, None)[:5]
        return [function, arguments, state, list(items or ()), dict(entries or ())]
    except Exception as error:  # whatever a type does on being copied
        raise _refusal(value, error) from error


def _rebuilt(value: Any, memo: dict[int, Any]) -> Any:
    """:func:`substituted`, of what is not in the memo: as ``copy.deepcopy`` does, but by what :func:`_parts` sees of it."""
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, (*_CONSTANT, types.FunctionType)):
        return value
    if _is_registered(value):
        node = SUPPORTED_NODES[type(value)]
        children, context = node.flatten_fn(value)
        made = node.unflatten_fn([substituted(child, memo) for child in children], context)
    elif type(value) is tuple:
        made = tuple(substituted(item, memo) for item in value)
    elif type(value) in (list, dict):
        made = memo[id(value)] = type(value)()
        if isinstance(made, list):
            made.extend(substituted(item, memo) for item in value)
        else:
            made.update((key, substituted(item, memo)) for key, item in value.items())
    elif isinstance(value, np.ndarray):
        made = value.copy()
        if value.dtype.hasobject:
            made.flat[:] = [substituted(item, memo) for item in value.flat]
    else:
        made = _reconstructed(value, memo)
    memo[id(value)] = made
    return made


def _reconstructed(value: Any, memo: dict[int, Any]) -> Any:
    """An object from what ``__reduce_ex__`` says of it, in the order of pickle's protocol."""
    function, *parts = _reduced(value)
    if not parts:
        return value  # a global
    arguments, state, items, entries = parts
    made = memo[id(value)] = function(*[substituted(argument, memo) for argument in arguments])
    if state is not None:
        state = substituted(state, memo)
        if hasattr(type(made), "__setstate__"):
            made.__setstate__(state)
        else:
            plain, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
            if plain:
                made.__dict__.update(plain)
            for name, item in (slots or {}).items():
                object.__setattr__(made, name, item)
    for item in items:
        made.append(substituted(item, memo))
    for key, item in entries.items():
        made[key] = substituted(item, memo)
    return made


def _refusal(value: object, error: Exception) -> TypeError:
    return TypeError(
        f"data must hold what can be opened and copied, got {_name(value)}, which may hold tensors ({type(error).__name__}: "
        f"{first_line(error)}); {_REMEDY}"
    )


def _is_registered(value: object) -> bool:
    kind = type(value)
    return kind in SUPPORTED_NODES and kind not in BUILTIN_TYPES | CONSTANT_NODES and not isinstance(value, _CONSTANT)


def _is_array(value: object) -> bool:
    """Whether it is a NumPy array of numbers or text, and no container of objects."""
    return isinstance(value, np.ndarray) and not value.dtype.hasobject


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


class _Digests:
    """Digests by value; an object met again inside itself counts as its place on the way to it."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, bytes]] = {}
        self._way: list[int] = []

    def of(self, value: Any) -> bytes:
        if isinstance(value, Tensor):
            shapes = [tuple(part.shape) for part in strided(value)] if value.is_nested else tuple(value.shape)
            return _hashed(f"{value.dtype}{shapes};".encode(), *raw_bytes(value))
        if _is_array(value):
            return _hashed(f"array {value.dtype.str}{value.shape};".encode(), np.ascontiguousarray(value).tobytes())
        if isinstance(value, _CONSTANT):
            return _hashed(_words(value).encode())
        if id(value) in self._way:
            return _hashed(f"again {len(self._way) - self._way.index(id(value))}".encode())
        if id(value) not in self._known:
            self._way.append(id(value))
            self._known[id(value)] = value, self._opened(value)
            self._way.pop()
        return self._known[id(value)][1]

    def _opened(self, value: Any) -> bytes:
        parts = [self.of(part) for part in _parts(value)]
        if isinstance(value, (set, frozenset)):
            parts.sort()
        if type(value) is dict:
            parts = [self.of(key) + part for key, part in zip(value, parts, strict=True)]
        if isinstance(value, Mapping) and type(value) is not dict:
            parts += [self.of(key) for key in value]
        return _hashed(_words(value).encode() if isinstance(value, types.FunctionType) else _name(value).encode(), *parts)


def _words(constant: Any) -> str:
    """A constant in words that are the same in another process."""
    if isinstance(constant, _NAMED):
        return f"{getattr(constant, '__module__', '')}.{getattr(constant, '__qualname__', constant.__name__)}"
    if isinstance(constant, torch.Generator):
        return f"generator {constant.get_state().tolist()}"
    return _name(constant) if isinstance(constant, weakref.ref) else f"{_name(constant)}:{constant!r}"


def _hashed(*parts: Any) -> bytes:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.digest()
