"""Sums of squares of random directions in Triton: the kernel of :mod:`fastscape.ops.direction_dot.triton` without vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastscape.ops.direction_dot.triton import launch


def direction_norms(
    ids: Tensor,
    seed: int,
    indices: Sequence[int],
    sizes: Sequence[int],
    groups: Sequence[int],
    distribution: str,
    firsts: Sequence[int] = (),
) -> Tensor:
    """See :func:`fastscape.ops.direction_norms.direction_norms`: one launch for all tensors and directions."""
    nowhere = torch.zeros(len(sizes), dtype=torch.int64, device=ids.device)
    return launch([(None, False)] * len(sizes), nowhere, ids, seed, indices, sizes, groups, distribution, firsts)
