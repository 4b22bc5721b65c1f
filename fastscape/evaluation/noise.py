r"""How much of a response is rounding: noise models, calibration, and the gate that decides.

A second difference of losses computed in arithmetic of unit round-off u carries an absolute error of about

.. math:: \sigma = 8 u (L_0 + G), \qquad G = \operatorname{mean}_b \|\partial \ell_b / \partial z_b\| \, \|z_b\|

(z_b the outputs for sample b; for cross-entropy the gradient is ``softmax - onehot``), independent of the radius. The
model was within 0.5 to 20 times of the measured RMS on six networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape._replica import Replica
from fastscape.directions import Directions
from fastscape.evaluation.evaluator import Evaluator

_FLOOR_RADIUS = 1e-11  # of ||w||: true responses are below 1e-19 there, weights still move by 1e5 ulp in float64
SIGNAL_TO_NOISE = 10.0
SHARE_ABOVE = 0.9


def passes_gate(even: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Scales ``[K]`` where at least 90 % of the reference responses ``[K, m]`` are 10 or more times the noise ``[K]``."""
    with np.errstate(invalid="ignore"):
        clear = np.abs(even) >= SIGNAL_TO_NOISE * noise[:, None]
    passed: NDArray[np.bool_] = clear.mean(axis=1) >= SHARE_ABOVE
    return passed


def second_difference(losses: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Even and odd responses ``[K, n]`` and base losses ``[n]`` from losses ``[n, 1 + 2 K]`` at (0, +radii, -radii)."""
    values = losses.numpy().astype(np.float64)
    scales = (values.shape[1] - 1) // 2
    base, plus, minus = values[:, :1], values[:, 1 : 1 + scales], values[:, 1 + scales :]
    with np.errstate(invalid="ignore", over="ignore"):
        return ((plus - base) + (minus - base)).T, ((plus - minus) / 2).T, base[:, 0]


def signed_radii(radii: NDArray[np.float64]) -> list[float]:
    """(0, +radii, -radii): the row of points behind one direction's responses."""
    return [0.0, *radii.tolist(), *(-radii).tolist()]


def rounding_model(replica: Replica) -> float:
    """8 u (L0 + G) with u of the replica's dtype, or of the loss where a model narrows it; G needs visible outputs."""
    objective = replica.objective
    replica.reset()
    total = sensitivity = 0.0
    for index, weight in enumerate(objective.batch_weights):
        loss, outputs = replica.batch_loss(index)
        total += weight * float(loss)
        if outputs is not None and objective.criterion is not None and outputs.is_floating_point():
            with torch.enable_grad():
                leaf = outputs.detach().requires_grad_(True)
                value = replica.module._pair(leaf, replica.batches[index][1])  # type: ignore[misc]
                gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
            if gradient is not None:
                per_term = gradient.double().flatten(2) if gradient.ndim > 2 else gradient.double()
                size = outputs.double().flatten(2) if outputs.ndim > 2 else outputs.double()
                dim = 1 if gradient.ndim > 1 else 0
                sensitivity += weight * float((_norm(per_term, dim) * _norm(size, dim)).sum())
    unit = max(torch.finfo(replica.dtype).eps, torch.finfo(loss.dtype).eps) / 2
    return 8 * unit * (abs(total) + sensitivity) / objective.samples


def _norm(values: Tensor, dim: int) -> Tensor:
    return values.abs() if values.ndim == 1 else values.square().sum(dim).sqrt()


def measured_floor(evaluator: Evaluator, directions: Directions, indices: Sequence[int]) -> float:
    """RMS even response at a radius of 1e-11 ||w||, where only rounding is left."""
    norm = directions.tensors(indices[0])[1]
    radius = np.array([_FLOOR_RADIUS * directions.weight_norm / norm])
    even, _, _ = second_difference(evaluator.losses(directions, indices, signed_radii(radius)))
    return float(np.sqrt(np.mean(even**2)))


def noise_float64(evaluator: Evaluator, directions: Directions, indices: Sequence[int]) -> float:
    """Noise of float64 responses: the larger of the rounding model and the measured floor."""
    modelled, measured = rounding_model(evaluator.replica), measured_floor(evaluator, directions, indices)
    return float(np.fmax(modelled, measured))
