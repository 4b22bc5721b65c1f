"""Products of the rows of two tall-skinny blocks: the specification in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK_BYTES = 1 << 22  # of float64 copies: a piece of each block at a time stays in the L2 or L3 cache


def pieces(left: Tensor, right: Tensor) -> Iterator[slice]:
    """Ranges of columns whose float64 copies are small, in order."""
    length = left.shape[1]
    chunk = max(1, _CHUNK_BYTES // (8 * max(1, left.shape[0] + right.shape[0])))
    for start in range(0, length, chunk):
        yield slice(start, min(start + chunk, length))


def block_gram(left: Tensor, right: Tensor) -> Tensor:
    """See :func:`fastscape.ops.block_gram.block_gram`."""
    out = torch.zeros(left.shape[0], right.shape[0], dtype=torch.float64, device=left.device)
    for piece in pieces(left, right):
        out += left[:, piece].double() @ right[:, piece].double().T
    return out
