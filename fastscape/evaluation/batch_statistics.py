"""Running statistics of batch norm, recomputed on the data of an objective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fastscape._checks import one_of
from fastscape.objective.objective import Objective
from fastscape.objective.replica import Replica

BatchNorm = Literal["recalibrate", "running", "batch"]


def checked_mode(objective: Objective, bn: BatchNorm | None, usual: BatchNorm) -> str:
    """Treatment of running statistics where the weights move: as asked for, or as usual; ``"none"`` without any.

    Layers that are not torch's keep theirs or take the batch's: nothing is known that recomputes them.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    one_of("bn", bn, (*get_args(BatchNorm), None))
    if statistics(objective.model):
        return bn or usual
    if not objective.tracking:
        return "none"
    if bn == "recalibrate":
        raise ValueError(f"bn must be 'running' or 'batch' for {objective.tracking[0]!r}, which is no layer of torch, got {bn!r}")
    return bn or objective.batch_norm


def statistics(model: nn.Module) -> list[_NormBase]:
    """Layers with running statistics: batch norm, and instance norm that tracks them."""
    return [module for module in model.modules() if isinstance(module, _NormBase) and module.running_mean is not None]


def recalibrate(replica: Replica) -> None:
    r"""Replace the running statistics of a replica's batch-norm layers by those of its own data at the scratch weights.

    All batches pass once with these layers in training mode (every other layer, dropout included, stays in evaluation mode), and
    the statistics are the averages of the batches', weighted by the number of values they were taken over:
    :math:`\mu = \sum_b n_b \mu_b / \sum_b n_b`, variances alike. For batches of one size that is ``momentum=None`` of
    ``nn.BatchNorm``; nothing of the earlier statistics is left.

    Raises:
        ValueError: a batch with a single value per channel.

    Cost: one forward per batch.

    Source: Garipov et al. (2018), appendix; Izmailov et al., "Averaging weights leads to wider optima" (2018).
    """
    layers = statistics(replica.module.model)
    handles, momenta, seen = [], [layer.momentum for layer in layers], dict.fromkeys(map(id, layers), 0)

    def weigh(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].numel() // inputs[0].shape[1] if inputs[0].ndim > 1 else inputs[0].numel()
        seen[id(layer)] += values
        layer.momentum = values / seen[id(layer)]  # type: ignore[assignment]

    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
            handles.append(layer.register_forward_pre_hook(weigh))
        replica.evaluations += 1
        for index in range(len(replica.batches)):
            replica.batch_loss(index)
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise ValueError(
                "bn='recalibrate' needs more than one value per channel in every batch of the data; use larger batches or "
                "bn='running'"
            ) from error
        raise
    finally:
        for handle in handles:
            handle.remove()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.eval()
            layer.momentum = momentum


@contextmanager
def kept(replica: Replica) -> Iterator[None]:
    """Restore the running statistics of a replica on exit."""
    layers = statistics(replica.module.model)
    buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
