"""Cross-entropy of rows in difference lanes: the specification in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscape.ops._row_lanes import PLAIN, divided, exponentials, joined, plain, result


def check_target(target: Tensor, length: int) -> None:
    """Check the values of class indices, which the host must wait for."""
    outside = (target < 0) | (target >= length)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(f"target must lie in [0, {length}), the classes of x, got {int(target[row])} in row {row}")


def cross_entropy_difference(x: Tensor, lanes: Tensor, radii: Tensor, target: Tensor) -> Tensor:
    """See :func:`fastscape.ops.cross_entropy_difference.cross_entropy_difference`."""
    check_target(target, x.shape[1])
    out = result(lanes, radii, (len(target),))
    if not out.numel():
        return out
    row = exponentials(x, lanes, radii)
    sum_a, sum_b, radius = row.sum_a, row.sum_b, row.radius
    plus, minus = row.sums
    slope = sum_a / ((plus + minus) / 2)
    growth = sum_b + radius.square() / 4 * sum_b.square() - sum_a.square()  # of the product of both sums
    angle, bend = radius * slope, radius.square() * growth
    a, b = slope * divided(angle.atanh(), angle), growth * divided(bend.log1p(), bend)
    grown = ~((plus <= PLAIN) & (minus <= PLAIN))
    if bool(grown.any()):
        up, down = (exponent.logsumexp(-1, keepdim=True) for exponent in row.exponents())
        plain_a, plain_b = plain(up, down, radius)
        a, b = torch.where(grown, plain_a, a), torch.where(grown, plain_b, b)
    chosen = target[:, None].expand(*row.a.shape[:3], 1)
    a, b = a - row.a.gather(-1, chosen), b - row.b.gather(-1, chosen)
    impossible = x.gather(-1, target[:, None]) == -torch.inf
    a, b = a.masked_fill(impossible, torch.nan), b.masked_fill(impossible, torch.nan)
    return joined(a[..., 0], b[..., 0], lanes.dtype)
