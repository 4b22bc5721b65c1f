r"""Linear maps behind a ReLU along a line in weight space: piecewise quadratic, summed once and updated at the kinks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastscape.ops import _native, _tasks
from fastscape.ops._registry import define
from fastscape.ops.relu_line.reference import relu_line as _reference

REAL = (torch.float32, torch.float64)
UNITS = 2048  # whose switches the kernel holds on its stack, as in csrc/cpu/relu_line.inc
TILE_BYTES = 128  # of the rows of weights that the kernel keeps in the cache, as in csrc/cpu/api.h
LIMITS = f"up to {UNITS} units behind the first ReLU; else the reference"


def _check(
    inputs: Tensor, weight: Tensor, bias: Tensor, points: Sequence[float], head: Tensor | None, head_bias: Tensor | None
) -> None:
    if inputs.ndim != 3 or inputs.shape[0] != 2 or inputs.dtype not in REAL:
        raise ValueError(f"inputs must be float32 or float64 of shape [2, N, H], values at 0 and slopes, got {_found(inputs)}")
    if (head is None) != (head_bias is None):
        raise ValueError("head and head_bias must be given together; pass zeros for a map without bias")
    _check_map("weight", weight, "bias", bias, inputs.shape[2], inputs)
    if head is not None and head_bias is not None:
        _check_map("head", head, "head_bias", head_bias, weight.shape[2], inputs)
    if not all(map(math.isfinite, points)) or sorted(points) != list(points):
        raise ValueError(f"points must be finite and ascending, got {list(points)[:8]}; sort them")


def _check_map(name: str, weight: Tensor, bias_name: str, bias: Tensor, units: int, inputs: Tensor) -> None:
    if weight.ndim != 3 or tuple(weight.shape[:2]) != (2, units) or weight.dtype != inputs.dtype:
        wanted = f"{inputs.dtype} of shape [2, {units}, O]"
        raise ValueError(f"{name} must be {wanted} here, transposes of what nn.Linear holds, got {_found(weight)}")
    if tuple(bias.shape) != (2, weight.shape[2]) or bias.dtype != inputs.dtype:
        raise ValueError(f"{bias_name} must be {inputs.dtype} of shape [2, {weight.shape[2]}] here, got {_found(bias)}")
    for label, tensor in ((name, weight), (bias_name, bias)):
        if tensor.device != inputs.device:
            raise ValueError(f"{label} is on {tensor.device}, inputs is on {inputs.device}; move them to one device")


def _found(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _fake(
    inputs: Tensor, weight: Tensor, bias: Tensor, points: Sequence[float], head: Tensor | None, head_bias: Tensor | None
) -> Tensor:
    return inputs.new_empty((len(points), inputs.shape[1], (weight if head is None else head).shape[2]))


def _tiles(weight: Tensor) -> Tensor:
    """Scratch for a weight in the kernel's order."""
    _, units, outputs = weight.shape
    return torch.empty((-(-outputs * weight.element_size() // TILE_BYTES), units, 2, TILE_BYTES), dtype=torch.uint8)


def _native_kernel(
    inputs: Tensor, weight: Tensor, bias: Tensor, points: Sequence[float], head: Tensor | None, head_bias: Tensor | None
) -> Tensor:
    (_, rows, units), outputs = inputs.shape, weight.shape[2]
    if not 0 < units <= UNITS:
        return _reference(inputs, weight, bias, points, head, head_bias)
    out = torch.empty((len(points), rows, outputs if head is None else head.shape[2]), dtype=inputs.dtype)
    kept = {"inputs": inputs.contiguous(), "weight": weight.contiguous(), "bias": bias.contiguous(), "tiles": _tiles(weight)}
    if head is not None and head_bias is not None:
        kept |= {"head": head.contiguous(), "head_bias": head_bias.contiguous(), "head_tiles": _tiles(head)}
    at = np.array(points, np.float32 if inputs.dtype == torch.float32 else np.float64)
    task = _tasks.ReluLineTask(
        **{name: tensor.data_ptr() for name, tensor in kept.items()},
        points=_tasks.address(at),
        out=out.data_ptr(),
        rows=rows,
        units=units,
        outputs=outputs,
        classes=0 if head is None else head.shape[2],
        points_count=len(points),
        type=_tasks.TYPES[inputs.dtype],
    )
    _native.library.call("relu_line", task)
    return out


_OPERATOR = define(
    "relu_line(Tensor inputs, Tensor weight, Tensor bias, float[] points, Tensor? head, Tensor? head_bias) -> Tensor",
    summary="linear maps behind a ReLU along a line",
    reference=_reference,
    fake=_fake,
    check=_check,
    kernels={"CPU": _native.kernel(_native_kernel, LIMITS)},
)


def relu_line(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor,
    points: Sequence[float],
    head: Tensor | None = None,
    head_bias: Tensor | None = None,
) -> Tensor:
    r"""One or two linear maps behind ReLUs, when the inputs and all weights move along a line.

    .. math:: y(t) = \mathrm{relu}(A + t B)\,(W + t V) + (c + t d), \qquad
              u(t) = \mathrm{relu}(y(t))\,(P + t Q) + (p + t q)

    Between the kinks :math:`t_h = -A_h / B_h` of its units y is a quadratic in t: one update of its coefficients for each unit
    that switches replaces a product at each point.

    Args:
        inputs: A and B, ``[2, N, H]``, float32 or float64.
        weight: W and V, ``[2, H, O]``, the transposes of what ``nn.Linear`` holds.
        bias: c and d, ``[2, O]``.
        points: T values of t, finite and ascending.
        head: P and Q, ``[2, O, C]``, or ``None`` for y itself.
        head_bias: p and q, ``[2, C]``.

    Returns:
        u, ``[T, N, C]``, or y, ``[T, N, O]``, in the dtype of ``inputs``; NaN and infinities where products give them. A unit
        that rounds to zero at a point may be taken for active or not, which changes y by rounding alone.

    Raises:
        ValueError: naming the argument.

    Cost: 8 N O operations for every unit active at the first of 64 points and for every unit that switches, of which there are at
    most H, and 4 N O T for the points, in place of 2 N H O T; 2 N O C T for u. Writes the result alone.
    """
    output: Tensor = _OPERATOR(inputs, weight, bias, [float(t) for t in points], head, head_bias)
    return output
