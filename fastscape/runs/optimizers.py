"""Settings and state of an optimizer for the parameters it moves, from a live optimizer or from its state dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn

from fastscape._checks import counted
from fastscape.runs.checkpoint_names import matched

WRAPPERS = ("optimizer_state_dict", "optimizer", "optim", "optimizer_states")  # the last is Lightning's, a list
_MOVES = {"e_w", "old_p"}  # what SAM keeps of its first step


@dataclass(frozen=True)
class OptimizerState:
    """Hyper-parameters and running averages of an optimizer; tensors are shared with it, not copied.

    Attributes:
        name: of its class, ``"SGD"``, ``"AdamW"`` ...; the nearest class of ``torch.optim`` for one derived from it.
        groups: parameter groups as in ``state_dict()["param_groups"]``; ``params`` are numbers.
        state: number of a parameter -> its state, as in ``state_dict()["state"]``.
        names: names of the parameters in the order of the groups, where they are known.
        remarks: what was assumed, in words.
        reason: why its edge of stability is not that of its class; empty where it is.
        shapes: of the parameters, of a live optimizer.
    """

    name: str
    groups: tuple[Mapping[str, Any], ...]
    state: Mapping[int, Mapping[str, Any]]
    names: tuple[str, ...] | None = None
    remarks: tuple[str, ...] = ()
    reason: str = ""
    shapes: tuple[torch.Size, ...] | None = None

    @classmethod
    def of(cls, value: object, model: nn.Module | None = None) -> OptimizerState:
        """The state of an optimizer, of its ``state_dict()`` (also wrapped in a training checkpoint), or ``value`` itself.

        Args:
            value: a ``torch.optim.Optimizer``, a mapping, or an :class:`OptimizerState`.
            model: whose parameters a live optimizer may hold; gives their names.

        Raises:
            TypeError: something else.
            ValueError: a mapping that is no optimizer's state, or of an optimizer that its settings do not tell; an optimizer
                around another (SAM, Lookahead ...), whose steps are not those of the one inside.
        """
        if isinstance(value, OptimizerState):
            return value
        if isinstance(value, torch.optim.Optimizer):
            return _of_optimizer(value, model)
        if isinstance(value, Mapping):
            return _of_mapping(value)
        inner = "; pass its .optimizer" if isinstance(getattr(value, "optimizer", None), torch.optim.Optimizer) else ""
        raise TypeError(f"optimizer must be a torch.optim.Optimizer or its state_dict(), got {type(value).__name__}{inner}")

    def to_dict(self) -> dict[str, Any]:
        """A dict that ``torch.load(weights_only=True)`` reads back and :meth:`of` takes."""
        return {
            "optimizer_class": self.name,
            "names": None if self.names is None else list(self.names),
            "optimizer": {"param_groups": [dict(group) for group in self.groups], "state": dict(self.state)},
        }

    def by_parameter(self, model: nn.Module) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Group and state of every parameter of the optimizer, by its name in ``model``.

        Parameters without known names are those of the model in order: all of them, or the trainable ones.

        Raises:
            ValueError: names, number or shapes that do not fit the model.
        """
        slots = [(group, self.state.get(number, {})) for group in self.groups for number in group["params"]]
        order = self._order(model, [state for _, state in slots])
        return dict(zip(order, slots, strict=True))

    def _order(self, model: nn.Module, states: Sequence[Mapping[str, Any]]) -> list[str]:
        parameters = dict(model.named_parameters())
        if self.names is not None:
            known = matched(self.names, parameters)
            unknown = [name for name in self.names if known[name] not in parameters]
            if unknown:
                raise ValueError(
                    f"optimizer must hold parameters of {type(model).__name__}, got {unknown[0]!r}; pass this model's optimizer"
                )
            candidates = [[known[name] for name in self.names]]
        else:
            candidates = [list(parameters), [name for name, tensor in parameters.items() if tensor.requires_grad]]
        for names_ in candidates:
            shaped = self.shapes is None or [parameters[name].shape for name in names_] == list(self.shapes)
            if (
                len(names_) == len(states)
                and shaped
                and all(_fits(parameters[n], s) for n, s in zip(names_, states, strict=True))
            ):
                return names_
        raise ValueError(
            f"optimizer must hold the parameters of {type(model).__name__} in order, got {counted(len(states), 'parameter')} "
            f"where it has {len(parameters)}, or other shapes; build the optimizer from model.named_parameters(), whose state "
            "dict carries names"
        )


AnyOptimizer = torch.optim.Optimizer | Mapping[str, Any] | OptimizerState


def groups_of(optimizer: AnyOptimizer | None) -> Sequence[Mapping[str, Any]]:
    """Parameter groups of an optimizer or of its ``state_dict()``; none where there are none."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return optimizer.param_groups
    if isinstance(optimizer, OptimizerState):
        return optimizer.groups
    held: Sequence[Mapping[str, Any]] = (optimizer or {}).get("param_groups", ())
    return held


def _fits(parameter: Tensor, state: Mapping[str, Any]) -> bool:
    """Whether the running averages have the shape of the parameter, or of its rows or columns (a step count has none)."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.ndim}
    return all(_kept(key, parameter.shape) == tensor.shape for key, tensor in tensors.items())


def _kept(key: str, shape: torch.Size) -> torch.Size:
    """The shape of a running average; Adafactor's of a matrix are over its rows and over its columns."""
    match key:
        case "row_var":
            return torch.Size((*shape[:-1], 1))
        case "col_var":
            return torch.Size((*shape[:-2], 1, *shape[-1:]))
    return shape


def _of_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module | None) -> OptimizerState:
    inner = _wrapped(optimizer)
    if inner is not None:
        name, base = inner
        raise ValueError(
            f"optimizer must be one whose own step is known, got {type(optimizer).__name__} around {type(base).__name__}: its "
            f"edge and its noise are not those of the base optimizer; pass optimizer.{name} for those, or optimizer=None"
        )
    content = optimizer.state_dict()
    known = _torch_classes(optimizer)
    found = known[0].__name__ if known else type(optimizer).__name__
    groups = tuple(content["param_groups"])
    remark, own = _perturbed(found, groups), bool(known) and not steps_as_torch(optimizer)
    reason = f"{type(optimizer).__name__} is SAM: its gradients are those of weights moved by rho" if remark and own else ""
    remarks: tuple[str, ...] = (remark,) if remark else ()
    if own:
        remarks += (f"{type(optimizer).__name__} steps in a way of its own; taken for {found}, from which it is derived",)
    names = None
    if model is not None:
        by_identity = {id(tensor): name for name, tensor in model.named_parameters()}
        held = [by_identity.get(id(tensor)) for group in optimizer.param_groups for tensor in group["params"]]
        if all(name is not None for name in held):
            names = tuple(str(name) for name in held)
    shapes = tuple(tensor.shape for group in optimizer.param_groups for tensor in group["params"])
    return OptimizerState(found, groups, content["state"], names or _names_in(groups), remarks, reason, shapes)


def steps_as_torch(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer's step is that of a class of ``torch.optim``."""
    known = _torch_classes(optimizer)
    return bool(known) and unwrap(type(optimizer).step) is unwrap(known[0].step)


def _torch_classes(optimizer: torch.optim.Optimizer) -> list[type[torch.optim.Optimizer]]:
    """Optimizers of torch from which one is derived, the nearest first."""
    kinds = [kind for kind in type(optimizer).__mro__ if issubclass(kind, torch.optim.Optimizer)]
    return [kind for kind in kinds if kind is not torch.optim.Optimizer and kind.__module__.startswith("torch.optim.")]


def _wrapped(optimizer: torch.optim.Optimizer) -> tuple[str, torch.optim.Optimizer] | None:
    """The optimizer inside another, and the name of the attribute that holds it."""
    held = ((name, value) for name, value in vars(optimizer).items() if isinstance(value, torch.optim.Optimizer))
    return next((pair for pair in held if pair[1] is not optimizer), None)


def _perturbed(name: str, groups: Sequence[Mapping[str, Any]]) -> str:
    """A remark on settings of sharpness-aware minimisation, which has a radius rho beside those of its base optimizer."""
    radius = next((key for group in groups for key in group if str(key).startswith("rho")), None)
    if radius is None or name == "Adadelta":
        return ""
    return f"the settings hold {radius!r}, as SAM's do: edge and noise are those of its base optimizer {name}, not SAM's"


def _of_mapping(content: Mapping[str, Any]) -> OptimizerState:
    inner: Any = content
    for key in WRAPPERS:
        if "param_groups" not in inner and key in content:
            inner = content[key]
            inner = inner[0] if isinstance(inner, (list, tuple)) and len(inner) == 1 else inner
    if not (isinstance(inner, Mapping) and "param_groups" in inner and "state" in inner):
        raise ValueError(
            f"optimizer must be a state dict with param_groups and state, got keys {', '.join(map(str, list(content)[:5]))}; "
            "save optimizer.state_dict()"
        )
    groups = _checked_groups(inner)
    name = content.get("optimizer_class") or _inferred(groups)
    names = content.get("names")
    if names is not None and not (isinstance(names, (list, tuple)) and all(isinstance(each, str) for each in names)):
        raise ValueError(f"optimizer must name its parameters by strings, got names {str(names)[:40]!r}")
    remark = _perturbed(str(name), groups)
    moved = any(_MOVES & set(values) for values in inner["state"].values() if isinstance(values, Mapping))
    reason = "the state is SAM's own; pass that of its base_optimizer for the base optimizer's edge" if remark and moved else ""
    return OptimizerState(
        str(name),
        groups,
        inner["state"],
        tuple(names) if names else _names_in(groups),
        (remark,) if remark else (),
        reason,
    )


def _checked_groups(inner: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The parameter groups of a state dict, once it is seen to be one whose averages are floating-point numbers."""
    groups, state = inner["param_groups"], inner["state"]
    if not (
        isinstance(groups, (list, tuple))
        and all(isinstance(group, Mapping) and isinstance(group.get("params"), (list, tuple)) for group in groups)
        and isinstance(state, Mapping)
        and all(isinstance(values, Mapping) for values in state.values())
    ):
        raise ValueError("optimizer must hold param_groups with params and a state for each of them; save optimizer.state_dict()")
    for number, values in state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.ndim and not (value.is_floating_point() and value.itemsize > 1):
                raise ValueError(
                    f"optimizer must hold floating-point averages, got {key} of parameter {number} of {value.dtype}: that of an "
                    "optimizer in 8 bits cannot be read; pass optimizer=None, or train with one in full precision"
                )
    return tuple(groups)


def _names_in(groups: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """Names that torch stores for an optimizer built from ``named_parameters()``."""
    if all("param_names" in group for group in groups):
        return tuple(name for group in groups for name in group["param_names"])
    return None


def _inferred(groups: Sequence[Mapping[str, Any]]) -> str:
    """The class of ``torch.optim`` whose settings a group has; a state dict does not name it."""
    keys = set(groups[0]) if groups else set()
    if "betas" in keys:
        if "momentum_decay" in keys:
            return "NAdam"
        if "amsgrad" in keys and "decoupled_weight_decay" in keys:
            return "AdamW" if groups[0]["decoupled_weight_decay"] else "Adam"
        if "amsgrad" not in keys:
            return "RAdam" if "decoupled_weight_decay" in keys else "Adamax"
        raise ValueError(
            "cannot tell whether this state dict is Adam's or AdamW's (before torch 2.7): put it beside its class, "
            "{'optimizer_class': 'AdamW', 'optimizer': state}"
        )
    for name, needed in (
        ("SGD", {"momentum", "dampening", "nesterov"}),
        ("RMSprop", {"alpha", "centered"}),
        ("Adagrad", {"lr_decay", "initial_accumulator_value"}),
        ("Adadelta", {"rho", "lr"}),
    ):
        if needed <= keys:
            return name
    raise ValueError(
        f"optimizer must be one of torch.optim's whose settings tell its class, got {', '.join(sorted(keys))}; put the state "
        "dict beside its class, {'optimizer_class': 'SGD', 'optimizer': state}"
    )
