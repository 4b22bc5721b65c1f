"""Keywords under an earlier name, which keep working for a while."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")
METHOD = {"path": "method"}  # how to evaluate or multiply; a path is a file's


def under_new_names(keywords: Mapping[str, Any], names: Mapping[str, str], door: str, *, stacklevel: int) -> dict[str, Any]:
    """Keywords with earlier names replaced.

    Args:
        keywords: as they were given.
        names: new name of each earlier one.
        door: name of the function, for messages.
        stacklevel: of the warning, counted from the caller of this.

    Raises:
        TypeError: a keyword under both names.

    Warns:
        DeprecationWarning: once for each keyword under an earlier name.
    """
    found = dict(keywords)
    for old, new in names.items():
        if old in found:
            if new in found:
                raise TypeError(f"{door}() got {new}= and {old}=, its earlier name; leave {old}= out")
            warnings.warn(
                f"{old}= of {door}() is now {new}=; the old name will be removed", DeprecationWarning, stacklevel=stacklevel + 1
            )
            found[new] = found.pop(old)
    return found


def renamed(names: Mapping[str, str]) -> Callable[[Callable[Arguments, Found]], Callable[Arguments, Found]]:
    """Decorator of a function that takes some keywords under an earlier name as well."""

    def decorate(function: Callable[Arguments, Found]) -> Callable[Arguments, Found]:
        door = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def door_with_both(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Found:
            if names.keys() & kwargs.keys():
                return function(*args, **under_new_names(kwargs, names, door, stacklevel=2))
            return function(*args, **kwargs)

        return door_with_both

    return decorate
