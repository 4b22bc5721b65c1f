"""Training of the bend of a Bezier curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastscape._state import exact_arithmetic
from fastscape.curvature.slopes import departing
from fastscape.objective.objective import Objective
from fastscape.objective.replica import Replica
from fastscape.probes.barriers.run import Goals
from fastscape.probes.barriers.weight_paths import Bezier
from fastscape.runs.anytime import Anytime
from fastscape.runs.budget import Budget
from fastscape.runs.evaluations import Evaluations

_KEPT = 20  # steps between two states in a journal


@dataclass
class Training:
    """Outcome of the training: losses by step, why it ended, and what went wrong in words."""

    losses: list[float] = field(default_factory=list)
    reason: str = "complete"
    notes: tuple[str, ...] = ()
    evaluations: int = 0
    error: Exception | None = None
    ended: str = ""


def train_bend(
    objective: Objective,
    path: Bezier,
    movable: Sequence[str],
    goals: Goals,
    steps: int,
    learning_rate: float,
    clock: Budget,
    reserve: float,
    report: Callable[[int], None] | None,
    evaluations: Evaluations,
) -> Training:
    r"""Adam on :math:`E_{t, b}\, L_b(\phi(t))`, whose gradient by theta is :math:`2 t (1 - t) \nabla L_b`.

    Args:
        objective: of all parameters, which the path moves.
        path: its ``theta`` is trained in place.
        movable: names of the parameters that bend.
        goals: for the arithmetic, batch norm and seed.
        steps, learning_rate: of Adam; the rate falls linearly.
        clock, reserve: steps end where ``reserve`` seconds are left.
        report: called with the number of steps after every step.
        evaluations: of a journal, which keeps the state every 20 steps.
    """
    state = _State(path, objective, goals, movable, steps, learning_rate)
    found = state.found
    run = Anytime(clock, reserve=reserve, evaluations=evaluations)
    with exact_arithmetic(state.dtype):
        replica = state.by_batch.replica(state.dtype)
        with run.ends(errors=lambda _: True):
            if run.fits() and (words := departing(replica)):
                found.notes = (f"the curve was trained by another gradient: {words}",)
            started = [tensor.clone() for tensor in path.theta]
            for first in range(0, steps, _KEPT):
                last = min(first + _KEPT, steps)

                def make(first: int = first, last: int = last) -> dict[str, Any]:
                    for step in run.stream(range(first, last)):
                        state.step(step, replica)
                        if found.ended:
                            break
                        if report is not None:
                            report(step + 1)
                    return state.content()

                request = (path.content[:-1], started, first, last, steps, learning_rate)
                state.take(run.evaluations.taken("training", request, make))
                if found.ended:
                    break
    for bend in path.theta:
        bend.grad = None
    found.reason, found.error = run.reason, run.error
    found.notes += (found.ended,) if found.ended else ()
    return found


class _State:
    """A training: the bend, what Adam and the generator hold, and the losses so far."""

    def __init__(
        self, path: Bezier, objective: Objective, goals: Goals, movable: Sequence[str], steps: int, learning_rate: float
    ) -> None:
        self.path, self.steps, self.rate, self.found = path, steps, learning_rate, Training()
        self.generator = torch.Generator().manual_seed(goals.seed % 2**63)
        self.by_batch = objective.normalised("batch") if goals.batch_norm == "recalibrate" else objective
        self.dtype = goals.precision or objective.dtype
        self._fixed = [index for index, name in enumerate(objective.names) if name not in movable]
        self._chances = torch.tensor(objective.batch_weights, dtype=torch.float64)
        self._optimizer = torch.optim.Adam(path.theta, lr=learning_rate)

    def step(self, step: int, replica: Replica) -> None:
        """One step of Adam; a gradient that is not finite ends the training."""
        path, found = self.path, self.found
        self._optimizer.param_groups[0]["lr"] = self.rate * (1 - step / self.steps)
        t = float(torch.rand((), generator=self.generator, dtype=torch.float64))
        batch = int(torch.multinomial(self._chances, 1, generator=self.generator))
        path.write((t,), replica.scratch)
        path.write_buffers(replica, (t,))
        loss, gradient = replica.loss_and_gradient([batch])
        found.evaluations += 1
        if not math.isfinite(loss) or not all(bool(part.isfinite().all()) for part in gradient):
            found.ended = f"training ended at step {step + 1}: the loss or its gradient is not finite at t = {t:.3f}"
            return
        for index, (bend, part) in enumerate(zip(path.theta, gradient, strict=True)):
            bend.grad = torch.zeros_like(bend) if index in self._fixed else part.to(bend.dtype) * (2 * t * (1 - t))
        self._optimizer.step()
        found.losses.append(loss)

    def content(self) -> dict[str, Any]:
        """All that decides the next steps."""
        held: dict[str, Any] = {"generator": self.generator.get_state(), "losses": list(self.found.losses)}
        held |= {"evaluations": self.found.evaluations, "ended": self.found.ended}
        for index, bend in enumerate(self.path.theta):
            held |= {f"{index} bend": bend.clone()}
            held |= {f"{index} {name}": value.clone() for name, value in self._optimizer.state.get(bend, {}).items()}
        return held

    def take(self, held: dict[str, Any]) -> None:
        """Go on from a state; that which was just reached changes nothing."""
        self.generator.set_state(held["generator"])
        self.found.losses, self.found.evaluations = list(held["losses"]), int(held["evaluations"])
        self.found.ended = held["ended"]
        for index, bend in enumerate(self.path.theta):
            bend.copy_(held[f"{index} bend"])
            names = [key.split(" ", 1)[1] for key in held if key.startswith(f"{index} ") and not key.endswith(" bend")]
            if names:
                self._optimizer.state[bend] = {name: held[f"{index} {name}"].to(_place(name, bend)) for name in names}


def _place(name: str, bend: Tensor) -> torch.device:
    return torch.device("cpu") if name == "step" else bend.device  # as Adam has it
