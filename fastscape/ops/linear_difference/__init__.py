r"""Differences of a linear map with perturbed weights: lanes of the input, and of the weight, become lanes of the output."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscape.ops import _triton
from fastscape.ops._registry import define
from fastscape.ops.linear_difference.reference import linear_difference as _reference
from fastscape.ops.linear_difference.reference import result_dtype, result_shape

LIMITS = "float32 and bfloat16 lanes; for float64 the products are torch's"
_LANES = (torch.float32, torch.float64, torch.bfloat16)


def _check(
    x: Tensor,
    lanes: Tensor | None,
    radii: Tensor,
    weight: Tensor,
    direction: Tensor | None,
    bias_direction: Tensor | None,
    right: Tensor | None = None,
) -> None:
    if x.ndim != 2 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be float32 or float64 of shape [M, I], got {_found(x)}")
    if radii.ndim != 1 or radii.dtype != torch.float64:
        raise ValueError(f"radii must be float64 of shape [S], got {_found(radii)}")
    if weight.ndim != 2 or weight.shape[1] != x.shape[1] or weight.dtype not in _LANES:
        raise ValueError(
            f"weight must be float32, float64 or bfloat16 of shape [O, {x.shape[1]}] for this x, got {_found(weight)}"
        )
    if lanes is None and direction is None and bias_direction is None:
        raise ValueError("lanes, direction or bias_direction must be given: without them all differences are zero")
    if lanes is not None:
        _check_lanes(x, lanes, radii)
    if right is not None and direction is None:
        raise ValueError("direction must be the left factor with right, got None")
    count = result_shape(x, lanes, radii, weight, direction, bias_direction)[0]
    rank = None if right is None or right.ndim != 3 else right.shape[1]
    for name, tensor, shape in (
        ("direction", direction, (count, *weight.shape) if right is None else (count, rank, weight.shape[0])),
        ("bias_direction", bias_direction, (count, weight.shape[0])),
        ("right", right, (count, rank, weight.shape[1])),
    ):
        if tensor is not None and (tuple(tensor.shape) != shape or tensor.dtype not in _LANES):
            raise ValueError(f"{name} must be float32, float64 or bfloat16 of shape {shape}, got {_found(tensor)}")
    rest = {"lanes": lanes, "radii": radii, "weight": weight, "direction": direction, "bias_direction": bias_direction}
    for name, tensor in (rest | {"right": right}).items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x is on {x.device}; move them to one device")


def _check_lanes(x: Tensor, lanes: Tensor, radii: Tensor) -> None:
    if lanes.ndim != 5 or tuple(lanes.shape[3:]) != tuple(x.shape) or lanes.shape[1] not in (1, 2) or lanes.dtype not in _LANES:
        wanted = f"[K, 1 or 2, S, {x.shape[0]}, {x.shape[1]}]"
        raise ValueError(f"lanes must be float32, float64 or bfloat16 of shape {wanted} for this x, got {_found(lanes)}")
    if lanes.shape[2] not in (1, len(radii)):
        raise ValueError(f"lanes must hold 1 or {len(radii)} radii, as radii does, got shape {tuple(lanes.shape)}")


def _found(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _fake(
    x: Tensor,
    lanes: Tensor | None,
    radii: Tensor,
    weight: Tensor,
    direction: Tensor | None,
    bias_direction: Tensor | None,
    right: Tensor | None = None,
) -> Tensor:
    shape = result_shape(x, lanes, radii, weight, direction, bias_direction)
    return x.new_empty(shape, dtype=result_dtype(lanes, direction, bias_direction))


_OPERATOR = define(
    "linear_difference(Tensor x, Tensor? lanes, Tensor radii, Tensor weight, Tensor? direction, Tensor? bias_direction, "
    "Tensor? right=None) -> Tensor",
    summary="differences of a linear map",
    reference=_reference,
    fake=_fake,
    check=_check,
    kernels={"CUDA": _triton.kernel("fastscape.ops.linear_difference.triton", "linear_difference", LIMITS)},
)


def linear_difference(
    x: Tensor,
    lanes: Tensor | None,
    radii: Tensor,
    weight: Tensor,
    direction: Tensor | None = None,
    bias_direction: Tensor | None = None,
    right: Tensor | None = None,
) -> Tensor:
    r"""First and second differences of :math:`x W^\top + h` when x, W and h move together.

    The input moves to :math:`x \pm e a + \tfrac{e^2}{2} b`, the weight to :math:`W \pm e D`, the bias to :math:`h \pm e h_a`;
    exactly

    .. math:: a_y = a W^\top + \tilde x D^\top + h_a, \qquad b_y = b W^\top + 2 a D^\top, \qquad \tilde x = x + \tfrac{e^2}{2} b

    and nothing cancels, at any radius; e = 0 gives first and second derivatives along the line.

    Args:
        x: ``[M, I]``, float32 or float64.
        lanes: ``[K, c, S', M, I]`` with a and, where c = 2, b; S' is 1 (the same for all radii) or S; float32, float64 or
            bfloat16, the dtype of both operands of every product. ``None`` if the input does not move.
        radii: float64 ``[S]``, not negative.
        weight: ``[O, I]``.
        direction: D, ``[K, O, I]``; ``None`` if the weight does not move. With ``right``, the left factor U ``[K, r, O]`` of
            :math:`D = U^\top V`.
        bias_direction: ``[K, O]``; ``None`` if the bias does not move.
        right: the right factor V, ``[K, r, I]``.

    Returns:
        ``[K, c_y, S_y, M, O]`` in the dtype of ``lanes`` (else of ``direction``, else of ``bias_direction``), sums in float32 or
        float64. What is zero or repeated is not stored: without lanes c_y = S_y = 1, and one product serves all radii; without
        direction c_y = c and S_y = S'; else c_y = 2, and S_y = S if c = 2 (the radius enters by :math:`\tilde x` alone), S' if
        c = 1.

    Raises:
        ValueError: naming the argument.

    Cost: 8 K S M I O operations with both lanes and a direction, half without b or without D. Reads lanes once and twice (GPU:
    once for every 64 or 128 outputs), W and D once for every tile of rows; :math:`\tilde x` is not stored (CPU: that of one
    direction at a time). With factors of rank r the products with D are of 2 K S M r (I + O) operations each, and what is read
    is W, once for the lanes of all directions, and r (I + O) numbers for each of them.
    """
    result: Tensor = _OPERATOR(x, lanes, radii, weight, direction, bias_direction, right)
    return result
