"""Programs that are kept from one call to the next, and what tells that a model has changed since.

Tracing takes longer than most evaluations, so that programs are kept for as long as the model lives. They take weights, buffers
and batches as inputs; everything else that a forward looks at is recorded as it was. The *signature* of a model holds what can be
seen of that: its modules, their attributes, the functions they hold. What cannot be seen (global variables, files) shows, if it
does, in the loss at w and in the response that is compared with the model's own.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from fastscape.differences.steps import Program
from fastscape.objective.replica import Replica
from fastscape.objective.structures import tensors_of

_MOST = 256  # programs per model; the oldest goes first
_DEPTH = 4  # of attributes of attributes
_LONG = 1000  # elements of a container that are looked at
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, slice, range)
_APART = {"_parameters", "_buffers", "_modules", "training"}  # inputs of programs, other modules, and what evaluation sets
_PROGRAMS: WeakKeyDictionary[nn.Module, dict[Any, Program]] = WeakKeyDictionary()


class Kept:
    """The programs of one objective.

    Attributes:
        used: whether one from an earlier call has been taken.
    """

    def __init__(self, replica: Replica) -> None:
        objective = replica.objective
        self._replica, self.used = replica, False
        self._programs = _PROGRAMS.setdefault(objective.model, {})
        loss = objective.criterion if objective.criterion is not None else objective.user_loss
        self._common = (
            (replica.dtype, str(objective.device), objective.batch_norm, objective.names),
            tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in held(replica).items()),
            signature(objective.model),
            mark(loss),
            mark(objective.output),
        )

    def find(self, index: int) -> Program | None:
        """The program for a batch's shapes, if one is kept."""
        found = self._programs.get(self._key(index))
        self.used = self.used or found is not None
        return found

    def keep(self, index: int, program: Program) -> None:
        """Keep a program for batches of this one's shapes, in place of an earlier one."""
        self._programs[self._key(index)] = program
        while len(self._programs) > _MOST:
            self._programs.pop(next(iter(self._programs)))

    def _key(self, index: int) -> Any:
        return (*self._common, tuple((tuple(x.shape), x.dtype) for x in tensors_of(self._replica.batches[index])))


def held(replica: Replica) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(replica.module.named_parameters()) | dict(replica.module.named_buffers())


def signature(module: nn.Module) -> Any:
    """Fingerprint of how a module computes, but for its weights and buffers: equal values compare equal."""
    return _Marks().of_module(module, _DEPTH)


def mark(value: Any) -> Any:
    """Something hashable that differs where the value does: contents of containers and plain objects, code of functions."""
    return _Marks().of(value, _DEPTH)


class _Marks:
    """One walk through values, each visited once."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, Any]] = {}  # keeps what it has seen, whose id would be used again

    def of(self, value: Any, depth: int) -> Any:
        """The mark of a value."""
        if isinstance(value, _PLAIN):
            return type(value), repr(value)
        if isinstance(value, Tensor):
            return id(value), tuple(value.shape), None if value.is_inference() else value._version
        if id(value) in self._seen:
            return "seen", self._seen[id(value)][0]
        self._seen[id(value)] = len(self._seen), value
        return (type(value), id(value)) if depth == 0 else self._within(value, depth - 1)

    def of_module(self, module: nn.Module, depth: int) -> Any:
        """The marks of a module's parts."""
        return tuple((name, self._of_part(part, depth)) for name, part in module.named_modules())

    def _of_part(self, part: nn.Module, depth: int) -> Any:
        self._seen[id(part)] = len(self._seen), part
        attributes = ((name, self.of(value, depth)) for name, value in vars(part).items() if name not in _APART)
        return type(part), self.of(type(part).forward, depth), tuple(attributes)

    def _within(self, value: Any, depth: int) -> Any:
        """The mark of what has parts."""
        if isinstance(value, nn.Module):
            return self.of_module(value, depth), self._each((*value.parameters(), *value.buffers()), depth)
        if isinstance(value, Mapping):
            return type(value), len(value), self._each(value, depth), self._each(value.values(), depth)
        if isinstance(value, (list, tuple)):
            return type(value), len(value), self._each(value, depth)
        if isinstance(value, (set, frozenset)):
            return type(value), len(value), frozenset(self._each(value, depth))
        if isinstance(value, types.MethodType):
            return self.of(value.__func__, depth), self.of(value.__self__, depth)
        if isinstance(value, partial):
            return self.of(value.func, depth), self._each(value.args, depth), self.of(value.keywords, depth)
        if isinstance(value, types.FunctionType):
            defaults = self.of(value.__defaults__, depth), self.of(value.__kwdefaults__, depth)
            return value.__code__, defaults, tuple(self._content(cell, depth) for cell in value.__closure__ or ())
        return type(value), id(value), self.of(vars(value), depth) if hasattr(value, "__dict__") and depth else None

    def _each(self, values: Iterable[Any], depth: int) -> Any:
        return tuple(self.of(value, depth) for value in islice(values, _LONG))

    def _content(self, cell: Any, depth: int) -> Any:
        try:
            return self.of(cell.cell_contents, depth)
        except ValueError:  # not assigned yet
            return None
