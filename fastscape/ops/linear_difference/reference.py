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
    x: Tensor,
    lanes: Tensor | None,
    radii: Tensor,
    weight: Tensor,
    direction: Tensor | None,
    bias_direction: Tensor | None,
    right: Tensor | None = None,
) -> Tensor:
    """See :func:`fastscape.ops.linear_difference.linear_difference`."""
    dtype = result_dtype(lanes, direction, bias_direction)
    compute = torch.float32 if dtype == torch.bfloat16 else dtype
    shape = result_shape(x, lanes, radii, weight, direction, bias_direction)

    def operand(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).to(compute).contiguous()

    d = None if direction is None else operand(direction)
    with torch.autocast(x.device.type, enabled=False):  # would round the operands again
        if right is not None:
            assert direction is not None
            half = (0.5 * radii * radii).to(compute)
            moved = None if lanes is None else operand(lanes)
            thin = thin_products(
                x.to(dtype if lanes is None else compute).to(compute), moved, half, operand(right), bool(half.any())
            )
            out = _with_thin(thin, moved, operand(weight), operand(direction), shape)
        elif lanes is None:
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


def thin_products(x: Tensor, lanes: Tensor | None, half: Tensor, right: Tensor, displaced: bool) -> tuple[Tensor, Tensor | None]:
    """X~ V^T, ``[K, 1 or S, M, r]``, and a V^T, ``[K, S', M, r]``, for V ``[K, r, I]``; ``displaced``: x~ may not be x."""
    count, rank, inputs = right.shape
    still = torch.mm(x, right.flatten(0, 1).T).view(-1, count, rank).transpose(0, 1)[:, None]
    if lanes is None:
        return still, None
    wanted = lanes if lanes.shape[1] == 2 and displaced else lanes[:, :1]
    thin = torch.bmm(wanted.reshape(count, -1, inputs), right.mT).view(*wanted.shape[:-1], rank)
    middle = still if wanted.shape[1] == 1 else torch.addcmul(still, half[:, None, None], thin[:, 1])
    return middle, thin[:, 0]


def _with_thin(
    thin: tuple[Tensor, Tensor | None], lanes: Tensor | None, weight: Tensor, left: Tensor, shape: tuple[int, ...]
) -> Tensor:
    """One product of all lanes with W, and what U adds to it of its thin products."""
    first, second = thin
    if lanes is None:
        return torch.bmm(first[:, 0], left).view(shape)
    made = torch.mm(lanes.flatten(0, 3), weight.T).view(*lanes.shape[:4], len(weight))
    out = made if made.shape == shape else made.new_zeros(shape)
    if out is not made:
        out[:, : made.shape[1]] = made
    for part, factor, added in ((out[:, 0], 1, first), (out[:, 1], 2, second)):
        assert added is not None
        if added.shape[1] == part.shape[1]:  # in place, rows of all radii at once
            part.flatten(1, 2).baddbmm_(added.flatten(1, 2), left, alpha=factor)
        else:
            part.add_(torch.matmul(added, left[:, None]), alpha=factor)
    return out


def thin_operations(x: Tensor, lanes: Tensor | None, radii: Tensor | None, left: Tensor, right: Tensor) -> int:
    """Multiplications and additions of the thin products, ``radii`` being ``None`` where all are zero."""
    (count, rank, outputs), rows = left.shape, x.shape[0]
    kept, orders = (0, 0) if lanes is None else (lanes.shape[2], lanes.shape[1])
    displaced = orders == 2 and radii is not None
    inner = 1 + kept * (1 + displaced)
    outer = (len(radii) if displaced and radii is not None else 1) + kept
    return 2 * count * rank * rows * (inner * right.shape[2] + outer * outputs)
