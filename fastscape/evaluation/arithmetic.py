"""In which arithmetic a loss is evaluated: the narrowest number format on the way from the weights to the loss, and autocast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from fastscape._creation import FunctionMode
from fastscape._state import autocast_here, autocast_outside, exact_arithmetic
from fastscape.objective.definition import Definition
from fastscape.objective.examination import replica_of
from fastscape.objective.replica import Replica
from fastscape.objective.structures import tensors_in

_ROUNDS = {"round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "floor_divide", "bucketize", "searchsorted"}
_CASTS = {"_to_copy", "to", "copy"}
_AROUND = (50.0, 1.0)  # units, with kinks and without: 95 % of directions were within 45 and 0.4 on eighteen perceptrons
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
        own: the dtype of the model.
    """

    dtype: torch.dtype
    narrow: torch.dtype | None = None
    operation: str = ""
    elements: int = 0
    rounds: str = ""
    autocast: torch.dtype | None = None
    outside: torch.dtype | None = None
    own: torch.dtype | None = None

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
        """The same for difference propagation: casts round its values at w, as in the model, and not the differences."""
        return self.spoken("difference propagation around values at w in float64")

    def spoken(self, name: str) -> str:
        """The words after the name of an arithmetic."""
        if self.own in (torch.float16, torch.bfloat16) and self.dtype != self.own:
            name += f", instead of the model's {_name(self.own)}"
        if self.dropped:
            name += f", without your autocast to {_name(self.autocast)}"
        elif self.autocast is not None:
            name += f" with your autocast to {_name(self.autocast)}"
        if self.outside is not None:
            name += f", without the autocast to {_name(self.outside)} around the call"
        by_autocast = self.autocast is not None and not self.dropped and self.narrow == self.autocast
        name = name if self.narrow is None or by_autocast else f"{name}; narrowest {self.step}"
        return f"{name}; roundings in {self.rounds}" if self.rounds else name

    def error_around(self, *, smooth: bool) -> float:
        """Relative error of differences around values at w that are rounded to ``narrow``; 0 without one.

        A unit where everything is smooth. Where there are kinks, other values at w have them at other distances.
        """
        return 0.0 if self.narrow is None else _AROUND[smooth] * torch.finfo(self.narrow).eps

    @property
    def plain(self) -> bool:
        """Whether everything on the way from the weights to the loss is in ``dtype``, without an autocast anywhere."""
        return self.narrow is None and not self.rounds and self.autocast is None and self.outside is None


@dataclass(frozen=True)
class Measured:
    """Statement of a result on its arithmetic: ``meta["arithmetic"]``, and a flag where it is not plain."""

    meta: dict[str, str]
    notes: tuple[str, ...]


def measured_in(objective: Definition, precision: str | torch.dtype) -> Measured:
    """The arithmetic behind a result: of a dtype, or of a precision by name, such as ``"difference"``.

    The gate of an evaluation has found it; a model that raises where none has is left to what was to be measured.
    """
    by_difference = isinstance(precision, str) and precision.startswith("difference")
    name = "float64" if by_difference else precision
    dtype = name if isinstance(name, torch.dtype) else getattr(torch, name)
    try:
        found = arithmetic(objective, dtype)
    except Exception:
        found = Arithmetic(dtype)
    words = found.difference if by_difference else found.words
    if found.plain:
        return Measured({"arithmetic": words}, ())
    note = f"measured by {words}" if by_difference else f"measured in {words}"
    if found.dropped:
        note += ": the network as it is trained rounds more"
    if found.outside is not None:
        note += "; an autocast counts where the model or loss= enters it"
    return Measured({"arithmetic": words}, (note,))


def arithmetic(objective: Definition, dtype: torch.dtype) -> Arithmetic:
    """The arithmetic of an objective's forward in ``dtype``; found once, by one traced forward of the first batch."""
    if _key(dtype) not in objective.known:
        with exact_arithmetic(dtype):
            replica = replica_of(objective, dtype)
            replica.reset()
            traced_loss(replica)
    return _known(objective, dtype)


def assumed(objective: Definition, dtype: torch.dtype) -> None:
    """Take the arithmetic of a sharded model to be that of its dtype: what gathers its weights is not followed."""
    objective.known.setdefault(_key(dtype), Arithmetic(dtype))


def replica_arithmetic(replica: Replica) -> Arithmetic:
    """:func:`arithmetic` of a replica, inside of its evaluation; writes the objective's weights where they are evaluated."""
    if _key(replica.dtype) not in replica.objective.known:
        replica.reset()
        traced_loss(replica)
    return _known(replica.objective, replica.dtype)


def traced_loss(replica: Replica) -> float:
    """The loss of the first batch at the scratch weights, traced for :func:`arithmetic`; counts as an evaluation."""
    replica.evaluations += 1
    try:
        loss, found = _traced(replica)
    except Exception as error:
        loss = float(replica.batch_loss(0)[0])  # the model's own error is raised again
        found = Arithmetic(replica.dtype, rounds="parts that cannot be followed")
        try:
            _traced(replica)
        except Exception:  # parts that torch compiled cannot run under its modes: they tell nothing of their steps
            pass
        else:
            raise error from None  # of a model that raises now and then
    replica.objective.known[_key(replica.dtype)] = found
    return loss


def _traced(replica: Replica) -> tuple[float, Arithmetic]:
    steps, entered = _NarrowSteps(replica), _Autocasts(replica.objective.device.type)
    with replica.noted(steps.follow), steps, entered:
        loss = replica.batch_loss(0)[0]
    rounds = steps.rounds or entered.left
    return float(loss), Arithmetic(replica.dtype, steps.dtype, steps.operation, steps.elements, rounds, entered.dtype)


def _key(dtype: torch.dtype) -> tuple[str, torch.dtype]:
    return "arithmetic", dtype


def _known(objective: Definition, dtype: torch.dtype) -> Arithmetic:
    found: Arithmetic = objective.known[_key(dtype)]
    outside = autocast_outside().get(objective.device.type)
    return replace(found, outside=outside, own=objective.dtype)


class _Autocasts(FunctionMode):
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
        self.dtype: torch.dtype | None = None
        self.operation, self.elements, self.rounds = "", 0, ""

    def follow(self, parameter: Tensor) -> None:
        """Follow what depends on a parameter."""
        self._tainted[parameter] = True

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
