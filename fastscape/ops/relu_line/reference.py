"""Linear maps behind a ReLU along a line: the specification in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def relu_line(
    inputs: Tensor, weight: Tensor, bias: Tensor, points: Sequence[float], head: Tensor | None, head_bias: Tensor | None
) -> Tensor:
    """See :func:`fastscape.ops.relu_line.relu_line`."""
    columns = weight.shape[2] if head is None else head.shape[2]
    out = inputs.new_empty((len(points), inputs.shape[1], columns))
    for row, t in zip(out, points, strict=True):
        x, w, b = (at_zero + t * slope for at_zero, slope in (inputs, weight, bias))
        y = torch.addmm(b, torch.relu(x), w)
        if head is not None and head_bias is not None:
            v, c = (at_zero + t * slope for at_zero, slope in (head, head_bias))
            y = torch.addmm(c, torch.relu(y), v)
        row.copy_(y)
    return out
