"""One training run of a study: the states that are probed, and what became of the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastscape import zoo
from fastscape._state import preserved_rng
from fastscape.objective.objective import Objective
from fastscape.study.plan import Architecture

_MEMORY = 0.9  # of the moving average of minibatch losses that tells when the loss has halved
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class TrainingOutcome:
    """Outcome of a training run.

    Attributes:
        train_loss: at the end, on the whole training data in evaluation mode.
        test_loss, test_accuracy: at the end, on the test data.
        halved: fraction of the planned steps after which the moving average (0.9) of the minibatch losses was half of the first
            loss; 1 where it never was.
        descent: loss of the probed data, as it was trained, at the first step minus at the last.
    """

    train_loss: float
    test_loss: float
    test_accuracy: float | None
    halved: float
    descent: float


@dataclass(frozen=True)
class Trained:
    """States of one run, on the CPU.

    Attributes:
        start, early, final: state dicts before training, at the early step and at the end.
        early_step, steps: when.
        outcome: what became of it.
        losses: of every minibatch ``[steps]``.
    """

    start: State
    early: State
    final: State
    early_step: int
    steps: int
    outcome: TrainingOutcome
    losses: tuple[float, ...]


def build(architecture: Architecture, seed: int) -> nn.Module:
    """The network with the initial weights of a seed; the global generators stay as they were."""
    with preserved_rng():
        torch.manual_seed(seed)
        return architecture.build()


def train(
    architecture: Architecture,
    model: nn.Module,
    objective: Objective,
    folder: Path,
    *,
    seed: int,
    early: float,
    each: Callable[[int, torch.optim.Optimizer], None] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train ``model`` in place and keep what the study probes.

    Args:
        architecture: data, optimizer and length.
        model: as :func:`build` made it.
        objective: of ``model`` on the probed data.
        folder: for the checkpoints of the start and the end.
        seed: of the minibatches.
        early: fraction of the steps at which a state is kept.
        each, progress: as for :func:`fastscape.zoo.train`.
    """
    early_step = max(1, round(early * architecture.steps))
    losses: list[float] = []
    kept: dict[str, State] = {"start": _copied(model)}
    probed = objective.trained()
    first = probed.loss()

    def record(step: int, loss: float) -> None:
        losses.append(loss)
        if step == early_step:
            kept["early"] = _copied(model)
        if progress is not None:
            progress(step, loss)

    data = architecture.train()
    zoo.train(
        model,
        data,
        folder,
        steps=architecture.steps,
        checkpoints=2,
        batch_size=architecture.batch_size,
        seed=seed,
        optimizer=architecture.optimizer(),
        progress=record,
        each=each,
    )
    train_loss, _ = Objective(model, data, criterion=F.cross_entropy).evaluate_once()
    test_loss, accuracy = Objective(model, architecture.test(), criterion=F.cross_entropy).evaluate_once()
    outcome = TrainingOutcome(train_loss, test_loss, accuracy, _halved(losses), first - probed.loss())
    return Trained(kept["start"], kept["early"], _copied(model), early_step, architecture.steps, outcome, tuple(losses))


def _copied(model: nn.Module) -> State:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _halved(losses: list[float]) -> float:
    """Fraction of the steps after which the moving average is half of the first loss; 1 where it never is."""
    mean = losses[0]
    for step, loss in enumerate(losses):
        mean = _MEMORY * mean + (1 - _MEMORY) * loss
        if mean <= losses[0] / 2:
            return (step + 1) / len(losses)
    return 1.0


def finite(outcome: TrainingOutcome) -> bool:
    """Whether the run ended with finite losses."""
    return bool(np.isfinite([outcome.train_loss, outcome.test_loss]).all())
