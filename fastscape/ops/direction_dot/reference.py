r"""Inner products with random directions, in float64 and in one fixed order of additions.

The order is part of the specification, so that every device and any number of threads give the same bits. A tensor is cut in
blocks of 16384 elements; lane l of 1024 adds the elements l, l + 1024, ... of a block one after the other; the lanes are folded
by halving (lane l takes lane l + half), and the blocks' sums in the same way, as if padded with zeros to a power of two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastscape.ops.direction.reference import Distribution, directions

LANES = 1024
STEPS = 16
SUM_BLOCK = LANES * STEPS
_AT_ONCE = 16  # blocks: 2 MiB of float64 products stay in the cache


def block_sums(terms: Tensor) -> Tensor:
    """Sums of the blocks of float64 ``[..., n]``: ``[..., blocks]``."""
    count = terms.shape[-1]
    if count <= LANES:  # one term a lane: the lanes that are left out would add zeros
        return fold(terms + 0.0).unsqueeze(-1)
    steps = min(STEPS, -(-count // LANES))
    blocks = -(-count // (steps * LANES))
    padded = torch.nn.functional.pad(terms, (0, blocks * steps * LANES - count))
    lanes = padded.new_zeros(*terms.shape[:-1], blocks, LANES)
    for step in padded.reshape(*terms.shape[:-1], blocks, steps, LANES).unbind(-2):
        lanes += step
    return fold(lanes)


def fold(values: Tensor) -> Tensor:
    """Sum over the last dimension by halving, as if padded with zeros to a power of two."""
    width = 1
    while width < values.shape[-1]:
        width *= 2
    values = torch.nn.functional.pad(values, (0, width - values.shape[-1]))
    while width > 1:
        width //= 2
        values = values[..., :width] + values[..., width:]
    return values[..., 0]


def squares(tensor: Tensor, groups: int = 1) -> Tensor:
    """Sums of squares of a tensor's equal pieces, float64 ``[groups]``, in the order above."""
    row = tensor.reshape(1, -1)
    return dots(row, row, groups)[0]


def dots(left: Tensor, right: Tensor, groups: int) -> Tensor:
    """Inner products of the pieces of ``[1 or K, n]`` and ``[K, n]``, float64 ``[K, groups]``; temporaries of 4 MiB."""
    length = right.shape[1] // groups
    same = left is right
    left, right = (tensor.reshape(tensor.shape[0], groups, length) for tensor in (left, right))
    chunk = SUM_BLOCK * _AT_ONCE
    rows = max(1, chunk // max(length, 1))
    sums = []
    for first in range(0, groups, rows):
        parts = []
        for start in range(0, max(length, 1), chunk):
            a, b = (tensor[:, first : first + rows, start : start + chunk] for tensor in (left, right))
            wide = a.double()
            parts.append(block_sums(wide * (wide if same else b.double())))
        sums.append(fold(torch.cat(parts, -1)))
    return torch.cat(sums, -1)


def direction_dot(
    vectors: Sequence[Tensor],
    ids: Tensor,
    seed: int,
    indices: Sequence[int],
    groups: Sequence[int],
    distribution: Distribution,
    firsts: Sequence[int] = (),
) -> Tensor:
    """See :func:`fastscape.ops.direction_dot.direction_dot`; one direction is materialised at a time."""
    if not indices or not vectors:
        return ids.new_zeros((len(indices), sum(groups)), dtype=torch.float64)
    rows = []
    for index in indices:
        noise = directions(ids, seed, [index], [vector.numel() for vector in vectors], distribution, firsts)
        rows.append(torch.cat([dots(v.reshape(1, -1), z, n)[0] for v, z, n in zip(vectors, noise, groups, strict=True)]))
    return torch.stack(rows)
