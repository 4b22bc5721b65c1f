"""Differences of a linear map with perturbed weights: the specification in plain PyTorch, and what answers on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor


def result_shape(
    x: Tensor, lanes: Tensor | None, radii: Tensor, weight: Tensor, direction: Tensor | None, bias_direction: Tensor | None
) -> tuple[int, int, int, int, int]:
    """Directions, lanes of each (1: a alone, b is zero), radii, rows and outputs of the result."""
    perturbed = direction if bias_direction is None else bias_direction
    given = perturbed if lanes is None else lanes
    count = 0 if given is None else given.shape[0]
    if lanes is None:
        return count, 1, 1, x.shape[0], weight.shape[0]
    orders, kept = lanes.shape[1:3]
    if direction is None:
        return count, orders, kept, x.shape[0], weight.shape[0]
    return count, 2, len(radii) if orders == 2 else kept, x.shape[0], weight.shape[0]


def result_dtype(lanes: Tensor | None, direction: Tensor | None, bias_direction: Tensor | None) -> torch.dtype:
    """Of the lanes, where there are none of the perturbation."""
    return next(tensor.dtype for tensor in (lanes, direction, bias_direction) if tensor is not None)


def linear_difference(
    x: Tensor, lanes: Tensor | None, radii: Tensor, weight: Tensor, direction: Tensor | None, bias_direction: Tensor | None
) -> Tensor:
    """See :func:`fastscape.ops.linear_difference.linear_difference`."""
    dtype = result_dtype(lanes, direction, bias_direction)
    compute = torch.float32 if dtype == torch.bfloat16 else dtype
    shape = result_shape(x, lanes, radii, weight, direction, bias_direction)

    def operand(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).to(compute).contiguous()

    d = None if direction is None else operand(direction)
    with torch.autocast(x.device.type, enabled=False):  # would round the operands again
        if lanes is None:
            out = _of_the_weight(operand(x), d, shape)
        else:
            half = (0.5 * radii * radii).to(compute)
            out = _of_the_input(x.to(compute).contiguous(), operand(lanes), half, operand(weight), d, shape, dtype)
        if bias_direction is not None:
            out[:, 0] += operand(bias_direction)[:, None, None]
    return out.to(dtype)


def _of_the_weight(x: Tensor, direction: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """One product for each direction, whatever the radius."""
    if direction is None:
        return x.new_zeros(shape)
    return torch.bmm(x.expand(len(direction), *x.shape), direction.mT).view(shape)


def _of_the_input(
    x: Tensor, lanes: Tensor, half: Tensor, weight: Tensor, direction: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Products of all lanes with W at once; those with D are added into them."""
    count, orders, kept, rows, _ = lanes.shape
    if direction is None:
        return torch.mm(lanes.flatten(0, 3), weight.T).view(shape)
    if orders == 2 and kept < shape[2]:
        return _of_shared_lanes(x, lanes, half, weight, direction)
    out = lanes.new_empty((count, 2, shape[2] * rows, weight.shape[0]))
    if orders == 2:
        torch.mm(lanes.flatten(0, 3), weight.T, out=out.flatten(0, 2))
    for k, d in enumerate(direction):
        a = lanes[k, 0].flatten(0, 1)
        if orders == 2:
            middle = torch.addcmul(x, half[:, None, None], lanes[k, 1])
            out[k, 0].addmm_(middle.to(dtype).to(x.dtype).flatten(0, 1), d.T)
            out[k, 1].addmm_(a, d.T, alpha=2)
        else:
            torch.mm(a, weight.T, out=out[k, 0])
            out[k, 0].view(kept, rows, len(weight)).add_(x.to(dtype).to(x.dtype) @ d.T)
            torch.mm(a, d.T, out=out[k, 1]).mul_(2)
    return out.view(shape)


def _of_shared_lanes(x: Tensor, lanes: Tensor, half: Tensor, weight: Tensor, direction: Tensor) -> Tensor:
    """Lanes that are the same for all radii: x~ D^T = x D^T + (e^2/2) b D^T, no product for each radius."""
    a, b = lanes[:, 0, 0], lanes[:, 1, 0]
    first = torch.matmul(a, weight.T) + torch.matmul(x, direction.mT)
    second = torch.baddbmm(torch.matmul(b, weight.T), a, direction.mT, alpha=2)
    out = lanes.new_empty((len(lanes), 2, len(half), *first.shape[1:]))
    torch.addcmul(first[:, None], half[:, None, None], torch.bmm(b, direction.mT)[:, None], out=out[:, 0])
    out[:, 1] = second[:, None]
    return out
