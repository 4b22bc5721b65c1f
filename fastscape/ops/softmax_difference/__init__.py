r"""Softmax of rows in difference lanes: exact first and second differences of the shares at every radius."""

from __future__ import annotations

from torch import Tensor

from fastscape.ops import _native, _triton
from fastscape.ops._registry import define
from fastscape.ops._row_lanes import LIMITS, check_lanes, native, result, run_rows
from fastscape.ops.softmax_difference.reference import softmax_difference as _reference


def _check(x: Tensor, lanes: Tensor, radii: Tensor) -> None:
    check_lanes(x, lanes, radii, "[R, C]")


def _fake(x: Tensor, lanes: Tensor, radii: Tensor) -> Tensor:
    return result(lanes, radii, tuple(x.shape))


def _native_kernel(x: Tensor, lanes: Tensor, radii: Tensor) -> Tensor:
    if not native(x, lanes):
        return _reference(x, lanes, radii)
    return run_rows("softmax_difference", x, lanes, radii, tuple(x.shape))


_OPERATOR = define(
    "softmax_difference(Tensor x, Tensor lanes, Tensor radii) -> Tensor",
    summary="softmax in difference lanes",
    reference=_reference,
    fake=_fake,
    check=_check,
    kernels={
        "CPU": _native.kernel(_native_kernel, LIMITS),
        "CUDA": _triton.kernel(
            "fastscape.ops.softmax_difference.triton",
            "softmax_difference",
            "float32 lanes and rows of up to 2048; else the reference",
        ),
    },
)


def softmax_difference(x: Tensor, lanes: Tensor, radii: Tensor) -> Tensor:
    r"""Lanes of y = softmax(x) over the last axis, where :math:`x_\pm = x \pm \epsilon a + \tfrac{\epsilon^2}{2} b`.

    With the lanes :math:`(G_a, G_b)` of :math:`e^{x_\pm - x}` and :math:`S_\pm = 1 \pm \epsilon \langle G_a\rangle_y +
    \tfrac{\epsilon^2}{2} \langle G_b\rangle_y`, the quotient rule

    .. math:: y_a = y\,\frac{G_a \tilde S - (1 + \tfrac{\epsilon^2}{2} G_b) S_a}{S_+ S_-}, \qquad
              y_b = y\,\frac{G_b \tilde S - 2 G_a S_a + 2 S_a^2 - S_b \tilde S}{S_+ S_-}

    is exact and nothing in it cancels; where a sum grows more than fourfold, y+ - y and y- - y are subtracted plainly.

    Args:
        x: ``[R, C]``, float32 or float64. Entries -inf are masked: their lanes are not looked at and their results are 0, also
            where a whole row is masked.
        lanes: ``[K, c, S', R, C]``, float32 or float64: a and, for c = 2, b; S' is S or 1 (the same for all radii).
        radii: float64 ``[S]``, not negative; 0 gives the first and second derivative along the line.

    Returns:
        ``[K, 2, S, R, C]`` in the dtype of ``lanes``. A lane that is not finite makes its row NaN.

    Raises:
        ValueError: naming the argument.

    Cost: reads x and the lanes once and writes the result once: R C (x + K (c S' + 2 S) lanes) elements; the exponentials of x
    are shared by all lanes.
    """
    output: Tensor = _OPERATOR(x, lanes, radii)
    return output
