"""Shapes and dtypes of the arrays of results, compared where a file is read: one that was replaced is named there."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

KIND = "$kind"  # of a result inside another, whose field may hold any
_KINDS = {"f": "floating-point numbers", "b": "booleans", "i": "integers", "u": "integers"}


def check_array(kind: Any, array: NDArray[Any], name: str) -> NDArray[Any]:
    """``array``, which must be of the kind of numbers that the type ``kind`` of its field says.

    Raises:
        TypeError: it is not, or the field holds no arrays.
    """
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    expected = next((option for option in options if typing.get_origin(option) is np.ndarray), None)
    if expected is None:
        if Any in options:
            return array
        raise TypeError(f"the array {name!r} stands where none is expected")
    wanted = typing.get_args(typing.get_args(expected)[1])[0]  # of numpy.ndarray[shape, numpy.dtype[wanted]]
    if array.dtype.kind != np.dtype(wanted).kind:
        raise TypeError(f"the array {name!r} must hold {_KINDS[np.dtype(wanted).kind]}, got {array.dtype}")
    return array


def check_value(kind: Any, data: Any) -> Any:
    """``data``, which must be what the type ``kind`` of its field says, as far as that is a number, text, list or mapping.

    Raises:
        TypeError: it is not.
    """
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if not any(_holds(option, data) for option in options):
        words = " or ".join(getattr(option, "__name__", str(option)) for option in options)
        raise TypeError(f"{words} is expected where it has {str(data)[:40]!r}")
    return data


def _holds(kind: Any, data: Any) -> bool:
    origin = typing.get_origin(kind)
    if kind in (int, float):
        return isinstance(data, (int, float)) and (isinstance(data, float) or abs(data) <= sys.float_info.max)
    if origin is typing.Literal:
        return any(data == allowed and type(data) is type(allowed) for allowed in typing.get_args(kind))
    if origin is np.ndarray:
        return False  # of a document
    if origin is tuple:
        return isinstance(data, list)
    if origin is dict or dataclasses.is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, dict)):
        return isinstance(data, dict)
    if kind in (str, bool, type(None)):
        return isinstance(data, kind)
    return kind is Any or not isinstance(kind, type) or (isinstance(data, dict) and KIND in data)  # any, or a result


def check_shapes(result: Any, place: str = "result", shared: dict[str, int] | None = None) -> None:
    """Compare the shapes of all arrays within a result with those that its classes say.

    Raises:
        ValueError: the first that differs, by its place.
    """
    sizes: dict[str, int] = {}
    shared = {} if shared is None or getattr(type(result), "kind", None) else shared
    for field, names in getattr(type(result), "shapes", {}).items():
        value = getattr(result, field)
        if value is not None:
            shape = value.shape if isinstance(value, np.ndarray) else (len(value),)
            if not _fits(shape, names.split(), sizes, shared):
                known = ", ".join(f"{name} = {size}" for name, size in (shared | sizes).items() if name in names)
                raise ValueError(f"{place}.{field} must be of shape [{', '.join(names.split())}] ({known}), got {list(shape)}")
    for name, part in _parts(result):
        check_shapes(part, f"{place}.{name}", shared)


def _fits(shape: tuple[int, ...], names: list[str], sizes: dict[str, int], shared: dict[str, int]) -> bool:
    if len(shape) != len(names):
        return False
    for size, words in zip(shape, names, strict=True):
        name, _, less = words.partition("-")
        if name == "*":
            continue
        if name.isdigit():
            fits = size == int(name)
        else:
            found = size + int(less or 0)
            fits = (shared if name.isupper() else sizes).setdefault(name, found) == found
        if not fits:
            return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Values that hold more: fields of dataclasses, items of tuples and dicts."""
    if dataclasses.is_dataclass(value):
        items: Any = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (tuple, list)):
        items = ((str(index), item) for index, item in enumerate(value))
    else:
        return
    for name, item in items:
        if dataclasses.is_dataclass(item) or isinstance(item, (Mapping, tuple, list)):
            yield str(name), item
