r"""Cross-entropy of rows of logits in difference lanes, accurate at every loss."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscape.ops import _native, _triton
from fastscape.ops._registry import define
from fastscape.ops._row_lanes import LIMITS, check_lanes, native, result, run_rows
from fastscape.ops.cross_entropy_difference.reference import check_target
from fastscape.ops.cross_entropy_difference.reference import cross_entropy_difference as _reference


def _check(x: Tensor, lanes: Tensor, radii: Tensor, target: Tensor) -> None:
    check_lanes(x, lanes, radii, "[R, C]")
    if target.dtype != torch.int64 or tuple(target.shape) != (x.shape[0],):
        found = f"{target.dtype} of shape {tuple(target.shape)}"
        raise ValueError(f"target must be int64 of shape ({x.shape[0]},), one class per row of x, got {found}")
    if target.device != x.device:
        raise ValueError(f"target is on {target.device}, x is on {x.device}; move them to one device")


def _fake(x: Tensor, lanes: Tensor, radii: Tensor, target: Tensor) -> Tensor:
    return result(lanes, radii, (x.shape[0],))


def _native_kernel(x: Tensor, lanes: Tensor, radii: Tensor, target: Tensor) -> Tensor:
    if not native(x, lanes):
        return _reference(x, lanes, radii, target)
    check_target(target, x.shape[1])
    classes = target.contiguous()
    return run_rows("cross_entropy_difference", x, lanes, radii, tuple(target.shape), target=classes.data_ptr())


_OPERATOR = define(
    "cross_entropy_difference(Tensor x, Tensor lanes, Tensor radii, Tensor target) -> Tensor",
    summary="cross-entropy in difference lanes",
    reference=_reference,
    fake=_fake,
    check=_check,
    kernels={
        "CPU": _native.kernel(_native_kernel, LIMITS),
        "CUDA": _triton.kernel(
            "fastscape.ops.cross_entropy_difference.triton", "cross_entropy_difference", "float32 lanes; else the reference"
        ),
    },
)


def cross_entropy_difference(x: Tensor, lanes: Tensor, radii: Tensor, target: Tensor) -> Tensor:
    r"""Lanes of the loss :math:`\ell = \log \sum_i e^{x_i} - x_t` of each row.

    Relative to an origin r of the row (the entry whose share :math:`y_i` of the sum exceeds one half, else the mean weighted
    with y), the sum has the lanes :math:`S_a, S_b` of :math:`\langle e^{x_\pm - x}\rangle_y`, and by the rule of the logarithm

    .. math:: \ell_a = a_r - a_t + \operatorname{artanh}(\epsilon s)/\epsilon, \quad
              \ell_b = b_r - b_t + \log(1 + \epsilon^2 \rho)/\epsilon^2, \quad
              s = \frac{S_a}{1 + \tfrac{\epsilon^2}{2} S_b}, \quad \rho = S_b + \tfrac{\epsilon^2}{4} S_b^2 - S_a^2.

    Where the target is that origin, only shares of other entries enter: the lanes keep their relative accuracy at any small
    loss. Where a sum grows more than fourfold, logarithms are subtracted plainly.

    Args:
        x: logits ``[R, C]``, float32 or float64; -inf excludes an entry, whose lanes are not looked at.
        lanes: ``[K, c, S', R, C]``, float32 or float64: a and, for c = 2, b; S' is S or 1 (the same for all radii).
        radii: float64 ``[S]``, not negative; 0 gives the first and second derivative along the line.
        target: int64 ``[R]``, classes in [0, C).

    Returns:
        ``[K, 2, S, R]`` in the dtype of ``lanes``; NaN where the target's logit is -inf or a lane of the row is not finite, and
        on a GPU where the target is outside: the host does not wait for it there.

    Raises:
        ValueError: naming the argument.

    Cost: reads x and the lanes once: R C (x + K c S' lanes) elements; the exponentials of x are shared by all lanes.
    """
    output: Tensor = _OPERATOR(x, lanes, radii, target)
    return output
