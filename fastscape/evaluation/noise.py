r"""How much of a response is rounding: noise models, calibration, and the gate that decides.

A second difference of losses computed in arithmetic of unit round-off u carries an absolute error of about

.. math:: \sigma = 8 u (L_0 + G), \qquad G = \operatorname{mean}_b \|\partial \ell_b / \partial z_b\| \, \|z_b\|

(z_b the outputs for sample b; for cross-entropy the gradient is ``softmax - onehot``), independent of the radius. The
model was within 0.5 to 20 times of the measured RMS on six networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from fastscape._batches import tensors_of
from fastscape._replica import Replica
from fastscape.directions import Directions
from fastscape.evaluation.evaluator import Evaluator
from fastscape.evaluation.points import second_difference, signed_radii

_FLOOR_RADIUS = 1e-11  # of ||w||: true responses are below 1e-19 there, weights still move by 1e5 ulp in float64
_NARROW_RADII = (1e-8, 3e-8, 1e-7)  # one to two ulp of float32: its roundings are independent on the two sides
SIGNAL_TO_NOISE = 10.0
SHARE_ABOVE = 0.9


def passes_gate(even: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Scales ``[K]`` where at least 90 % of the reference responses ``[K, m]`` are 10 or more times the noise ``[K]``."""
    with np.errstate(invalid="ignore"):
        clear = np.abs(even) >= SIGNAL_TO_NOISE * noise[:, None]
    passed: NDArray[np.bool_] = clear.mean(axis=1) >= SHARE_ABOVE
    return passed


def rounding_model(replica: Replica) -> float:
    """8 u (L0 + G) with u of the replica's dtype, or of the loss where a model narrows it; G needs visible outputs."""
    objective = replica.objective
    replica.reset()
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


def narrow_step(replica: Replica) -> tuple[torch.dtype, str] | None:
    """First operation that turns what depends on the weights into a narrower float than the replica's, or None.

    Such a step (an attention softmax or a norm in float32, a ``.float()`` before the loss) limits every response, whatever
    the precision asked for. Cost: one evaluation, a few microseconds slower per operation.
    """
    replica.reset()
    steps = _NarrowSteps(replica)
    with steps:
        replica.loss()
    return steps.found


class _NarrowSteps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow tensors that depend on the scratch parameters, and note where one becomes narrower."""

    def __init__(self, replica: Replica) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bits = torch.finfo(replica.dtype).bits
        self._tainted = WeakIdKeyDictionary()
        for parameter in replica.module.parameters():
            self._tainted[parameter] = True
        self.found: tuple[torch.dtype, str] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(tensor in self._tainted for tensor in tensors_of([args, kwargs or {}])):
            for tensor in tensors_of(out):
                self._tainted[tensor] = True
                if self.found is None and tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < self._bits:
                    self.found = tensor.dtype, str(func)
        return out


def measured_floor(
    evaluator: Evaluator, directions: Directions, indices: Sequence[int], radii: Sequence[float] = (_FLOOR_RADIUS,)
) -> float:
    """Largest RMS even response over tiny relative radii, where only rounding is left."""
    norm = directions.length(indices[0])
    steps = np.array(radii) * (directions.weight_norm / norm if directions.weight_norm > 0 else 1.0)
    even, _, _ = second_difference(evaluator.losses(directions, indices, signed_radii(steps)))
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.sqrt(np.mean(even**2, axis=1)).max())


def noise_float64(evaluator: Evaluator, directions: Directions, indices: Sequence[int]) -> tuple[float, str]:
    """Noise of float64 responses, and the narrower operation behind it, if any.

    The larger of the rounding model and the floor measured at 1e-11 ||w||. Where an operation is narrower than float64 that
    radius rounds alike on both sides, and the floor is measured at 1e-8 .. 1e-7 as well, with a factor of 2.
    """
    sigma = np.fmax(rounding_model(evaluator.replica), measured_floor(evaluator, directions, indices))
    narrow = narrow_step(evaluator.replica)
    if narrow is None:
        return float(sigma), ""
    sigma = np.fmax(sigma, 2 * measured_floor(evaluator, directions, indices, _NARROW_RADII))
    return float(sigma), f"{narrow[0]} in {narrow[1]}".replace("torch.", "")
