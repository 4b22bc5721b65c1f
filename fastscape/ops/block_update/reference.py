"""Subtraction of combinations of rows, with the norms of what is left: the specification in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscape.ops.block_gram.reference import pieces


def block_update(right: Tensor, left: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`fastscape.ops.block_update.block_update`."""
    out = torch.empty(right.shape, dtype=right.dtype, device=right.device)
    squares = torch.zeros(right.shape[0], dtype=torch.float64, device=right.device)
    for piece in pieces(left, right):
        out[:, piece] = right[:, piece].double() - coefficients.T @ left[:, piece].double()
        squares += out[:, piece].double().square().sum(1)
    return out, squares
