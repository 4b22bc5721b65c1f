"""Hessian products as users write them in plain torch: what others are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastscape.objective.replica import Replica


def double_backward(replica: Replica, vector: Sequence[Tensor]) -> Callable[[], tuple[float, list[Tensor]]]:
    """L(w) and H v as torch alone gives them, batch by batch, in the arithmetic of the caller."""
    objective, named = replica.objective, dict(replica.module.model.named_parameters())
    parameters = [named[name] for name in objective.names]

    def product() -> tuple[float, list[Tensor]]:
        total, value = [torch.zeros_like(tensor) for tensor in vector], 0.0
        with torch.enable_grad():
            for index, weight in enumerate(objective.batch_weights):
                loss = replica.batch_loss(index)[0]
                slopes = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
                along = sum((slope * part).sum() for slope, part in zip(slopes, vector, strict=True))
                assert isinstance(along, Tensor)
                parts = torch.autograd.grad(along, parameters, materialize_grads=True) if along.requires_grad else vector
                value += weight * float(loss.detach())
                for sum_, part in zip(total, parts, strict=True):
                    sum_.add_(part.detach(), alpha=weight / objective.samples if along.requires_grad else 0.0)
        return value / objective.samples, total

    return product
