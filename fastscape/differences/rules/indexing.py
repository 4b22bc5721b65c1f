"""Indexing and writing to indices: linear in the values where the indices do not move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastscape.differences.algebra import each, fitted, total
from fastscape.differences.rules.low_rank import factored_embedding
from fastscape.differences.rules.structure import filled
from fastscape.differences.rules.table import aten, negative, overloads, rule, shifted, triple
from fastscape.differences.triple import LEAD, Frame, Triple


@rule(*overloads("index_select"), structure=True)
def _index_selected(frame: Frame, y: Tensor, x: Triple, dim: int, index: Any) -> Any:
    return each(lambda rows: rows.index_select(shifted(dim), index), x.lanes) if isinstance(index, Tensor) else NotImplemented


@rule(*overloads("gather"), structure=True)
def _gathered(frame: Frame, y: Tensor, x: Triple, dim: int, index: Any, **_: Any) -> Any:
    if not isinstance(index, Tensor):
        return NotImplemented
    return each(lambda rows: rows.gather(shifted(dim), index.expand(len(rows), *index.shape)), x.lanes)


@rule(*overloads("index"), structure=True)
def _indexed(frame: Frame, y: Tensor, x: Triple, indices: Sequence[Any]) -> Any:
    if not all(index is None or isinstance(index, Tensor) for index in indices):
        return NotImplemented
    used = [place for place, index in enumerate(indices) if index is not None]
    if used and used[-1] - used[0] + 1 == len(used):  # the result's axes stay in place, also behind one more
        return each(lambda rows: aten.index(rows, [None, *indices]), x.lanes)
    return each(lambda rows: torch.stack([aten.index(row, indices) for row in rows]), x.lanes)


@rule(*overloads("embedding"), structure=True)
def _embedded(frame: Frame, y: Tensor, weight: Triple, index: Any, *_: Any, **__: Any) -> Any:
    if weight.factors is not None and isinstance(index, Tensor):
        return factored_embedding(frame, weight, index)
    return each(lambda rows: rows[:, index], weight.lanes) if isinstance(index, Tensor) else NotImplemented


@rule(*overloads("masked_fill"))
def _masked(frame: Frame, y: Tensor, x: Triple, mask: Any, value: Any) -> Any:
    into, lanes = fitted(x.lanes, y.shape), fitted(value.lanes, y.shape) if isinstance(value, Triple) else None
    kept = None if into is None else into.masked_fill(mask, 0.0)
    return total(kept, None if lanes is None else lanes.masked_fill(~mask, 0.0))


def _scatter(name: str) -> None:
    for overload in overloads(name):

        def apply(frame: Frame, y: Tensor, x: Triple, source: Any, dim: int = 0, *options: Any, _op: Any = overload) -> Any:
            from_, into = triple(source, y), x
            known = from_.lanes if into.lanes is None else into.lanes
            if known is None:
                return None
            lead = [max(v.lanes.shape[axis] for v in (into, from_) if v.lanes is not None) for axis in range(LEAD)]
            target, values = filled(into, lead, known), filled(from_, lead, known)
            return _op(target.contiguous(), values, negative(dim, y.ndim), *options)

        rule(overload, structure=True)(apply)


_scatter("slice_scatter")
_scatter("select_scatter")
_scatter("diagonal_scatter")


def _joint(place: int, *names: str) -> None:
    """Linear operations of the first argument and the one at ``place``, row by row."""
    for overload in overloads(*names):

        def apply(frame: Frame, y: Tensor, *arguments: Any, _op: Any = overload, **keywords: Any) -> Any:
            if keywords.get("reduce", "add") != "add":
                return NotImplemented
            into, source = triple(arguments[0], y), triple(arguments[place], y)
            known = into.lanes if into.lanes is not None else source.lanes
            if known is None:
                return None
            lead = [max(v.lanes.shape[axis] for v in (into, source) if v.lanes is not None) for axis in range(LEAD)]
            target, values = (filled(value, lead, known).flatten(0, LEAD - 1) for value in (into, source))
            rows = [
                _op(row, *arguments[1:place], value.to(row.dtype), *arguments[place + 1 :], **keywords)
                for row, value in zip(target, values, strict=True)
            ]
            return torch.stack(rows).reshape(*lead, *y.shape)

        if overload._overloadname not in ("value", "value_reduce", "int_Scalar", "dimname_value", "Scalar"):
            rule(overload, structure=True)(apply)


_joint(2, "index_put", "_unsafe_index_put", "masked_scatter")
_joint(3, "index_add", "index_copy", "scatter", "scatter_add")


def _number_written(target: Any) -> None:
    """A number takes the place of values."""

    @rule(target, structure=True)
    def apply(frame: Frame, y: Tensor, x: Triple, dim: int, index: Tensor, value: Any) -> Tensor | None:
        return each(lambda rows: torch.stack([target(row, dim, index, 0.0) for row in rows]), x.lanes)


_number_written(aten.scatter.value)
_number_written(aten.index_fill.int_Scalar)
