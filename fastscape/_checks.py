"""Checks of arguments that several places share; each names the argument, its value and what is allowed."""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard, TypeVar

Settings = TypeVar("Settings")
_FEW = 3  # names that a message quotes one by one
_LONG = 80  # characters of an argument in a message


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """``value`` as an int in [low, high); NumPy integers pass, booleans and floats do not."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or (high is not None and not low <= number < high):
        allowed = "" if high is None else f" in [{low}, 2^{high.bit_length() - 1})"
        raise ValueError(f"{name} must be an integer{allowed}, got {shown(value)}")
    if number < low:
        raise ValueError(f"{name} must be at least {low}, got {shown(value)}")
    return number


MOST = 2**20


def amount(name: str, value: object, low: int, most: int = MOST) -> int:
    """``value`` as an int from ``low`` up to ``most``, of replicates, points, starts: memory grows with their number."""
    number = integer(name, value, low)
    if number > most:
        raise ValueError(f"{name} must be at most {most}, got {value!r}: the memory that it takes grows with it")
    return number


def real(value: object) -> TypeGuard[float]:
    """Whether an argument is a real number; NumPy's are, booleans and text are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def positive(name: str, value: object, what: str = "positive and finite", remedy: str = "") -> float:
    """``value`` as a positive finite float, or a ValueError; NumPy numbers pass, booleans and text do not.

    Args:
        what: it must be, in the message.
        remedy: what to write, there.
    """
    if not (real(value) and 0 < value < math.inf):
        raise ValueError(f"{name} must be {what}, got {shown(value)}" + (f"; {remedy}" if remedy else ""))
    return float(value)


def reals(name: str, value: object) -> tuple[float, ...]:
    """``value`` as a tuple of floats, or a ValueError."""
    given = listed(name, value, "numbers")
    if not all(map(real, given)):
        raise ValueError(f"{name} must be a sequence of numbers, got {shown(value)}")
    return tuple(map(float, given))


def check_memory(memory: object) -> None:
    """Raise a ValueError unless ``memory`` is ``None`` or a positive number of bytes."""
    if memory is not None:
        positive("memory", memory, "a positive number of bytes", "2**30 is a gibibyte, None the default")


def listed(name: str, value: object, what: str) -> tuple[Any, ...]:
    """``value`` as a tuple, or a TypeError that says of what; text and mappings are no sequences."""
    one = getattr(value, "ndim", 1) == 0  # an array of one number, whose type can be iterated over and which cannot
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)) or one:
        raise TypeError(f"{name} must be a sequence of {what}, got {shown(value)}")
    return tuple(value)


def mapped(name: str, value: object, what: str) -> Mapping[Any, Any]:
    """``value`` as a mapping, an empty one for ``None``, or a TypeError that says what to write."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must map {what}, got {shown(value)}")
    return value


def flag(name: str, value: object) -> bool:
    """``value`` as a bool, or a ValueError: what has no single truth value is none."""
    if type(value).__name__ not in ("bool", "bool_"):  # NumPy's too
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def one_of(name: str, value: object, allowed: Sequence[object], otherwise: str = "") -> None:
    """Raise a ValueError unless ``value`` is one of the ``allowed`` names, or ``None`` where that is among them.

    Names are compared as names: an array, whose comparison has no truth value, is none of them.

    Args:
        otherwise: what ``None`` stands for, in the message.
    """
    if value is None and None in allowed:
        return
    names = [each for each in allowed if each is not None]
    if isinstance(value, str) and value in names:
        return
    few = len(names) <= _FEW
    last = [f"None{otherwise and ' '}{otherwise}"] if None in allowed else []
    words = [*(map(repr, names) if few else [", ".join(map(str, names))]), *last]
    listed = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    raise ValueError(f"{name} must be {'' if few else 'one of '}{listed}, got {shown(value)}")


@contextmanager
def noted(words: str) -> Iterator[None]:
    """A block of the user's own code: what it raises gets a note that says where it was called."""
    try:
        yield
    except Exception as error:
        error.add_note(words)
        raise


def shown(value: object) -> str:
    """``repr`` of an argument in one line, cut where it is long: for messages."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


def check_progress(progress: object, of: str = "one fastscape.Progress") -> None:
    """Raise a TypeError unless ``progress`` is ``None`` or can be called; ``of`` what, for the message."""
    if progress is not None and (not callable(progress) or isinstance(progress, type)):
        found = f"{type(progress).__name__} {shown(progress)}"
        raise TypeError(f"progress must be a function of {of}, got {found}; pass None for none")


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
