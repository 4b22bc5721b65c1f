"""Carry the lanes of a block of directions through the steps of a program."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from fastscape._checks import first_line
from fastscape.differences import collapsed
from fastscape.differences.layout import image_format
from fastscape.differences.program import HOST
from fastscape.differences.rules.fallback import decided, fallback
from fastscape.differences.rules.table import COLLAPSED, DECISIVE, RULES, STRUCTURE, THIN, Rule, aten, moves
from fastscape.differences.steps import Program, Step
from fastscape.differences.triple import Base, Decision, FactoredLanes, Frame, Moved, Triple, seeded
from fastscape.objective.structures import tensors_in
from fastscape.ops._registry import KernelError
from fastscape.runs.memory import out_of_memory

HALVES = {torch.float16, torch.bfloat16}
COMPLEX = STRUCTURE | {aten.abs.default}  # rules that take complex numbers
LOG_SOFTMAX = {aten.log_softmax.int, aten._log_softmax.default}


class MissingRuleError(ValueError):
    """An operation has no rule and local evaluation cannot stand in for it; the message names it and its module."""


class Propagation:
    """A program with weights and one batch: values at w, kept between blocks of directions while they fit.

    Args:
        program: the steps.
        inputs: tensors, or values at w, by the program's input names.
        probed: names of the inputs that move.
        keep: bytes of values at w that may be kept; beyond, they are computed again for every block.
    """

    def __init__(self, program: Program, inputs: Mapping[str, Tensor | Triple], probed: Sequence[str], keep: int) -> None:
        self.program, self._probed = program, set(probed)
        self._inputs = {name: as_values(inputs[name]) for name in program.inputs}
        self._constants = {name: as_values(tensor) for name, tensor in program.constants.items()}
        self._kept: dict[str, Any] = {}
        self._room = keep
        self.peak = 0

    def loss(self) -> Tensor:
        """The loss at w, as the program computes it; notes the most elements that move and are alive at a time in ``peak``."""
        values: dict[str, Any] = self._sources()
        alive: dict[str, int] = {}
        for step in self.program.steps:
            values[step.name] = self._at_w(step, values)
            if step.moves:
                alive[step.name] = sum(tensor.numel() for tensor in tensors_in(plain(values[step.name])))
                self.peak = max(self.peak, sum(alive.values()))
            for name in step.last:
                values.pop(name, None)
                alive.pop(name, None)
        return plain(values[self.program.loss])  # type: ignore[no-any-return]

    @cached_property
    def operations(self) -> int:
        """Multiplications and additions of the matrix products of one forward, of shapes alone; 0 where values decide them."""
        on_meta = replace(self.program, constants={name: value.to("meta") for name, value in self.program.constants.items()})
        inputs = {name: plain(value).to("meta") for name, value in self._inputs.items()}
        try:
            with FlopCounterMode(display=False) as counter:
                Propagation(on_meta, inputs, (), 0).loss()
        except (RuntimeError, NotImplementedError):
            return 0
        return int(counter.get_total_flops())

    def lanes(self, frame: Frame, directions: Moved) -> Tensor | None:
        """Lanes of the loss, ``[K, c, S']``, along directions ``[K, *shape]`` by input name; ``None`` if it does not move."""
        values = self._sources(directions, collapsed.seeded if frame.collapsed else seeded)
        for step in self.program.steps:
            base = self._at_w(step, values)
            values[step.name] = self._moved(frame, step, base, values) if step.moves else base
            for name in step.last:
                values.pop(name, None)
        result = values[self.program.loss]
        return result.lanes if isinstance(result, Triple) else None

    def _sources(self, directions: Moved | None = None, seed: Callable[[Tensor], Tensor] = seeded) -> dict[str, Any]:
        """Inputs by the names of their nodes; those that move with lanes ``[K, 1, 1, *shape]``."""
        values: dict[str, Any] = dict(self._constants)
        for node, name in zip(self.program.nodes, self.program.inputs, strict=True):
            value = self._inputs[name]
            if directions is not None and name in directions:
                value = Triple.along(value.base, directions[name], seed)
            values[node] = value
        return values

    def _at_w(self, step: Step, values: Mapping[str, Any]) -> Any:
        """The result of a step at w."""
        if step.name in self._kept:
            return self._kept[step.name]
        arguments, keywords = _filled(step, lambda node: plain(values[node.name]))
        result = step.target(*arguments, **keywords)
        if "conv" in step.name and isinstance(result, Tensor):
            result = result.contiguous(memory_format=image_format(result))
        result = as_values(result)
        size = 3 * sum(tensor.nbytes for tensor in tensors_in(plain(result))) // 2  # with the copy in the dtype of the lanes
        if size <= self._room:
            self._kept[step.name] = result
            self._room -= size
        return result

    def _moved(self, frame: Frame, step: Step, base: Any, values: Mapping[str, Any]) -> Any:
        """The result of a step with its lanes."""
        arguments, keywords = _filled(step, lambda node: values[node.name])
        if step.target is operator.getitem:
            return arguments[0][arguments[1]]
        if not any(_moves_within(argument) for argument in (*arguments, *keywords.values())):
            return base
        return propagated(frame, step.target, base, arguments, keywords, step.module)


def _filled(step: Step, find: Callable[[fx.Node], Any]) -> tuple[Any, Any]:
    """A step's arguments with values in place of nodes."""
    return map_arg(step.arguments, find), map_arg(step.keywords, find)


def propagated(frame: Frame, target: Any, base: Any, arguments: Any, keywords: Any, module: str = "") -> Any:
    """Outputs of an operation on values of which some move: its results at w with their lanes."""
    name = str(target)
    frame.seen[target] += 1
    if target._schema.name.split("::")[1] in HOST:
        frame.frozen[name] = frame.frozen.get(name, 0) + 1
        return base
    y = plain(base)
    if target not in DECISIVE and any(isinstance(leaf, Decision) for leaf in _leaves((arguments, keywords))):
        return _with_decisions(frame, target, base, arguments, keywords, module)
    rule = RULES.get(target)
    if rule is not None and target not in COMPLEX and any(_complex(leaf) for leaf in _leaves((y, arguments, keywords))):
        rule = None  # of real functions
    lanes = NotImplemented
    if rule is not None:
        if target not in STRUCTURE and any(_is_half(leaf) for leaf in _leaves((y, arguments, keywords))):
            y, arguments, keywords = tree_map(_widened, (y, arguments, keywords), is_leaf=_leaf)
        lanes = _ruled(frame, rule, target, y, arguments, keywords)
    if lanes is NotImplemented:
        lanes = _evaluated(_local, name, module, frame, y, target, arguments, keywords)
        frame.fallbacks[name] = frame.fallbacks.get(name, 0) + 1
    if isinstance(base, (tuple, list)):
        return [_joined(frame, part, lane) for part, lane in zip(base, lanes, strict=True)]
    result = _joined(frame, base, lanes)
    if target in LOG_SOFTMAX and isinstance(result, Triple) and isinstance(arguments[0], Triple):
        result.origin = (arguments[0], arguments[1])
    return result


def _ruled(frame: Frame, rule: Rule, target: Any, y: Any, arguments: Any, keywords: Any) -> Any:
    """Lanes from a rule; ``NotImplemented`` where it fails, so that the local evaluation stands in and is counted."""
    try:
        thin = target in THIN and isinstance(arguments[-1], Triple) and arguments[-1].factors is not None
        if frame.collapsed and not thin and target not in COLLAPSED and target not in STRUCTURE:
            return collapsed.apply(partial(rule, frame, y), arguments, keywords)
        return rule(frame, y, *arguments, **keywords)
    except KernelError:
        raise
    except Exception as error:  # arguments of an operation that its rule did not foresee
        if out_of_memory(error):
            raise
        return NotImplemented


def _local(frame: Frame, y: Any, target: Any, arguments: Any, keywords: Any) -> Any:
    if not frame.collapsed:
        return fallback(frame, y, target, arguments, keywords)
    return collapsed.gathered(fallback(frame, y, target, *collapsed.expanded((arguments, keywords.copy()))))


def _evaluated(function: Callable[..., Any], name: str, module: str, *arguments: Any) -> Any:
    """Local evaluations, or an error that names operation and module."""
    try:
        return function(*arguments)
    except Exception as error:
        where = f" in module {module}" if module else ""
        raise MissingRuleError(
            f"operation {name}{where} has no difference rule, and evaluating it in float64 failed: "
            f"{type(error).__name__}: {first_line(error)}; write it in terms of operations that have one"
        ) from error


def _with_decisions(frame: Frame, target: Any, base: Any, arguments: Any, keywords: Any, module: str) -> Any:
    """The result with decisions as they fall at w, and what they change at w +- e d."""
    still = tree_map(lambda leaf: leaf.x if isinstance(leaf, Decision) else leaf, (arguments, keywords), is_leaf=_leaf)
    result = base
    if any(moves(leaf) for leaf in _leaves(still)):
        result = propagated(frame, target, base, still[0], still[1], module)
    if frame.jet:
        return result
    lanes = tree_map(lambda leaf: leaf.lanes if isinstance(leaf, Triple) else None, result, is_leaf=_leaf)
    jumped = _evaluated(decided, str(target), module, frame, plain(base), lanes, target, arguments, keywords)
    if isinstance(base, (tuple, list)):
        return [_joined(frame, part, lane) for part, lane in zip(base, jumped, strict=True)]
    return _joined(frame, base, jumped)


def _leaf(value: Any) -> bool:
    return isinstance(value, (Triple, Decision))


def _leaves(values: Any) -> list[Any]:
    return tree_leaves(values, is_leaf=_leaf)


def _complex(value: Any) -> bool:
    tensor = value.x if isinstance(value, Triple) else value
    return isinstance(tensor, Tensor) and tensor.is_complex()


def _is_half(value: Any) -> bool:
    tensor = value.x if isinstance(value, Triple) else value
    return isinstance(tensor, Tensor) and tensor.dtype in HALVES


def _widened(value: Any) -> Any:
    """Values at w in float32, where they are narrower: the rules know float32 and float64."""
    if not _is_half(value):
        return value
    if isinstance(value, Tensor):
        return value.float()
    return Triple(value.x.float(), value.held, straight=value.straight)


def _joined(frame: Frame, base: Any, lanes: Any) -> Any:
    """A value at w with its lanes, or the decision that takes its place; scalars may keep the float64 of their sums."""
    if isinstance(lanes, Decision) or lanes is None:
        return base if lanes is None else lanes
    if isinstance(lanes, FactoredLanes):
        return Triple(base.base, lanes)
    if base.ndim and lanes.is_floating_point():
        lanes = lanes.to(frame.dtype)
    return Triple(base.base, lanes)


def as_values(result: Any) -> Any:
    """Floating-point tensors as triples, several results as lists, anything else as it is."""
    if isinstance(result, (tuple, list)):
        return [as_values(part) for part in result]
    if isinstance(result, Tensor) and (result.is_floating_point() or result.is_complex()):
        return Triple(Base(result))
    return result


def plain(value: Any) -> Any:
    """The tensors at w behind a value."""
    if isinstance(value, (Triple, Decision)):
        return value.x
    if isinstance(value, (tuple, list)):
        return type(value)(plain(part) for part in value)
    return value


def _moves_within(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_moves_within(part) for part in value)
    return moves(value)
