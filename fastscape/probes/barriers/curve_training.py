"""Training of the bend of a Bezier curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from fastscape._state import exact_arithmetic
from fastscape.curvature.slopes import departing
from fastscape.objective.objective import Objective
from fastscape.probes.barriers.run import Goals
from fastscape.probes.barriers.weight_paths import Bezier
from fastscape.runs.anytime import Anytime
from fastscape.runs.budget import Budget


@dataclass
class Training:
    """Outcome of the training: losses by step, why it ended, and what went wrong in words."""

    losses: list[float] = field(default_factory=list)
    reason: str = "complete"
    notes: tuple[str, ...] = ()
    evaluations: int = 0
    error: Exception | None = None


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
    """
    found, generator = Training(), torch.Generator().manual_seed(goals.seed % 2**63)
    by_batch = objective.normalised("batch") if goals.batch_norm == "recalibrate" else objective
    dtype = goals.precision or objective.dtype
    fixed = [index for index, name in enumerate(objective.names) if name not in movable]
    chances = torch.tensor(objective.batch_weights, dtype=torch.float64)
    run = Anytime(clock, reserve=reserve)
    with exact_arithmetic(dtype):
        replica = by_batch.replica(dtype)
        optimizer = torch.optim.Adam(path.theta, lr=learning_rate)
        with run.ends(errors=lambda _: True):
            if run.fits() and (words := departing(replica)):
                found.notes = (f"the curve was trained by another gradient: {words}",)
            for step in run.stream(range(steps)):
                optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
                t = float(torch.rand((), generator=generator, dtype=torch.float64))
                batch = int(torch.multinomial(chances, 1, generator=generator))
                path.write((t,), replica.scratch)
                path.write_buffers(replica, (t,))
                loss, gradient = replica.loss_and_gradient([batch])
                found.evaluations += 1
                if not math.isfinite(loss) or not all(bool(part.isfinite().all()) for part in gradient):
                    found.notes += (f"training ended at step {step + 1}: the loss or its gradient is not finite at t = {t:.3f}",)
                    break
                for index, (bend, part) in enumerate(zip(path.theta, gradient, strict=True)):
                    bend.grad = torch.zeros_like(bend) if index in fixed else part.to(bend.dtype) * (2 * t * (1 - t))
                optimizer.step()
                found.losses.append(loss)
                if report is not None:
                    report(step + 1)
    for bend in path.theta:
        bend.grad = None
    found.reason, found.error = run.reason, run.error
    return found
