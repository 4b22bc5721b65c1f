"""Max-pooling of planes in difference lanes: the specification in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastscape.ops._row_lanes import joined, plain, result, split


def _windows(x: Tensor, axis: int, kernel: int, stride: int, padding: int, dilation: int, output: int) -> tuple[Tensor, Tensor]:
    """Positions of each output's window along one axis, ``[output, kernel]``, and which of them lie inside."""
    starts = torch.arange(output, device=x.device)[:, None] * stride - padding
    positions = starts + torch.arange(kernel, device=x.device) * dilation
    inside = (positions >= 0) & (positions < x.shape[axis])
    return positions.clamp(0, max(x.shape[axis] - 1, 0)), inside


def max_pool2d_difference(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output: Sequence[int],
) -> Tensor:
    """See :func:`fastscape.ops.max_pool2d_difference.max_pool2d_difference`."""
    out = result(lanes, radii, (x.shape[0], *output))
    if not out.numel():
        return out
    rows, rows_inside = _windows(x, 1, kernel[0], stride[0], padding[0], dilation[0], output[0])
    columns, columns_inside = _windows(x, 2, kernel[1], stride[1], padding[1], dilation[1], output[1])
    index = (rows[:, None, :, None] * x.shape[2] + columns[None, :, None, :]).flatten(2)  # [OH, OW, window]
    inside = (rows_inside[:, None, :, None] & columns_inside[None, :, None, :]).flatten(2)
    values = x.double().flatten(1)[:, index].masked_fill(~inside, -torch.inf)
    largest = values.amax(-1, keepdim=True)
    found = (((values == largest) | values.isnan()) & inside).int().argmax(-1)  # the first of several
    best = index.expand(x.shape[0], *index.shape).gather(-1, found[..., None])[..., 0]
    a, b, radius = split(lanes, radii)
    a, b = a.flatten(-2), b.flatten(-2)
    chosen_a, chosen_b = (_chosen(values, best) for values in (a, b))

    def rises(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return radius * a + radius.square() / 2 * b, radius.square() / 2 * b - radius * a

    own_up, own_down = rises(chosen_a, chosen_b)
    up, down = own_up, own_down
    for place in range(index.shape[-1]):
        behind = values[..., place] - largest[..., 0]
        other_up, other_down = rises(a[..., index[..., place]], b[..., index[..., place]])
        counts = inside[..., place] & (found != place)
        up = torch.where(counts, torch.maximum(up, behind + other_up), up)
        down = torch.where(counts, torch.maximum(down, behind + other_down), down)
    moved = ((up != own_up) | (down != own_down)) & (radius != 0)
    plain_a, plain_b = plain(up, down, radius)
    lost = torch.where(largest[..., 0].isnan() & inside.any(-1), torch.nan, 0.0)
    out_a = torch.where(moved, plain_a, chosen_a) + lost
    out_b = torch.where(moved, plain_b, chosen_b) + lost
    constant = ~inside.any(-1)
    return joined(out_a.masked_fill(constant, 0.0), out_b.masked_fill(constant, 0.0), lanes.dtype)


def _chosen(values: Tensor, best: Tensor) -> Tensor:
    """The values ``[K, S', N, H W]`` at one position of a plane for each output, ``[N, OH, OW]``."""
    index = best.flatten(1).expand(*values.shape[:2], -1, -1)
    return values.gather(-1, index).reshape(*values.shape[:3], *best.shape[1:])
