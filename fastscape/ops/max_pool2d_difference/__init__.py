r"""Max-pooling of planes in difference lanes, exact across changes of the largest element."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from torch import Tensor

from fastscape._checks import integer
from fastscape.ops import _native, _tasks, _triton
from fastscape.ops._registry import define
from fastscape.ops._row_lanes import LIMITS, check_lanes, fields, native, result
from fastscape.ops.max_pool2d_difference.reference import max_pool2d_difference as _reference


def _check(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output: Sequence[int],
) -> None:
    check_lanes(x, lanes, radii, "[N, H, W]")
    lists = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "output": output}
    for name, values in lists.items():
        if len(values) != 2:
            raise ValueError(f"{name} must hold two numbers, for rows and columns, got {list(values)}")
    for axis in (0, 1):
        for name in ("kernel", "stride", "dilation"):
            integer(f"{name}[{axis}]", lists[name][axis], 1, 2**31)
        integer(f"padding[{axis}]", padding[axis], 0, kernel[axis] * dilation[axis])
        last = (output[axis] - 1) * stride[axis] - padding[axis]
        integer(f"output[{axis}]", output[axis], 0, 2**31)
        if output[axis] and last >= x.shape[1 + axis]:
            size = x.shape[1 + axis]
            raise ValueError(f"output[{axis}] must leave every window a start before {size}, x's size, got {output[axis]}")


def _fake(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output: Sequence[int],
) -> Tensor:
    return result(lanes, radii, (x.shape[0], *output))


def _native_kernel(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output: Sequence[int],
) -> Tensor:
    if not native(x, lanes):
        return _reference(x, lanes, radii, kernel, stride, padding, dilation, output)
    out = result(lanes, radii, (x.shape[0], *output))
    if not out.numel():
        return out
    x, lanes, radii = x.contiguous(), lanes.contiguous(), radii.contiguous()
    planes, height, width = x.shape
    lists = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "output": output}
    pairs = {name: (ctypes.c_int64 * 2)(*values) for name, values in lists.items()}
    task = _tasks.PoolTask(**fields(x, lanes, radii, out), planes=planes, height=height, width=width, **pairs)
    _native.library.call("max_pool_difference", task)
    return out


_OPERATOR = define(
    "max_pool2d_difference(Tensor x, Tensor lanes, Tensor radii, int[2] kernel, int[2] stride, int[2] padding, "
    "int[2] dilation, int[2] output) -> Tensor",
    summary="max-pooling in difference lanes",
    reference=_reference,
    fake=_fake,
    check=_check,
    kernels={
        "CPU": _native.kernel(_native_kernel, LIMITS),
        "CUDA": _triton.kernel(
            "fastscape.ops.max_pool2d_difference.triton", "max_pool2d_difference", "float32 lanes; else the reference"
        ),
    },
)


def max_pool2d_difference(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output: Sequence[int],
) -> Tensor:
    r"""Lanes of the largest element of each window, where :math:`x_\pm = x \pm \epsilon a + \tfrac{\epsilon^2}{2} b`.

    With 0 the first largest element of x in the window, p = x+ - x and m = x - x-,

    .. math:: D_+ = \max_i\, (x_i - x_0) + p_i, \qquad D_- = \max_i\, (x_i - x_0) - m_i

    in float64. Where neither is attained elsewhere than by 0, its a and b are taken as they are; else
    :math:`a = (D_+ - D_-) / 2\epsilon`, :math:`b = (D_+ + D_-) / \epsilon^2`, in which :math:`x_i - x_0` is as small as p and m.

    Args:
        x: planes ``[N, H, W]``, float32 or float64; batch and channels are one axis.
        lanes: ``[K, c, S', N, H, W]``, float32 or float64: a and, for c = 2, b; S' is S or 1 (the same for all radii).
        radii: float64 ``[S]``, not negative; 0 takes the lanes of the largest element of x, which are its derivatives.
        kernel, stride, padding, dilation: as for ``torch.nn.functional.max_pool2d``, one number each for rows and columns.
        output: height and width of the result; both roundings (``ceil_mode``) are the caller's.

    Returns:
        ``[K, 2, S, N, *output]`` in the dtype of ``lanes``; NaN where the window of x holds NaN.

    Raises:
        ValueError: naming the argument.

    Cost: reads x and the lanes once, writes the result once. Windows in which no element comes near the largest by its lanes
    cost a comparison per element.
    """
    lists = [list(values) for values in (kernel, stride, padding, dilation, output)]
    output_: Tensor = _OPERATOR(x, lanes, radii, *lists)
    return output_
