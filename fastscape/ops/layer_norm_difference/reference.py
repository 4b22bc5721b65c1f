"""Layer norm and RMS norm of rows in difference lanes: the specification in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from fastscape.ops._row_lanes import joined, split


def _inverse_root(a: Tensor, b: Tensor, plus: Tensor, minus: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Lanes of 1 / sqrt(w) at base w = 1, from those of w and its values at both ends."""
    plus, minus = plus.sqrt(), minus.sqrt()
    sum_ = plus + minus
    root_a = a / sum_
    root_b = (b * (1 + plus) - 2 * a * (a + radius * b / 2) / sum_) / ((plus + 1) * (minus + 1))
    return -root_a / (plus * minus), (2 * root_a.square() - root_b * sum_ / 2) / (plus * minus)


def layer_norm_difference(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    weight: Tensor | None,
    weight_direction: Tensor | None,
    bias_direction: Tensor | None,
    eps: float,
    centred: bool,
) -> Tensor:
    """See :func:`fastscape.ops.layer_norm_difference.layer_norm_difference`."""
    a, b, radius = split(lanes, radii)
    base = x.double()
    if centred:
        base, a, b = (value - value.mean(-1, keepdim=True) for value in (base, a, b))
    variance = base.square().mean(-1, keepdim=True) + eps
    scale = variance.rsqrt()
    base, a, b, rest = base * scale, a * scale, b * scale, eps / variance
    bend = radius.square() / 2
    middle = base + bend * b
    square_a = (2 * middle * a).mean(-1, keepdim=True)
    square_b = (b * (base + middle) + 2 * a.square()).mean(-1, keepdim=True)
    plus, minus = ((middle + sign * radius * a).square().mean(-1, keepdim=True) + rest for sign in (1, -1))
    inverse_a, inverse_b = _inverse_root(square_a, square_b, plus, minus, radius)
    out_a = a * (1 + bend * inverse_b) + middle * inverse_a
    out_b = b * (1 + bend * inverse_b) + base * inverse_b + 2 * a * inverse_a
    out_middle, first = base + bend * out_b, out_a
    if weight is not None:
        out_a, out_b = out_a * weight.double(), out_b * weight.double()
    if weight_direction is not None:
        direction = weight_direction.double()[:, None, None]
        out_a, out_b = out_a + out_middle * direction, out_b + 2 * first * direction
    if bias_direction is not None:
        out_a = out_a + bias_direction.double()[:, None, None]
    return joined(out_a, out_b, lanes.dtype)
