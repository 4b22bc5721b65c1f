"""The update along which steps are measured: given by the user, the step of an optimizer, or the negative gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastscape._checks import shown
from fastscape._state import exact_arithmetic
from fastscape.objective.arguments import matched_state
from fastscape.objective.objective import Objective, checked_objective
from fastscape.runs.checkpoints import read_optimizer
from fastscape.runs.next_step import checked_steps, next_step
from fastscape.runs.optimizers import AnyOptimizer

State = Mapping[str, Tensor]
AnyUpdate = State | Tensor | tuple[State, State] | None
_FIRST = 1e-2  # of ||w||: length of the first step along a gradient, whose own length says nothing


@dataclass(frozen=True)
class Update:
    r"""An update u.

    Attributes:
        tensors: in the order of ``objective.names``, float64.
        words: what it is.
        rate: the learning rate, of an optimizer; else ``None``.
        guess: length of a first step, in units of u.
        norm: :math:`\|u\|`.
        notes: what was assumed.
    """

    tensors: list[Tensor]
    words: str
    rate: float | None
    guess: float
    norm: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What the user gave, checked before any work is done; see :func:`fastscape.critical_sharpness`."""

    objective: Objective
    update: AnyUpdate
    optimizer: AnyOptimizer | None
    relative_to: Objective | None

    @classmethod
    def of(
        cls,
        objective: Objective,
        update: AnyUpdate,
        optimizer: AnyOptimizer | str | Path | None,
        relative_to: Objective | None,
    ) -> Asked:
        """Check.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        if update is not None and optimizer is not None:
            raise ValueError("pass either update= or optimizer=, not both: an optimizer makes an update of its own")
        if relative_to is not None:
            _check_other(objective, relative_to, update)
        if isinstance(optimizer, (str, Path)):
            optimizer = read_optimizer(Path(optimizer))
        if optimizer is not None:
            checked_steps(optimizer, objective)
        if update is not None:
            _given(objective, update)
        return cls(objective, update, optimizer, None if relative_to is None else relative_to.trained())

    def make(self) -> tuple[float, Update | None]:
        """The loss that was differentiated (NaN where none was), and the update; ``None`` where that loss is not finite.

        Raises:
            ValueError: an update that is zero or not finite, or a step that cannot be made.

        Cost: a gradient, unless the update was given.
        """
        if self.update is not None:
            tensors, words = _given(self.objective, self.update)
            return math.nan, _checked(Update(tensors, words, None, 1.0, _norm(tensors)), "update")
        source = self.relative_to or self.objective
        loss, gradient = _gradient(source)
        if not math.isfinite(loss):
            return loss, None
        of = "" if self.relative_to is None else " of the other objective"
        if self.optimizer is None:
            tensors = [-part.double() for part in gradient.values()]
            size = _norm(tensors)
            guess = _FIRST * self.objective.norm / size if size and self.objective.norm else 1.0
            return loss, _checked(Update(tensors, f"negative gradient{of}", None, guess, size), f"the gradient{of}")
        step = next_step(self.optimizer, self.objective, gradient)
        tensors = [step.update[name] for name in self.objective.names]
        words = f"step of {step.optimizer}" + (f" from the gradient{of}" if of else "")
        return loss, _checked(
            Update(tensors, words, step.rate, step.rate or 1.0, _norm(tensors), step.notes), f"the step of {step.optimizer}"
        )


def _check_other(objective: Objective, other: Objective, update: AnyUpdate) -> None:
    try:
        checked_objective(other)
    except TypeError as error:
        raise TypeError(f"relative_to: {error}") from error
    shapes = [{name: tensor.shape for name, tensor in each.base.items()} for each in (objective, other)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"relative_to must be an objective of the same parameters, got {', '.join(other.names[:3])} ... "
            f"({len(other.names)} tensors); make it of the same model with the same params="
        )
    if other.weight_fingerprint() != objective.weight_fingerprint():
        raise ValueError("relative_to must be an objective at the same weights, got others; make it of the same model")
    if update is not None:
        raise ValueError("relative_to must come without update=, which follows no objective; leave one out")


def _given(objective: Objective, update: AnyUpdate) -> tuple[list[Tensor], str]:
    """An update as tensors in order, and what it is.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    base = objective.base
    if isinstance(update, Tensor):
        if update.shape != (objective.size,):
            raise ValueError(f"update must have shape [D = {objective.size}], got {list(update.shape)}")
        parts = torch.split(update, [tensor.numel() for tensor in base.values()])
        named: dict[str, Tensor] = {
            name: part.reshape(tensor.shape) for part, (name, tensor) in zip(parts, base.items(), strict=True)
        }
        words = "given update"
    elif isinstance(update, Mapping):
        named, words = dict(update), "given update"
    elif isinstance(update, (tuple, list)) and len(update) == 2 and all(isinstance(state, Mapping) for state in update):
        first, second = (_matched(objective, state, index) for index, state in enumerate(update))
        named = {name: second[name].double() - first[name].double().to(second[name].device) for name in base}
        words = "difference of two states"
    else:
        raise TypeError(
            f"update must map parameter names to tensors, or be a tensor [D] or a pair of state dicts (before, after), got "
            f"{shown(update)}"
        )
    for name, tensor in named.items():
        if name not in base:
            raise ValueError(f"update names {name!r}, which is not a probed parameter of the objective")
        if not isinstance(tensor, Tensor) or tensor.shape != base[name].shape or tensor.is_complex() or tensor.is_meta:
            kind = f"{tensor.dtype} on {tensor.device}" if isinstance(tensor, Tensor) else ""
            found = f"shape {list(tensor.shape)}, {kind}" if kind else shown(tensor)
            raise ValueError(f"update[{name!r}] must be a real tensor of shape {list(base[name].shape)}, got {found}")
    tensors = [
        named[name].detach().to(tensor.device, torch.float64) if name in named else torch.zeros_like(tensor, dtype=torch.float64)
        for name, tensor in base.items()
    ]
    _checked(Update(tensors, words, None, 1.0, _norm(tensors)), "update")
    return tensors, words


def _matched(objective: Objective, state: Any, index: int) -> dict[str, Tensor]:
    try:
        return matched_state(objective.model, state)
    except (TypeError, ValueError) as error:
        raise ValueError(f"update[{index}]: {error}") from error


def _checked(update: Update, what: str) -> Update:
    if not math.isfinite(update.norm):
        raise ValueError(f"{what} must be finite, got NaN or inf; a smaller learning rate, or the weights before, may have one")
    if not update.norm:
        raise ValueError(f"{what} must not be zero: no step along it moves the weights; pass another update=")
    return update


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(math.fsum(float(tensor.square().sum()) for tensor in tensors))


def _gradient(objective: Objective) -> tuple[float, dict[str, Tensor]]:
    """L(w) and the gradient by name."""
    with exact_arithmetic(objective.dtype):
        replica = objective.replica(objective.dtype)
        replica.reset()
        loss, parts = replica.loss_and_gradient()
    return loss, dict(zip(objective.names, parts, strict=True))
