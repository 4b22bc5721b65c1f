r"""Products with matrices that move along directions of low rank, :math:`D_k = U_k^\top V_k`, which are never multiplied out.

W is the same for all directions, so that the lanes of all of them are rows of one product with it; D adds two thin products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscape.differences.algebra import count, fitted, total
from fastscape.differences.triple import LEAD, FactoredLanes, Frame, Triple, seeded
from fastscape.directions.low_rank import Factors
from fastscape.ops import linear_difference
from fastscape.ops.linear_difference.reference import thin_operations

Convolve = Callable[[Tensor, Any], Tensor]


def factored_linear(frame: Frame, y: Tensor, x: Triple, weight: Triple, bias: Triple | None) -> Tensor | None:
    """Lanes of a linear layer whose weight has factors."""
    assert isinstance(weight.held, FactoredLanes)
    out = (_lanes if weight.held.seed is seeded else _mean_lanes)(frame, x, weight, weight.held.factors)
    out = out.reshape(*out.shape[:LEAD], *y.shape)
    return out if bias is None or not bias.moves else total(out, fitted(bias.lanes, y.shape))


def _lanes(frame: Frame, x: Triple, weight: Triple, factors: Factors) -> Tensor:
    lanes, width = x.lanes, x.shape[-1]
    rows = None if lanes is None else lanes.reshape(*lanes.shape[:LEAD], -1, width)
    dtype = factors.dtype if rows is None else rows.dtype
    base = x.base.narrow(dtype).reshape(-1, width)
    out = linear_difference(base, rows, frame.radii, weight.base.narrow(dtype), factors.left, right=factors.right)
    wide = 0 if rows is None else rows.shape[:LEAD].numel()
    frame.operations += 2 * wide * base.shape[0] * weight.shape.numel()
    frame.operations += thin_operations(base, rows, None if frame.jet else frame.radii, factors.left, factors.right)
    return out


def _mean_lanes(frame: Frame, x: Triple, weight: Triple, factors: Factors) -> Tensor:
    r"""a W^T + x D^T per direction, and the mean of b: b W^T + (2 / K) sum_k a_k D_k^T, as one product of K r columns."""
    number, width, outputs = len(factors), x.shape[-1], weight.shape[0]
    base = x.base.narrow(factors.dtype).reshape(-1, width)
    rows = None if x.lanes is None else x.lanes.reshape(number + 1, -1, width)
    out = base.new_zeros(number + 1, len(base), outputs)
    turned = factors.right.mT
    if rows is not None:
        torch.mm(rows.flatten(0, 1), weight.base.narrow(factors.dtype).T, out=out.flatten(0, 1))
        thin = torch.bmm(rows[:-1], turned).transpose(0, 1).flatten(1)  # (M, K r)
        out[-1].addmm_(thin, factors.left.flatten(0, 1), alpha=2 / number)
        frame.operations += 2 * rows.numel() * outputs + 2 * thin.numel() * (width + outputs)
    thin = torch.mm(base, factors.right.flatten(0, 1).T).view(len(base), number, factors.rank).transpose(0, 1)
    out[:-1].baddbmm_(thin, factors.left)
    frame.operations += 2 * thin.numel() * (width + outputs)
    return out[:, None, None]


def factored_embedding(frame: Frame, weight: Triple, index: Tensor) -> Tensor:
    """Lanes of the rows of an embedding whose weight has factors."""
    assert isinstance(weight.held, FactoredLanes)
    factors = weight.held.factors
    rows = torch.bmm(factors.left[:, :, index.flatten()].mT, factors.right)
    return weight.held.seed(count(frame, rows, factors.rank).reshape(len(rows), *index.shape, -1))


def kernels(weight: Triple) -> list[Any]:
    """The direction of every lane of a convolution's weight: a tensor, or the factors of one."""
    if weight.factors is None:
        assert weight.lanes is not None
        return list(weight.lanes[:, 0, 0])
    return [
        Factors(left[None], right[None], weight.shape)
        for left, right in zip(weight.factors.left, weight.factors.right, strict=True)
    ]


def in_two(convolve: Convolve, mix: Convolve, groups: int) -> Convolve:
    """A convolution that takes factors of a kernel too: with V in every group, whose results U mixes at every place."""

    def apply(rows: Tensor, kernel: Any) -> Tensor:
        if not isinstance(kernel, Factors):
            return convolve(rows, kernel)
        inner = kernel.right[0].reshape(kernel.rank, *kernel.shape[1:]).repeat(groups, *[1] * (len(kernel.shape) - 1))
        outer = kernel.left[0].T.reshape(kernel.shape[0], kernel.rank, *[1] * (len(kernel.shape) - 2))
        return mix(convolve(rows, inner), outer)

    return apply
