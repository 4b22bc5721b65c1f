"""Linear maps with perturbed weights, the perturbation kept apart: the specification in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastscape.ops.direction.reference import Distribution
from fastscape.ops.direction.reference import directions as random_directions

Draw = Callable[[int], Tensor]


def perturbed_linear(
    x: Tensor,
    weight: Tensor,
    id: int,
    seed: int,
    directions: Sequence[int],
    scales: Tensor,
    eps: Tensor,
    distribution: Distribution,
    rank: int = 0,
    right: int = 0,
    generate: Callable[..., list[Tensor]] = random_directions,
) -> Tensor:
    """See :func:`fastscape.ops.perturbed_linear.perturbed_linear`; one direction is stored at a time, or all factors."""
    if rank:
        outputs, inputs = weight.shape
        pair = torch.tensor([id, right], device=x.device)
        factors = generate(pair, seed, list(directions), [rank * outputs, rank * inputs], distribution)
        return thin(x, weight, scales, eps, *(part.reshape(len(directions), rank, -1) for part in factors))
    ids = torch.tensor([id], device=x.device)

    def draw(index: int) -> Tensor:
        return generate(ids, seed, [index], [weight.numel()], distribution)[0]

    return materialised(x, weight, directions, scales, eps, draw)


def materialised(x: Tensor, weight: Tensor, directions: Sequence[int], scales: Tensor, eps: Tensor, draw: Draw) -> Tensor:
    """The products with one stored direction at a time.

    The arithmetic is float64 for float64, else float32; both products take operands in the dtype of ``x``.

    Args:
        x, weight, directions, scales, eps: see :func:`fastscape.ops.perturbed_linear.perturbed_linear`.
        draw: elements of the raw direction of an index, float32 with as many elements as ``weight``.
    """
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x.to(compute)
    factors = coefficients(scales, eps).to(compute).unsqueeze(2)
    out = x.new_empty((len(directions), x.shape[-2], weight.shape[0]))
    with torch.autocast(x.device.type, enabled=False):  # would round the operands again
        shared = rows @ weight.to(compute).T if x.ndim == 2 else None
        for k, index in enumerate(directions):
            z = draw(index).reshape(weight.shape).to(x.dtype).to(compute)
            base = rows[k] @ weight.to(compute).T if shared is None else shared
            out[k] = base + factors[k] * ((rows if x.ndim == 2 else rows[k]) @ z.T)
    return out


def thin(x: Tensor, weight: Tensor, scales: Tensor, eps: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The products with factors ``[K, r, O]`` and ``[K, r, I]``: one with W, which is the same for all directions."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows, (left, right) = x.to(compute), (part.to(x.dtype).to(compute) for part in (left, right))
    with torch.autocast(x.device.type, enabled=False):  # would round the operands again
        out = (rows @ weight.to(compute).T).expand(len(left), -1, -1)
        inner = coefficients(scales, eps).to(compute).unsqueeze(2) * torch.matmul(rows, right.mT)
        return torch.baddbmm(out, inner, left).to(x.dtype)


def coefficients(scales: Tensor, eps: Tensor) -> Tensor:
    """Products eps[k, m] scales[k], float64 ``[K, M]``."""
    return eps.double() * scales[:, None]
