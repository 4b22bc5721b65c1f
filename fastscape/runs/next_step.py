"""The step that an optimizer would take next, made on copies of its parameters and state in float64."""

from __future__ import annotations

import copy
import inspect
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscape._checks import counted, first_line
from fastscape._state import preserved_rng
from fastscape.objective.objective import Objective
from fastscape.runs.optimizers import AnyOptimizer, OptimizerState, steps_as_torch

_PLAIN = {"foreach": False, "fused": False, "capturable": False, "differentiable": False}  # kernels of some dtypes and devices
_LEFT = ("step", "zero_grad", "param_groups", "state")  # a scheduler binds the first to the optimizer itself
_HOOKS = "_optimizer_"  # how torch names attributes that hold the user's hooks


@dataclass(frozen=True)
class NextStep:
    r"""The step of an optimizer from its state, per unit of its learning rate.

    Attributes:
        optimizer: name of its class.
        update: :math:`u = (w' - w) / \eta` by parameter, float64; zero for parameters that it does not hold.
        rate: :math:`\eta`, the learning rate of the first group that has one.
        notes: what was assumed, in words.
    """

    optimizer: str
    update: dict[str, Tensor]
    rate: float
    notes: tuple[str, ...]


def next_step(optimizer: AnyOptimizer, objective: Objective, gradient: Mapping[str, Tensor]) -> NextStep:
    """The step that an optimizer would take at an objective's weights.

    The optimizer, its state, its hooks and the model are left alone: its class's own step runs on copies in float64, in which a
    small step is no rounding of the weights. A rate of 0, as at the first step of a warm-up, gives the direction at a rate of 1.

    Args:
        optimizer: of ``torch.optim``, or with a step of its own; or its state, for the classes of ``torch.optim``.
        objective: whose weights it moves; those that it does not hold stay.
        gradient: of the probed parameters, by name.

    Raises:
        TypeError: no optimizer.
        ValueError: one of another model, one that maximizes, or one whose step needs more than gradients (a closure, a second
            pass at other weights).

    Cost: four copies of the parameters in float64, and those of the state.
    """
    checked_steps(optimizer, objective)
    found = OptimizerState.of(optimizer, objective.model)
    slots = found.by_parameter(objective.model)
    held = {name: objective.base[name].detach().to(torch.float64, copy=True) for name in objective.names if name in slots}
    copies = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in held.items()}
    for name, parameter in copies.items():
        parameter.grad = gradient[name].detach().to(torch.float64, copy=True)
    own = isinstance(optimizer, torch.optim.Optimizer) and not steps_as_torch(optimizer)
    try:
        clone = _cloned(optimizer, objective, copies) if own else _rebuilt(found, slots, copies)  # type: ignore[arg-type]
        rates = _rates(clone.param_groups)
        with torch.no_grad(), preserved_rng():
            inspect.unwrap(type(clone).step)(clone)  # without hooks, which are the user's
    except Exception as error:  # whatever a step does with other tensors than those that it was made for
        raise ValueError(
            f"optimizer must make its step from gradients alone, got {type(error).__name__} from that of {found.name}: "
            f"{first_line(error)}; pass update="
        ) from error
    update = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in objective.base.items()}
    update |= {name: (copies[name].detach() - held[name]) / (rates[0] or 1.0) for name in held}
    return NextStep(found.name, update, rates[0], (*found.remarks * (not own), *_notes(objective, held, rates)))


def checked_steps(optimizer: AnyOptimizer, objective: Objective) -> None:
    """Raise unless the optimizer's step can be made on copies; see :func:`next_step`. Nothing is evaluated."""
    found = OptimizerState.of(optimizer, objective.model)
    if found.reason:
        raise ValueError(f"optimizer must be one whose step needs the gradient alone, got {found.name}: {found.reason}")
    slots = found.by_parameter(objective.model)
    if not any(name in slots for name in objective.names):
        raise ValueError(f"optimizer must hold a probed parameter, got none of {', '.join(objective.names[:3])}")
    if any(group.get("maximize") for group, _ in slots.values()):
        raise ValueError("optimizer must minimize the loss, got maximize=True; negate the loss of the objective instead")
    for group, _ in slots.values():
        rate = group.get("lr")
        if rate is not None and not 0 <= float(rate) < math.inf:  # torch looks once, and schedules write it
            raise ValueError(f"optimizer must have finite learning rates of at least 0, got {float(rate)}")
    kind: Any = type(optimizer) if isinstance(optimizer, torch.optim.Optimizer) else getattr(torch.optim, found.name, None)
    step = getattr(kind, "step", None)
    if step is None:
        raise ValueError(
            f"optimizer must be the optimizer itself, or a state of a class of torch.optim, got the state of {found.name!r}"
        )
    closure = inspect.signature(inspect.unwrap(step)).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f"optimizer must make its step from gradients alone, got {found.name}, which needs a closure; pass update="
        )


def _rebuilt(
    found: OptimizerState, slots: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]], copies: Mapping[str, Tensor]
) -> torch.optim.Optimizer:
    """An optimizer of a class of torch over the copies, one group for each, with the state of each."""
    groups = [{**_plain(slots[name][0]), "params": [parameter]} for name, parameter in copies.items()]
    made: torch.optim.Optimizer = getattr(torch.optim, found.name)(groups)
    for name, parameter in copies.items():
        made.state[parameter] = _wide(slots[name][1], parameter)
    return made


def _cloned(optimizer: torch.optim.Optimizer, objective: Objective, copies: Mapping[str, Tensor]) -> torch.optim.Optimizer:
    """A copy of an optimizer with a step of its own; its parameters are the copies, and others have no gradient."""
    names = {id(parameter): name for name, parameter in objective.model.named_parameters()}
    memo: dict[int, Any] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names.get(id(parameter), "")
            memo[id(parameter)] = copies[name] if name in copies else torch.nn.Parameter(parameter.detach().double())
    made: torch.optim.Optimizer = object.__new__(type(optimizer))
    kept = {key: value for key, value in vars(optimizer).items() if key not in _LEFT and not key.startswith(_HOOKS)}
    made.__dict__.update(copy.deepcopy(kept, memo))
    made.__dict__.update({key: OrderedDict() for key in vars(optimizer) if key.startswith(_HOOKS)})
    made.param_groups = [
        {**_plain(group), "params": [memo[id(parameter)] for parameter in group["params"]]} for group in optimizer.param_groups
    ]
    made.state = defaultdict(dict, {memo[id(p)]: _wide(state, memo[id(p)]) for p, state in optimizer.state.items()})
    return made


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a group, copied, without parameters and with the kernels that take every dtype."""
    settings = {key: copy.deepcopy(value) for key, value in group.items() if key not in ("params", "param_names")}
    return settings | {key: value for key, value in _PLAIN.items() if key in settings}


def _wide(state: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """A parameter's state, copied, its floating-point tensors in float64 where the parameter is."""
    found = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            wide = value.detach().double() if value.is_floating_point() else value.detach()
            found[key] = wide.clone() if key == "step" else wide.to(parameter.device, copy=True)
        else:
            found[key] = copy.deepcopy(value)
    return found


def _rates(groups: Iterable[dict[str, Any]]) -> tuple[float, ...]:
    """Rates of the groups, in order, from the first by which the step is to be divided; where all are 0, groups get 1.

    Without one, it is 1.
    """
    groups = list(groups)
    rates = [float(group["lr"]) for group in groups if group.get("lr") is not None]
    first = next((index for index, value in enumerate(rates) if value), None)
    if rates and first is None:
        for group in groups:
            group["lr"] = 1.0
        return (0.0,)
    return (rates[first], *rates[:first], *rates[first + 1 :]) if first is not None else (1.0,)


def _notes(objective: Objective, held: Mapping[str, Tensor], rates: Sequence[float]) -> Iterable[str]:
    fixed = len(objective.names) - len(held)
    if fixed:
        yield f"{counted(fixed, 'probed parameter')} that the optimizer does not hold stay"
    if not rates[0]:
        yield "the learning rate is 0: the direction is that of a rate of 1"
    if len(set(rates)) > 1:
        yield f"learning rates of the groups lie between {min(rates):g} and {max(rates):g}: the step is in units of {rates[0]:g}"
