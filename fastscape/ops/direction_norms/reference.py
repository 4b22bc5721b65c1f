"""Sums of squares of random directions, in the order of additions of :mod:`fastscape.ops.direction_dot.reference`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastscape.ops.direction.reference import Distribution, directions
from fastscape.ops.direction_dot.reference import squares


def direction_norms(
    ids: Tensor,
    seed: int,
    indices: Sequence[int],
    sizes: Sequence[int],
    groups: Sequence[int],
    distribution: Distribution,
    firsts: Sequence[int] = (),
) -> Tensor:
    """See :func:`fastscape.ops.direction_norms.direction_norms`; one direction is materialised at a time."""
    if not indices or not sizes:
        return ids.new_zeros((len(indices), sum(groups)), dtype=torch.float64)
    rows = []
    for index in indices:
        noise = directions(ids, seed, [index], sizes, distribution, firsts)
        rows.append(torch.cat([squares(z, count) for z, count in zip(noise, groups, strict=True)]))
    return torch.stack(rows)
