"""Points of a tracker that wait for their time: the state of a training step, kept until it is measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastscape.objective.objective import Objective
from fastscape.probes.tracking.measures import Numbers
from fastscape.probes.tracking.result import TrackPoint
from fastscape.runs.optimizers import AnyOptimizer, OptimizerState, groups_of

_RISEN = 0.99  # of the rate that a schedule names as its own


@dataclass(eq=False)
class Pending:
    """One step that was due.

    Attributes:
        step: training step.
        fraction, learning_rate: see :class:`TrackPoint`.
        remaining: what is still to be measured, in order.
        optimizer: its state at the step.
        state: the weights of the step, once training may have changed the model's.
        found: what is measured.
        left_out: what is not, and why.
        seconds: so far.
        refused: budgets that were too small for the next measurement.
        warm_up: what tells that the learning rate was rising then; empty where it was not.
    """

    step: int
    fraction: float | None
    learning_rate: float | None
    remaining: list[str]
    optimizer: OptimizerState | None
    state: dict[str, Tensor] | None = None
    found: Numbers = field(default_factory=Numbers)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    refused: int = 0
    warm_up: str = ""

    def keep(self, objective: Objective) -> None:
        """Copy the weights and the optimizer's averages to main memory, before training changes them."""
        if self.state is None:
            copies: dict[tuple[int, torch.Size], Tensor] = {}  # tied tensors once
            state = {}
            for name, tensor in objective.model.state_dict().items():
                if not isinstance(tensor, Tensor):  # a module's extra state
                    continue
                key = tensor.data_ptr(), tensor.shape
                if key not in copies:
                    copies[key] = _copied(tensor)
                state[name] = copies[key]
            if self.optimizer is not None:
                self.optimizer = dataclasses.replace(
                    self.optimizer,
                    groups=tuple(_copied_values(group) for group in self.optimizer.groups),
                    state={number: _copied_values(values) for number, values in self.optimizer.state.items()},
                )
            self.state = state

    def at(self, objective: Objective) -> Objective:
        """The objective at the weights of this step."""
        return objective if self.state is None else objective.at(self.state)

    def leave_out(self, reason: str) -> None:
        """Give up the next measurement."""
        self.left_out[self.remaining.pop(0)] = reason

    def point(self, step: int) -> TrackPoint:
        """Measurements of training step ``step``."""
        return TrackPoint(
            step=self.step,
            fraction=self.fraction,
            learning_rate=self.learning_rate,
            values=dict(self.found.values),
            intervals=dict(self.found.intervals),
            left_out=dict(self.left_out),
            seconds=self.seconds,
            measured_at=step,
            notes=tuple(self.found.notes),
        )


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _copied_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Tensor) else value for key, value in values.items()}


class Queue:
    """Points that wait, in the order in which they came.

    Args:
        order: of measurements.
        even: whether points are due at even steps.
    """

    def __init__(self, order: Sequence[str], *, even: bool) -> None:
        self._order, self._even = list(order), even
        self.points: list[Pending] = []

    def __len__(self) -> int:
        return len(self.points)

    @property
    def steps(self) -> list[int]:
        """Of the points."""
        return [point.step for point in self.points]

    def next(self) -> Pending:
        """The point whose next measurement comes first in the order, the oldest of them."""
        return min(self.points, key=lambda point: self._order.index(point.remaining[0]))

    def last_first(self) -> None:
        """Put the point that came last, the end of a run, before what lies between."""
        self.points = [*self.points[-1:], *self.points[:-1]]

    def drop(self, point: Pending) -> None:
        """Take a point out, where it is there."""
        self.points = [other for other in self.points if other is not point]

    def crowded(self, step: int) -> Pending | None:
        """The point with the nearest neighbours, of which the next is ``step``: without it those that stay are spread.

        Distances are differences of steps where they are due at even ones, else ratios. The first point is never meant; ``None``
        where there is no other.
        """
        steps = [*self.steps, step]

        def gap(index: int) -> float:
            before, after = steps[index - 1], steps[index + 1]
            return float(after - before) if self._even else math.log((after + 1) / (before + 1))

        return self.points[min(range(1, len(self.points)), key=gap)] if len(self.points) > 1 else None


def rate_of(optimizer: OptimizerState) -> float | None:
    """Learning rate of the first group, where it has one."""
    rate = optimizer.groups[0].get("lr") if optimizer.groups else None
    return None if rate is None else float(rate)


class Rates:
    """The learning rates that a tracker receives, step by step, and whether they are in a warm-up.

    They are where the last call raised the rate, and where a schedule is below the rate that it names as its own
    (``initial_lr``) and has never lowered it.
    """

    def __init__(self) -> None:
        self.warm_up = ""
        self._last = math.nan
        self._fallen = False

    def add(self, lr: float | None, optimizer: AnyOptimizer | None) -> None:
        """Take in the rate of a step, where it is known."""
        groups = groups_of(optimizer)
        rate = lr if lr is not None else groups[0].get("lr") if groups else None
        if rate is None:
            return
        now, last = float(rate), self._last
        self._last, self._fallen = now, self._fallen or now < last
        goal = float(groups[0].get("initial_lr") or math.nan) if groups else math.nan
        self.warm_up = ""
        if now > last:
            self.warm_up = f"the learning rate rose to {now:g}"
        elif now < _RISEN * goal and not self._fallen:
            self.warm_up = f"the learning rate, {now:g}, has not reached its schedule's {goal:g}"
