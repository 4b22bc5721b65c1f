"""Checks of arguments that several places share; each names the argument, its value and what is allowed."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """``value`` as an int in [low, high); NumPy integers pass, booleans and floats do not."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or (high is not None and not low <= number < high):
        allowed = "" if high is None else f" in [{low}, 2^{high.bit_length() - 1})"
        raise ValueError(f"{name} must be an integer{allowed}, got {value!r}")
    if number < low:
        raise ValueError(f"{name} must be at least {low}, got {value!r}")
    return number


MOST = 2**20


def amount(name: str, value: object, low: int, most: int = MOST) -> int:
    """``value`` as an int from ``low`` up to ``most``, of replicates, points, starts: memory grows with their number."""
    number = integer(name, value, low)
    if number > most:
        raise ValueError(f"{name} must be at most {most}, got {value!r}: the memory that it takes grows with it")
    return number


def check_memory(memory: object) -> None:
    """Raise a ValueError unless ``memory`` is ``None`` or a positive number of bytes."""
    if memory is not None and not (isinstance(memory, (int, float)) and not isinstance(memory, bool) and memory > 0):
        raise ValueError(f"memory must be a positive number of bytes, got {memory!r}; 2**30 is a gibibyte, None the default")


def checked_settings(name: str, value: object, kind: type[Settings]) -> Settings:
    """``value``, the defaults for ``None``, or a TypeError that says what to write."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        how = f"{kind.__name__}(**settings)" if isinstance(value, dict) else f"{kind.__name__}(name=value, ...)"
        raise TypeError(f"{name} must be a fastscape.{kind.__name__}, got {type(value).__name__}; write fs.{how}")
    return value


def counted(count: int, noun: str) -> str:
    """``1 batch``, ``2 batches``."""
    plural = noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")
    return f"{count} {noun if count == 1 else plural}"


def one_line(value: Any) -> str:
    """``repr`` of a dataclass of arrays: their shapes, and the number of items of what is long."""
    parts = []
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        if dataclasses.is_dataclass(content):
            text = type(content).__name__
        elif hasattr(content, "shape"):
            text = str(list(content.shape))
        else:
            text = repr(content)
            if len(text) > 40:
                text = f"({counted(len(content), 'item')})" if isinstance(content, (tuple, dict)) else f"{text[:37]}..."
        parts.append(f"{field.name}={text}")
    return f"{type(value).__name__}({', '.join(parts)})"


def first_line(error: BaseException) -> str:
    """First line of an exception's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
