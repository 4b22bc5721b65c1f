r"""Operations without a rule: local evaluation in float64, one lane at a time.

From 1e-5 on by plain differences of f(x), f(x+), f(x-), whose relative error is about 1e-16 / e^2; below, and at e = 0, by nested
forward derivatives of the one operation, which are what the differences tend to where it is smooth. Torch's are wrong for some
operations that are several in one; they are replaced by extrapolated differences where those have converged to something else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastscape._warnings import filtered_warnings
from fastscape.differences.algebra import joined, total
from fastscape.differences.rules.table import moves
from fastscape.differences.triple import Decision, Frame, Triple

_STEP = 1e-3  # of the arguments, in their own units, to check derivatives by differences
_AGREE = 1e-4
_ROUNDING = 1e-11  # of differences of values, such that a ten-thousandth of it is what float64 may leave
SMALLEST = 1e-5  # radius below which derivatives take the place of differences


def _leaf(value: Any) -> bool:
    return isinstance(value, (Triple, Decision, Tensor))


def _apart(one: Tensor, two: Tensor, floor: float) -> float:
    """Largest distance, relative to the largest value or to a number that rounding alone may reach."""
    if not one.numel():
        return 0.0
    scale = max(float(one.abs().max()), float(two.abs().max()), floor)
    return float((one - two).abs().max()) / scale if scale else 0.0


def _alike(one: Any, two: Any, floors: Any) -> bool:
    """Whether first and second derivatives agree."""
    return all(_apart(*parts) < _AGREE for parts in zip(one, two, floors, strict=True))


def _kind(y: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Of the lanes of a result: as wide as given, complex where it is."""
    return torch.promote_types(dtype, torch.complex64) if y.is_complex() else dtype.to_real()


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _real(value: Any) -> bool:
    """Whether a value is a tensor of floating-point or complex numbers."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def fallback(frame: Frame, y: Any, target: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Lanes, or decisions, of every result of an operation."""
    leaves, structure = pytree.tree_flatten((arguments, keywords), is_leaf=_leaf)
    outputs = list(y) if isinstance(y, (tuple, list)) else [y]
    decided = any(isinstance(leaf, Decision) for leaf in leaves)
    floating = [_real(out) for out in outputs]
    if frame.jet and not any(floating):
        return _like(y, [None] * len(outputs))
    evaluate = _Local(frame, target, leaves, structure)
    derive = not decided and any(floating) and bool((frame.radii < SMALLEST).any())
    columns = [evaluate.lane(k, s, derive) for k in range(evaluate.directions) for s in range(len(frame.radii))]
    dtype = evaluate.dtype or frame.dtype
    results = [
        _assembled(frame, out, [column[i] for column in columns], is_float, dtype, evaluate.directions)
        for i, (out, is_float) in enumerate(zip(outputs, floating, strict=True))
    ]
    return _like(y, results)


def decided(frame: Frame, y: Any, lanes: Any, target: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    r"""Lanes of an operation of decisions: those with the decisions as at w, and the jumps where they fall otherwise.

    :math:`f(x_\pm, q_\pm) - f(x_\pm, q)` is exactly zero where the decision q does not matter, so nothing is lost there at any
    radius. Results that are decisions themselves are evaluated at w, w + e d and w - e d.
    """
    leaves, structure = pytree.tree_flatten((arguments, keywords), is_leaf=_leaf)
    outputs, still = (list(part) if isinstance(part, (tuple, list)) else [part] for part in (y, lanes))
    evaluate = _Local(frame, target, leaves, structure)
    dtype = evaluate.dtype or frame.dtype
    results: list[Any] = []
    columns = [evaluate.jumps(k, s) for k in range(evaluate.directions) for s in range(len(frame.radii))]
    for i, (out, lane) in enumerate(zip(outputs, still, strict=True)):
        sides = [torch.stack([column[side][i] for column in columns]) for side in (0, 1)]
        up, down = (side.reshape(evaluate.directions, -1, *side.shape[1:]) for side in sides)
        if not _real(out):
            same = bool((up == out).all()) and bool((down == out).all())
            results.append(None if same else Decision(out, up, down))
            continue
        jumped = frame.from_points(torch.zeros_like(out, dtype=up.dtype), up, down, up.dtype)
        results.append(total(lane, jumped.to(lane.dtype if lane is not None else _kind(out, dtype))))
    return _like(y, results)


def _like(y: Any, results: list[Any]) -> Any:
    return tuple(results) if isinstance(y, (tuple, list)) else results[0]


def _assembled(frame: Frame, y: Any, lanes: list[Any], is_float: bool, dtype: torch.dtype, directions: int) -> Any:
    if not isinstance(y, Tensor):
        return None
    stacks = (torch.stack([lane[part] for lane in lanes]) for part in (0, 1))
    first, second = (stack.reshape(directions, -1, *stack.shape[1:]) for stack in stacks)
    if is_float:
        return joined(first, second).to(_kind(y, dtype))
    same = bool((first == y).all()) and bool((second == y).all())
    return None if same else Decision(y, first, second)


class _Local:
    """One operation at the points of single lanes."""

    def __init__(self, frame: Frame, target: Any, leaves: list[Any], structure: Any) -> None:
        self.frame, self.target, self.leaves, self.structure = frame, target, leaves, structure
        moving = [leaf for leaf in leaves if moves(leaf)]
        self.dtype = next((leaf.lanes.dtype for leaf in moving if isinstance(leaf, Triple) and leaf.lanes is not None), None)
        sizes = [len(leaf.plus) if isinstance(leaf, Decision) else len(leaf.lanes) for leaf in moving]
        self.directions = max(sizes, default=1)

    def __call__(self, values: list[Any]) -> list[Any]:
        arguments, keywords = pytree.tree_unflatten(values, self.structure)
        out = self.target(*arguments, **keywords)
        return list(out) if isinstance(out, (tuple, list)) else [out]

    def lane(self, k: int, s: int, derive: bool) -> list[Any]:
        """(a, b) of every floating result of one lane, (plus, minus) of every other."""
        radius = float(self.frame.radii[s])
        if derive and radius < SMALLEST:
            derivatives = iter(self._derivatives(k, s))
            still = self(self._at(k, s, 0))
            return [next(derivatives) if _real(value) else (value, value) for value in still]
        here, up, down = (self(self._at(k, s, sign)) for sign in (0, 1, -1))
        return [self._lane(*values, radius) for values in zip(here, up, down, strict=True)]

    def jumps(self, k: int, s: int) -> list[list[Any]]:
        """Effect of the decisions of one lane at w + e d and at w - e d; the values themselves where they are decisions."""
        sides = []
        for sign in (1, -1):
            values = self._at(k, s, sign)
            moved = self(values)
            kept = [leaf.x if isinstance(leaf, Decision) else value for leaf, value in zip(self.leaves, values, strict=True)]
            here = self(kept)
            sides.append([up - was if _real(up) else up for up, was in zip(moved, here, strict=True)])
        return sides

    def _lane(self, here: Any, up: Any, down: Any, radius: float) -> Any:
        if not _real(here):
            return up, down
        if not radius:
            return torch.zeros_like(here), torch.zeros_like(here)  # a step function's derivatives
        above, below = up - here, here - down
        return (above + below) / (2 * radius), (above - below) / (radius * radius)

    def _parts(self, leaf: Triple, k: int, s: int) -> tuple[Tensor, Tensor]:
        a, b = leaf.parts
        first = _widened(a[k, min(s, a.shape[1] - 1)])
        return first, torch.zeros_like(first) if b is None else _widened(b[k, min(s, b.shape[1] - 1)])

    def _at(self, k: int, s: int, sign: int, step: float | None = None) -> list[Any]:
        """The arguments at w + sign e d, with another radius if one is given."""
        values = []
        radius = float(self.frame.radii[s]) if step is None else step
        for leaf in self.leaves:
            if isinstance(leaf, Decision):
                values.append(leaf.x if not sign else (leaf.plus if sign > 0 else leaf.minus)[k, s])
            elif isinstance(leaf, Triple):
                value = _widened(leaf.x)
                if sign and leaf.lanes is not None:
                    a, b = self._parts(leaf, k, s)
                    value = value + (sign * radius * a + 0.5 * radius * radius * b)
                values.append(value)
            else:
                values.append(leaf)
        return values

    def _derivatives(self, k: int, s: int) -> list[Any]:
        """First and second derivative: nested forward mode, unless it lacks or differs from differences that have converged."""
        points, settled, floors = self._converged(k, s)
        try:
            nested = self._nested(k, s)
        except (NotImplementedError, RuntimeError):
            if not any(settled):
                raise
            lost = [tuple(torch.full_like(part, torch.nan) for part in parts) for parts in points]
            return [parts if reliable else none for parts, none, reliable in zip(points, lost, settled, strict=True)]
        chosen = []
        for exact, near, reliable, floor in zip(nested, points, settled, floors, strict=True):
            chosen.append(near if reliable and not _alike(exact, near, floor) else exact)
        return chosen

    def _converged(self, k: int, s: int) -> tuple[list[Any], list[bool], list[Any]]:
        """Differences at two steps along the line, extrapolated to zero, whether both agree, and their rounding."""
        moving = [leaf for leaf in self.leaves if isinstance(leaf, Triple) and leaf.lanes is not None]
        reach = max(float(self._parts(leaf, k, s)[0].abs().max()) if leaf.x.numel() else 0.0 for leaf in moving)
        step = _STEP / reach if reach else _STEP
        here = [value for value in self(self._at(k, s, 0)) if _real(value)]
        columns = []
        for radius in (step, step / 2):
            sides = ([value for value in self(self._at(k, s, sign, radius)) if _real(value)] for sign in (1, -1))
            up, down = sides
            columns.append([self._lane(*values, radius) for values in zip(here, up, down, strict=True)])
        points = [tuple((4 * two - one) / 3 for one, two in zip(*pair, strict=True)) for pair in zip(*columns, strict=True)]
        sizes = [float(value.abs().max()) if value.numel() else 0.0 for value in here]
        floors = [(_ROUNDING * size / step, _ROUNDING * size / step**2) for size in sizes]
        settled = [_alike(one, two, floor) for one, two, floor in zip(columns[0], columns[1], floors, strict=True)]
        return points, settled, floors

    def _nested(self, k: int, s: int) -> list[Any]:
        places = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Triple) and leaf.lanes is not None]
        still = self._at(k, s, 0)

        def function(*inputs: Tensor) -> tuple[Tensor, ...]:
            values = list(still)
            for place, value in zip(places, inputs, strict=True):
                values[place] = value
            return tuple(value for value in self(values) if _real(value))

        primals = tuple(still[place] for place in places)
        parts = [self._parts(self.leaves[place], k, s) for place in places]
        a, b = (tuple(part[i] for part in parts) for i in (0, 1))
        with torch.enable_grad(), filtered_warnings(category=FutureWarning):  # torch scripts forward derivatives at first use
            first, second = torch.func.jvp(lambda *z: torch.func.jvp(function, z, a)[1], primals, a)  # type: ignore[misc]
            drift = torch.func.jvp(function, primals, b)[1]
        return [(one, two + three) for one, two, three in zip(first, second, drift, strict=True)]
