"""In which arithmetic a loss is evaluated: the narrowest number format on the way from the weights to the loss, and autocast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from fastscape._replica import Replica
from fastscape._state import autocast_here, autocast_outside, exact_arithmetic
from fastscape._structures import tensors_in
from fastscape.objective import Objective

_ROUNDS = {"round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "floor_divide", "bucketize", "searchsorted"}
_CASTS = {"_to_copy", "to", "copy"}
_LEAVES = (Tensor.numpy, Tensor.__array__, Tensor.tolist)


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of an objective's forward in one dtype.

    Attributes:
        dtype: that the weights and the data are in.
        narrow: the narrowest dtype, below ``dtype``, of a value that depends on the weights; ``None`` if there is none.
        operation: the first that gives it.
        elements: fewest numbers in a tensor of it.
        rounds: an operation that rounds what depends on the weights whatever its dtype, such as a quantisation, or takes it out
            of torch; empty if none.
        autocast: the dtype of an autocast that the model or the loss enters; ``None`` without one.
        outside: the dtype of an autocast around the call, which the evaluation takes off.
    """

    dtype: torch.dtype
    narrow: torch.dtype | None = None
    operation: str = ""
    elements: int = 0
    rounds: str = ""
    autocast: torch.dtype | None = None
    outside: torch.dtype | None = None

    @property
    def dropped(self) -> bool:
        """Whether an autocast of the model or the loss has no effect: torch casts float32 and narrower, never float64."""
        return self.autocast is not None and self.dtype == torch.float64

    @property
    def step(self) -> str:
        """The narrowest dtype and its operation, such as ``"float16 in aten.mul.Tensor"``; empty if there is none."""
        return "" if self.narrow is None else f"{_name(self.narrow)} in {self.operation}"

    @property
    def words(self) -> str:
        """As ``meta["arithmetic"]`` of results says it."""
        return self.spoken(_name(self.dtype))

    @property
    def difference(self) -> str:
        """The same for difference propagation, whose values at w are in float64 and whose lanes are not rounded by casts."""
        return self.spoken("difference propagation around values at w in float64")

    def spoken(self, name: str) -> str:
        """The words after the name of an arithmetic."""
        if self.dropped:
            name += f", without your autocast to {_name(self.autocast)}"
        elif self.autocast is not None:
            name += f" with your autocast to {_name(self.autocast)}"
        if self.outside is not None:
            name += f", without the autocast to {_name(self.outside)} around the call"
        by_autocast = self.autocast is not None and not self.dropped and self.narrow == self.autocast
        name = name if self.narrow is None or by_autocast else f"{name}; narrowest {self.step}"
        return f"{name}; roundings in {self.rounds}" if self.rounds else name

    @property
    def note(self) -> str:
        """What to beware of where another function than the trained one is measured; empty where it is that one."""
        parts = []
        if self.dropped:
            parts.append(
                f"measured in float64 without your autocast to {_name(self.autocast)}: the network as trained rounds more"
            )
        if self.outside is not None:
            parts.append(
                f"measured without the autocast to {_name(self.outside)} around the call; an autocast inside the model or loss= "
                "would be part of the function"
            )
        return "; ".join(parts)


def arithmetic(objective: Objective, dtype: torch.dtype) -> Arithmetic:
    """The arithmetic of an objective's forward in ``dtype``; found once, by one traced forward of the first batch."""
    known: dict[Any, Arithmetic] = objective.known
    key = "arithmetic", dtype
    if key not in known:
        with exact_arithmetic(dtype):
            replica = objective.replica(dtype)
            replica.reset()
            known[key] = _traced(replica)
    return _outside(known[key], objective)


def replica_arithmetic(replica: Replica) -> Arithmetic:
    """:func:`arithmetic` of a replica, inside of its evaluation; its scratch weights are those of the objective afterwards."""
    known: dict[Any, Arithmetic] = replica.objective.known
    key = "arithmetic", replica.dtype
    if key not in known:
        replica.reset()
        known[key] = _traced(replica)
    return _outside(known[key], replica.objective)


def _outside(found: Arithmetic, objective: Objective) -> Arithmetic:
    here = autocast_outside().get(objective.device.type)
    return found if here is None else Arithmetic(**{**vars(found), "outside": here})


def _traced(replica: Replica) -> Arithmetic:
    steps, entered = _NarrowSteps(replica), _Autocasts(replica.objective.device.type)
    replica.evaluations += 1
    try:
        with steps, entered:
            replica.batch_loss(0)
    except Exception:  # parts that torch compiled cannot run under its modes: they tell nothing of their steps
        replica.batch_loss(0)
        return Arithmetic(replica.dtype, rounds="parts that cannot be followed")
    return Arithmetic(replica.dtype, steps.dtype, steps.operation, steps.elements, steps.rounds or entered.left, entered.dtype)


class _Autocasts(TorchFunctionMode):
    """Notes an autocast that is on where a function of torch is called: below, torch has it off again; and values that leave."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device
        self.dtype: torch.dtype | None = None
        self.left = ""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.dtype = self.dtype or autocast_here().get(self._device)
        if function in _LEAVES and arguments[0].is_floating_point():
            self.left = self.left or f"Tensor.{function.__name__}"
        return function(*arguments, **(keywords or {}))


class _NarrowSteps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows tensors that depend on the scratch parameters, and notes the coarsest dtype that one of them has."""

    def __init__(self, replica: Replica) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._unit = torch.finfo(replica.dtype).eps
        self._tainted = WeakIdKeyDictionary()
        for parameter in replica.module.parameters():
            self._tainted[parameter] = True
        self.dtype: torch.dtype | None = None
        self.operation, self.elements, self.rounds = "", 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        moving = [tensor for tensor in tensors_in([args, kwargs or {}]) if tensor in self._tainted]
        if moving:
            if not self.rounds and _rounds(func, moving, out):
                self.rounds = str(func)
            for tensor in tensors_in(out):
                self._tainted[tensor] = True
                self._note(tensor, str(func))
        return out

    def _note(self, tensor: Tensor, operation: str) -> None:
        if not tensor.is_floating_point():
            return
        unit = torch.finfo(tensor.dtype).eps
        if unit > self._unit:
            self._unit, self.dtype, self.operation, self.elements = unit, tensor.dtype, operation, tensor.numel()
        elif tensor.dtype == self.dtype:
            self.elements = min(self.elements, tensor.numel())


def _rounds(operation: Any, arguments: list[Tensor], out: Any) -> bool:
    """Whether an operation makes steps of floating-point numbers: rounds them, or casts them to integers."""
    name = operation._schema.name.split("::")[1].rstrip("_")
    if name in _CASTS:
        return any(tensor.is_floating_point() for tensor in arguments) and any(
            not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
            for tensor in tensors_in(out)
        )
    return name in _ROUNDS or "quantize" in name


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
