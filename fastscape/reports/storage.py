"""Frozen dataclasses to and from one npz file: plain arrays and a JSON string, no pickles."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import types
import typing
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastscape._checks import first_line
from fastscape._files import replaced
from fastscape.numerics.estimate import Estimate
from fastscape.reports.archive import Arrays, named_array, read_archive, write_archive
from fastscape.reports.numbers import interval
from fastscape.reports.shapes import KIND, check_array, check_shapes, check_value

FORMAT = 1  # of the files that are written; larger ones are a newer version's
KINDS: dict[str, type] = {}  # classes of results by the kind of their files
_HOMES = ("fastscape.probes", "fastscape.study")  # packages whose views know all kinds


class NewerFileError(ValueError):
    """A file of a format that only later versions read."""


def pack(value: Any, arrays: Arrays, prefix: str) -> Any:
    """Turn a tree of dataclasses, dicts, tuples and scalars into JSON data; arrays move to ``arrays`` by path.

    A field marked ``later``, which files of earlier versions have not, is left out where it is ``None``: they stay as they are.
    """
    if isinstance(value, np.ndarray):
        arrays[prefix] = value
        return {"array": prefix}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        stored = {f.name: held for f, held in found if held is not None or not f.metadata.get("later")}
        fields = {name: pack(held, arrays, f"{prefix}.{name}") for name, held in stored.items()}
        kind = _kind(type(value))
        return fields if kind is None else fields | {KIND: kind}
    if isinstance(value, Mapping):
        return {key: pack(item, arrays, f"{prefix}.{key}") for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [pack(item, arrays, f"{prefix}.{index}") for index, item in enumerate(value)]
    return value.item() if isinstance(value, np.generic) else value


def _kind(cls: type) -> str | None:
    return next((name for name, known in KINDS.items() if known is cls), None)


def _class_of(kind: str) -> type:
    for view in _views() if kind not in KINDS else ():
        importlib.import_module(view)
    return KINDS[kind]


def _views() -> Iterator[str]:
    """Modules of the views of every question; each imports the classes that it shows."""
    for home in map(importlib.import_module, _HOMES):
        found = pkgutil.walk_packages(home.__path__, f"{home.__name__}.")
        yield from (module.name for module in found if module.name.endswith("view"))


def unpack(kind: Any, data: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Rebuild a value of type ``kind`` from what :func:`pack` made of it; of ``Annotated[Any, kind]`` too."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[1]
    name = named_array(data)
    if name is not None:
        return check_array(kind, arrays[name], name)
    check_value(kind, data)
    origin, parameters = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(data, dict) and KIND in data:
        kind, data = _checked_class(kind, _class_of(data[KIND])), {name: item for name, item in data.items() if name != KIND}
        origin, parameters = None, ()
    if origin in (typing.Union, types.UnionType):
        options = [option for option in parameters if option is not type(None)]
        return None if data is None else unpack(options[0], data, arrays)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind, include_extras=True)
        known = {name: item for name, item in data.items() if name in hints}  # an earlier version may have had more
        return kind(**{name: unpack(hints[name], item, arrays) for name, item in known.items()})
    if origin is tuple:
        items = [parameters[0]] * len(data) if parameters[-1] is Ellipsis else list(parameters)
        return tuple(unpack(item, part, arrays) for item, part in zip(items, data, strict=True))
    if origin is dict:
        return {key: unpack(parameters[1], item, arrays) for key, item in data.items()}
    if isinstance(kind, type) and issubclass(kind, dict):  # a mapping with a class of its own
        return kind(unpack(dict[str, Any], data, arrays))
    return data


def _checked_class(expected: Any, found: type) -> type:
    options = typing.get_args(expected) or (expected,)
    if not any(issubclass(found, option) for option in options if isinstance(option, type)) and Any not in options:
        raise TypeError(f"a {found.__name__} stands where {expected} is expected")
    return found


def save(path: str | Path, result: Any, kind: str) -> Path:
    """Write ``result`` to ``path`` (``.npz`` is added where missing), atomically: a failure leaves an older file whole."""
    target = Path(path)
    target = target if target.suffix == ".npz" else target.with_name(target.name + ".npz")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must be in an existing directory, got {str(target)!r}")
    arrays: Arrays = {}
    tree = pack(result, arrays, "result")
    with replaced(target) as stream:
        write_archive(stream, {"format": FORMAT, "kind": kind, "result": tree}, arrays)
    return target


def load(path: str | Path) -> Any:
    """Read a result written by ``.save``, of this version or an earlier one; no pickled objects are read.

    Raises:
        ValueError: not a result file, a damaged one, or one written by a newer fastscape.
        FileNotFoundError: no such file.
    """
    return read(path, _check_shown)


def read(path: str | Path, check: Callable[[Any], None] = lambda _result: None) -> Any:
    """As :func:`load`, also of a part of a result that nobody is to see yet; ``check`` raises where it does not serve."""
    if not isinstance(path, (str, Path)):
        raise TypeError(f"path must name a result file, got {type(path).__name__}")
    if Path(path).is_file() and not zipfile.is_zipfile(path):
        raise ValueError(f"path must be a result file written by fastscape (npz), got {str(path)!r}, which is not or is damaged")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a damaged header
            document, arrays = read_archive(Path(path))
        _check_format(document["format"], path)
        result = unpack(_class_of(document["kind"]), document["result"], arrays)
        check_shapes(result)
        check(result)
    except (FileNotFoundError, NewerFileError):
        raise
    except Exception as error:  # a damaged archive fails in zipfile, zlib, NumPy or json, in a dozen ways
        raise ValueError(
            f"path must be a result file written by fastscape, got {str(path)!r} ({type(error).__name__}: {first_line(error)})"
        ) from error
    return result


def _check_shown(result: Any) -> None:
    """Whether what a file holds can be shown: its ``meta`` has no fixed entries, and views and pages read those that they need.

    Raises:
        ValueError: it cannot.
    """
    try:
        str(result), repr(result), result.verdict(), result.flags
    except Exception as error:
        raise ValueError(f"what it holds cannot be shown: {type(error).__name__}: {first_line(error)}") from error


def _check_format(found: object, path: str | Path) -> None:
    if type(found) is not int or found < 1:
        raise TypeError(f"its format is {found!r}, not a number from 1 on")
    if found > FORMAT:
        raise NewerFileError(
            f"path {str(path)!r} was written by a newer fastscape: its format is {found}, this version reads up to {FORMAT}; "
            "upgrade with pip install --upgrade fastscape-probes"
        )


def plain(value: Any) -> Any:
    """JSON data without arrays and with NaN and inf as null, for other programs to read.

    An :class:`Estimate` has beside its fields the text that a table shows, ``"shown"``; a withheld interval is null.
    """
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Estimate):
        known = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return plain(known | ({"interval": (None, None)} if value.withheld else {})) | {"shown": interval(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not np.isfinite(value) else value
