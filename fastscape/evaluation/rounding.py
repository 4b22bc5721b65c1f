r"""The rounding of a loss, as modelled from its size and its sensitivity to the outputs.

A second difference of losses computed in arithmetic of unit round-off u carries an absolute error of about

.. math:: \sigma = 8 u (L_0 + G), \qquad G = \operatorname{mean}_b \|\partial \ell_b / \partial z_b\| \, \|z_b\|

(z_b the outputs for sample b; for cross-entropy the gradient is ``softmax - onehot``), independent of the radius. The
model was within 0.5 to 20 times of the measured RMS on six networks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastscape.objective.replica import Replica


def rounding_model(replica: Replica) -> float:
    """8 u (L0 + G) with u of the replica's dtype, or of the loss where a model narrows it; G needs visible outputs."""
    objective = replica.objective
    replica.reset()
    replica.evaluations += 1
    total = sensitivity = 0.0
    for index, weight in enumerate(objective.batch_weights):
        loss, outputs = replica.batch_loss(index)
        total += weight * float(loss)
        sensitivity += weight * output_sensitivity(replica, index, outputs)
    unit = max(torch.finfo(replica.dtype).eps, torch.finfo(loss.dtype).eps) / 2
    return 8 * unit * (abs(total) + sensitivity) / objective.samples


def output_sensitivity(replica: Replica, index: int, outputs: Tensor | None) -> float:
    r"""Sum over the samples of a batch of :math:`\|\partial \ell / \partial z\| \, \|z\|`, for a batch's mean loss of outputs z.

    How far a relative error of the outputs moves the loss: its condition number times the loss. Zero where the outputs or the
    criterion are not seen.
    """
    if outputs is None or replica.objective.criterion is None or not outputs.is_floating_point():
        return 0.0
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_(True)
        value = replica.module._pair(leaf, replica.batches[index][1])  # type: ignore[misc]
        gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        return 0.0
    per_term = gradient.double().flatten(2) if gradient.ndim > 2 else gradient.double()
    size = outputs.double().flatten(2) if outputs.ndim > 2 else outputs.double()
    dim = 1 if gradient.ndim > 1 else 0
    return float((_norm(per_term, dim) * _norm(size, dim)).sum())


def _norm(values: Tensor, dim: int) -> Tensor:
    return values.abs() if values.ndim == 1 else values.square().sum(dim).sqrt()
