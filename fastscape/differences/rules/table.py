"""The rule table: what an operation does to the lanes of its operands. Both front ends look operations up here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastscape.differences.triple import Decision, Frame, Triple

aten: Any = torch.ops.aten
Rule = Callable[..., Any]  # (frame, y, *arguments, **keywords) -> lanes of y, or of every output
RULES: dict[Any, Rule] = {}
STRUCTURE: set[Any] = set()  # linear operations that only move, copy or add up values
COLLAPSED: set[Any] = set()  # products with a rule of their own for the mean second derivative
THIN: set[Any] = set()  # those that have one where the last operand moves by factors
PIECEWISE: set[Any] = set()  # operations that decide by values: their base is float64
DECISIVE: set[Any] = set()  # operations whose rules take decisions that differ between w and w +- e d


def rule(*targets: Any, structure: bool = False, piecewise: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for overloads.

    A rule takes the frame, the result y of the operation at w, and the operation's arguments, floating-point tensors as
    triples; it gives the lanes of y (``None`` where zero), or a tuple for several results, or ``NotImplemented`` for
    arguments it does not cover.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        if structure:
            STRUCTURE.update(targets)
        if piecewise:
            PIECEWISE.update(targets)
        return function

    return register


def overloads(*names: str) -> Iterator[Any]:
    """Functional overloads of operations, as far as this torch has them."""
    for name in names:
        packet = getattr(aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            found = getattr(packet, overload)
            if not found._schema.is_mutable and "out" not in overload:
                yield found


def shifted(dim: int) -> int:
    """A dimension of a tensor, as one of its rows of lanes ``[R, *shape]``."""
    return dim if dim < 0 else dim + 1


def negative(dim: int, ndim: int) -> int:
    """A dimension counted from the end."""
    return dim if dim < 0 else dim - ndim


def negatives(dims: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Dimensions counted from the end; none or an empty list stands for all."""
    if dims is None or (not isinstance(dims, int) and not len(dims)):
        return tuple(range(-ndim, 0))
    return tuple(negative(dim, ndim) for dim in ([dims] if isinstance(dims, int) else dims))


def triple(value: Any, like: Tensor) -> Triple:
    """A value as a triple; numbers become tensors like ``like``."""
    if isinstance(value, Triple):
        return value
    return Triple(value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=like.dtype, device=like.device))


def moves(value: Any) -> bool:
    """Whether a value depends on the probed parameters."""
    return isinstance(value, Decision) or (isinstance(value, Triple) and value.moves)


def first_of(y: Any, lanes: Any) -> Any:
    """Lanes of the first of several results; the others do not move as far as the model uses them."""
    return NotImplemented if lanes is NotImplemented else (lanes, *[None] * (len(y) - 1))


__all__ = [
    "COLLAPSED",
    "DECISIVE",
    "PIECEWISE",
    "RULES",
    "STRUCTURE",
    "THIN",
    "Frame",
    "Rule",
    "aten",
    "first_of",
    "moves",
    "negative",
    "negatives",
    "overloads",
    "rule",
    "shifted",
    "triple",
]
