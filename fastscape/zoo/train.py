"""Train a zoo model in seconds, leaving real checkpoints at log-spaced steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from fastscape._checks import check_progress
from fastscape._files import replaced
from fastscape._state import preserved_rng
from fastscape.runs.checkpoint_layouts import OPTIMIZER
from fastscape.runs.optimizers import OptimizerState
from fastscape.zoo.data import Batches


def checkpoint_steps(steps: int, count: int) -> list[int]:
    """0, then at most ``count - 1`` log-spaced steps up to ``steps``."""
    if steps < 1 or count < 2:
        raise ValueError(f"steps must be at least 1 and count at least 2, got {steps} and {count}")
    spaced = np.unique(np.rint(np.geomspace(1, steps, count - 1)).astype(int))
    return [0, *spaced.tolist()]


def train(
    model: nn.Module,
    data: Batches,
    out: str | Path,
    *,
    steps: int = 300,
    checkpoints: int = 8,
    learning_rate: float = 1e-2,
    batch_size: int = 64,
    seed: int = 0,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    progress: Callable[[int, float], None] | None = None,
    each: Callable[[int, torch.optim.Optimizer], None] | None = None,
) -> list[Path]:
    """Train ``model`` in place by Adam, or another optimizer, on minibatches of ``data``, and save state dicts as it goes.

    Args:
        model: classifier whose outputs ``F.cross_entropy`` takes.
        data: batches ``(inputs, targets)``; minibatches are drawn from all of them.
        out: directory for ``step<n>.safetensors`` (made where missing), with the optimizer's state beside each in
            ``step<n>.optimizer.pt``.
        steps: optimiser steps.
        checkpoints: how many state dicts: the initial one and log-spaced steps.
        learning_rate, batch_size, seed: of the optimisation; the global generators are left as they were.
        optimizer: makes the optimizer of the parameters; ``None`` for Adam with ``learning_rate``.
        progress: called with (step, minibatch loss).
        each: called with (step, optimizer) before the first step and after every one, whose gradients are still there.

    Returns:
        The checkpoint files in order.
    """
    check_progress(progress)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    inputs, targets = (torch.cat([batch[part] for batch in data]) for part in (0, 1))
    wanted = checkpoint_steps(steps, checkpoints)
    optimiser = optimizer(model.parameters()) if optimizer else torch.optim.Adam(model.parameters(), lr=learning_rate)
    files = [_saved(model, optimiser, folder, 0)]
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with preserved_rng():
        torch.manual_seed(seed)
        if each is not None:
            each(0, optimiser)
        for step in range(1, steps + 1):
            loss = _step(model, optimiser, inputs, targets, torch.randint(len(inputs), (batch_size,), generator=generator))
            if progress is not None:
                progress(step, float(loss))
            if each is not None:
                each(step, optimiser)
            if step in wanted:
                files.append(_saved(model, optimiser, folder, step))
    return files


def _step(model: nn.Module, optimiser: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    optimiser.zero_grad()
    loss: Tensor = F.cross_entropy(model(inputs[rows]), targets[rows])
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return loss.detach()


def _saved(model: nn.Module, optimiser: torch.optim.Optimizer, folder: Path, step: int) -> Path:
    path = folder / f"step{step}.safetensors"
    with replaced(path) as stream:
        stream.write(save({name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}))
    with replaced(folder / f"step{step}{OPTIMIZER}") as stream:
        torch.save(OptimizerState.of(optimiser, model).to_dict(), stream)
    return path
