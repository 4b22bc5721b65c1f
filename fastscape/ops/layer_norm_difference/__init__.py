r"""Layer norm and RMS norm of rows in difference lanes, with perturbed weight and bias."""

from __future__ import annotations

import math

from torch import Tensor

from fastscape.ops import _native, _triton
from fastscape.ops._registry import define
from fastscape.ops._row_lanes import LIMITS, REAL, check_lanes, native, result, run_rows
from fastscape.ops.layer_norm_difference.reference import layer_norm_difference as _reference


def _check(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    weight: Tensor | None,
    weight_direction: Tensor | None,
    bias_direction: Tensor | None,
    eps: float,
    centred: bool,
) -> None:
    check_lanes(x, lanes, radii, "[R, C]")
    length, count = x.shape[1], lanes.shape[0]
    wanted = {"weight": (length,), "weight_direction": (count, length), "bias_direction": (count, length)}
    given = {"weight": weight, "weight_direction": weight_direction, "bias_direction": bias_direction}
    for name, tensor in given.items():
        if tensor is None:
            continue
        if tensor.dtype not in REAL or tuple(tensor.shape) != wanted[name]:
            found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise ValueError(f"{name} must be float32 or float64 of shape {wanted[name]}, got {found}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x is on {x.device}; move them to one device")
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and not negative, got {eps}")


def _fake(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    weight: Tensor | None,
    weight_direction: Tensor | None,
    bias_direction: Tensor | None,
    eps: float,
    centred: bool,
) -> Tensor:
    return result(lanes, radii, tuple(x.shape))


def _native_kernel(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    weight: Tensor | None,
    weight_direction: Tensor | None,
    bias_direction: Tensor | None,
    eps: float,
    centred: bool,
) -> Tensor:
    if not native(x, lanes):
        return _reference(x, lanes, radii, weight, weight_direction, bias_direction, eps, centred)
    given = {"weight": weight, "weight_direction": weight_direction, "bias_direction": bias_direction}
    kept = {name: tensor.to(lanes.dtype).contiguous() for name, tensor in given.items() if tensor is not None}
    addresses = {name: tensor.data_ptr() for name, tensor in kept.items()}
    return run_rows("layer_norm_difference", x, lanes, radii, tuple(x.shape), eps=eps, centred=centred, **addresses)


_OPERATOR = define(
    "layer_norm_difference(Tensor x, Tensor lanes, Tensor radii, Tensor? weight, Tensor? weight_direction, "
    "Tensor? bias_direction, float eps, bool centred) -> Tensor",
    summary="layer norm in difference lanes",
    reference=_reference,
    fake=_fake,
    check=_check,
    kernels={
        "CPU": _native.kernel(_native_kernel, LIMITS),
        "CUDA": _triton.kernel(
            "fastscape.ops.layer_norm_difference.triton",
            "layer_norm_difference",
            "float32 lanes and rows of up to 4096; else the reference",
        ),
    },
)


def layer_norm_difference(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    weight: Tensor | None = None,
    weight_direction: Tensor | None = None,
    bias_direction: Tensor | None = None,
    eps: float = 1e-5,
    centred: bool = True,
) -> Tensor:
    r"""Lanes of :math:`y = w\, n + \text{bias}` with :math:`n = (x - \bar x) / \sqrt{\overline{(x - \bar x)^2} + \text{eps}}`.

    The exact rules of differences, one after the other: centring is linear; with h = n at the base point and
    :math:`\alpha, \beta` the centred lanes divided by the deviation, the squares have lanes :math:`w_a = \overline{2\tilde h
    \alpha}`, :math:`w_b = \overline{\beta (h + \tilde h) + 2\alpha^2}`; then those of the square root, of the inverse and of
    products. Sums are kept to a few units in the last place of the lanes' dtype.

    Args:
        x: ``[R, C]``, float32 or float64.
        lanes: ``[K, c, S', R, C]``, float32 or float64: a and, for c = 2, b; S' is S or 1 (the same for all radii).
        radii: float64 ``[S]``, not negative; 0 gives the first and second derivative along the line.
        weight: ``[C]``; default ones.
        weight_direction: ``[K, C]``: what the weight moves by per unit of radius; default zeros.
        bias_direction: ``[K, C]``: the same of the bias, which does not enter otherwise.
        eps: added to the variance.
        centred: False for RMS norm: neither x nor its variance is taken relative to the mean.

    Returns:
        ``[K, 2, S, R, C]`` in the dtype of ``lanes``.

    Raises:
        ValueError: naming the argument.

    Cost: reads x and the lanes once and writes the result once: R C (x + K (c S' + 2 S) lanes) elements, and the weights.
    """
    output: Tensor = _OPERATOR(x, lanes, radii, weight, weight_direction, bias_direction, eps, centred)
    return output
