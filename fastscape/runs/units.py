"""Units of a long run: which directions one holds, the bytes of its result, and who evaluates it.

A unit is whole and aligned: block j of a bank is always its directions [j u, (j + 1) u), at all radii and both signs, whoever
evaluates it and however many the run wants. Its bytes then depend on the plan alone, and results are merged by key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastscape._checks import integer
from fastscape._clock import now

Array = NDArray[np.float64]
_HEADER = 16  # bytes: radii and directions, int64
_FLOAT = 8


@dataclass(frozen=True, order=True)
class Unit:
    """A block of directions at a checkpoint, by its place in a run; units are ordered by it.

    Attributes:
        point: index of the checkpoint.
        group: index of the batch that its bank evaluates; 0 where banks evaluate all.
        bank: index of the bank of directions.
        block: index of the block in the bank.
    """

    point: int
    group: int
    bank: int
    block: int

    def __post_init__(self) -> None:
        for name in ("point", "group", "bank", "block"):
            object.__setattr__(self, name, integer(name, getattr(self, name), 0))

    @property
    def key(self) -> tuple[int, int, int, int]:
        """The four numbers, for files and stores: ``Unit(*key)`` is the unit again."""
        return astuple(self)

    def indices(self, size: int) -> range:
        """Directions of the bank in this block, all ``size`` of them."""
        return range(self.block * size, (self.block + 1) * size)


class Value(NamedTuple):
    """Result of a unit: signed even and odd responses ``[K, u]`` and L(w)."""

    even: Array
    odd: Array
    base: float


def blocks_of(count: int, size: int) -> range:
    """Blocks of ``size`` directions that hold the first ``count``."""
    return range(-(-count // size))


def encode(even: Array, odd: Array, base: float) -> bytes:
    """A unit's result as 24 + 16 K u bytes, little-endian: K and u in int64; even and odd ``[K, u]`` and L(w) in float64."""
    if even.shape != odd.shape or even.ndim != 2:
        raise ValueError(f"even and odd must be [radii, directions] of one shape, got {list(even.shape)} and {list(odd.shape)}")
    parts = (np.array(even.shape, "<i8"), even.astype("<f8"), odd.astype("<f8"), np.array([base], "<f8"))
    return b"".join(part.tobytes() for part in parts)


def decode(data: bytes) -> Value:
    """The result that :func:`encode` wrote, every bit of it.

    Raises:
        ValueError: bytes of another length than their first 16 say.
    """
    shape = tuple(np.frombuffer(data[:_HEADER], "<i8").tolist()) if len(data) >= _HEADER else (-1, -1)
    cells = math.prod(shape)
    if min(shape) < 0 or len(data) != _HEADER + _FLOAT * (2 * cells + 1):
        raise ValueError(f"data must be a unit's result of 24 + 16 K u bytes, got {len(data)} bytes, K and u being {shape}")
    numbers = np.frombuffer(data[_HEADER:], "<f8").astype(np.float64)
    return Value(numbers[:cells].reshape(shape), numbers[cells : 2 * cells].reshape(shape), float(numbers[-1]))


class Pace:
    """Whether one more unit ends in time: it is taken to need ``margin`` times as long as the slowest so far."""

    def __init__(self, margin: float = 1.0) -> None:
        self.margin, self.slowest = margin, 0.0
        self._end = math.inf

    def give(self, seconds: float) -> None:
        """Seconds that there are from now on."""
        self._end = now() + seconds

    @property
    def fits(self) -> bool:
        """Whether one more unit is expected to end in time."""
        return now() + self.margin * self.slowest <= self._end

    @contextmanager
    def unit(self) -> Iterator[None]:
        """The time of a unit."""
        start = now()
        yield
        self.slowest = max(self.slowest, now() - start)


Evaluate = Callable[[Unit], bytes]  # any unit of the run, with the bytes of `encode`


class Workers(Protocol):
    """Who evaluates the units of a run."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """Entries for the ``meta`` of results on who did the work; empty for this process alone."""
        ...

    def map(self, units: Sequence[Unit], seconds: float) -> Iterator[tuple[Unit, bytes]]:
        """Evaluate units, each once, and give each with its bytes as soon as they are there, in any order.

        A unit that is not expected to end within ``seconds`` of the call is not begun; then the iterator ends without it, and
        the caller counts what came. An error in a unit is raised by the iterator after what was ready before it. Closing the
        iterator drops what has not begun.
        """
        ...


class Here:
    """The units one after another in this process.

    Args:
        evaluate: the bytes of a unit.

    Attributes:
        pace: with the slowest unit so far, which the next one is expected to take.
    """

    meta: Mapping[str, Any] = {}

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate, self.pace = evaluate, Pace()

    def map(self, units: Iterable[Unit], seconds: float = math.inf) -> Iterator[tuple[Unit, bytes]]:
        """See :class:`Workers`."""
        self.pace.give(seconds)
        for unit in units:
            if not self.pace.fits:
                return
            with self.pace.unit():
                data = self._evaluate(unit)
            yield unit, data
