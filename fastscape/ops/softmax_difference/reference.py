"""Softmax of rows in difference lanes: the specification in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscape.ops._row_lanes import PLAIN, exponentials, joined, plain, result


def softmax_difference(x: Tensor, lanes: Tensor, radii: Tensor) -> Tensor:
    """See :func:`fastscape.ops.softmax_difference.softmax_difference`."""
    if not result(lanes, radii, tuple(x.shape)).numel():
        return result(lanes, radii, tuple(x.shape))
    row = exponentials(x, lanes, radii)
    plus, minus = row.sums
    product, middle = plus * minus, (plus + minus) / 2
    bend = row.radius.square() / 2
    a = row.share * (row.rise_a * middle - row.sum_a * (1 + bend * row.rise_b)) / product
    fixed = 2 * row.sum_a.square() - row.sum_b * middle
    b = row.share * (row.rise_b * middle - 2 * row.rise_a * row.sum_a + fixed) / product
    grown = ~((plus <= PLAIN) & (minus <= PLAIN))
    if bool(grown.any()):
        up, down = (exponent.softmax(-1) - row.share for exponent in row.exponents())
        plain_a, plain_b = plain(up, down, row.radius)
        a, b = torch.where(grown, plain_a, a), torch.where(grown, plain_b, b)
    masked = x == -torch.inf
    return joined(a.masked_fill(masked, 0.0), b.masked_fill(masked, 0.0), lanes.dtype)
