"""Differences through a scale and a shift per channel: the specification in plain PyTorch, in float64 and rounded once."""

from __future__ import annotations

from torch import Tensor


def affine_difference(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    scale: Tensor,
    scale_direction: Tensor | None,
    shift_direction: Tensor | None,
) -> Tensor:
    """See :func:`fastscape.ops.affine_difference.affine_difference`."""
    count, parts, _, *shape = lanes.shape
    result = lanes.new_empty((count, 2, len(radii), *shape))
    a = lanes[:, 0].double()
    g = scale.double()[:, None]
    first, second = g * a, 0 * a
    if parts == 2:
        second = g * lanes[:, 1].double()
    if scale_direction is not None:
        ga = scale_direction.double()[:, None, None, :, None]
        middle = x.double()
        if parts == 2:
            middle = middle + (radii * radii / 2).reshape(-1, 1, 1, 1) * lanes[:, 1].double()
        first, second = first + ga * middle, second + 2 * ga * a
    if shift_direction is not None:
        first = first + shift_direction.double()[:, None, None, :, None]
    result[:, 0], result[:, 1] = first, second
    return result
