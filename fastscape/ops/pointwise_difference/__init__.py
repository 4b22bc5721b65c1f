r"""First and second differences through pointwise functions: activations at :math:`x` and :math:`x \pm e a + e^2 b / 2`."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

from torch import Tensor

from fastscape.ops import _checks, _native, _tasks, _triton
from fastscape.ops._registry import define
from fastscape.ops.pointwise_difference.reference import pointwise_difference as _reference
from fastscape.ops.pointwise_difference.rules import Kind

OPTIONS = {"clamp": ("lo", "hi"), "elu": ("alpha", "scale", "input_scale"), "leaky_relu": ("slope",), "softplus": ("beta",)}
KINDS: tuple[str, ...] = Kind.__args__  # type: ignore[attr-defined]


def _check_options(kind: str, options: Sequence[float]) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    names = OPTIONS.get(kind, ())
    if len(options) != len(names):
        raise ValueError(f"options must be [{', '.join(names)}] for kind {kind!r}, got {list(options)}")
    if kind == "clamp":
        if not options[0] <= options[1] or options[0] == math.inf or options[1] == -math.inf:
            raise ValueError(f"options must be [lo, hi] with lo <= hi, infinite for no bound, got {list(options)}")
        return
    for name, value in zip(names, options, strict=True):
        if not math.isfinite(value) or (name in ("beta", "input_scale") and value <= 0):
            raise ValueError(f"options must hold a finite {name}, positive for beta and input_scale, got {list(options)}")


def _check(x: Tensor, lanes: Tensor, radii: Tensor, kind: str, options: Sequence[float]) -> None:
    _checks.lanes(x, lanes, radii)
    _check_options(kind, options)


def _fake(x: Tensor, lanes: Tensor, radii: Tensor, kind: str, options: Sequence[float]) -> Tensor:
    return lanes.new_empty((lanes.shape[0], 2, len(radii), *x.shape))


def _native_kernel(x: Tensor, lanes: Tensor, radii: Tensor, kind: str, options: Sequence[float]) -> Tensor:
    x, lanes, radii = x.contiguous(), lanes.contiguous(), radii.contiguous()
    out = _fake(x, lanes, radii, kind, options)
    numbers = (ctypes.c_double * 3)(*options)
    task = _tasks.PointwiseTask(lanes=_tasks.lane_task(x, lanes, radii, out), kind=KINDS.index(kind), options=numbers)
    _native.library.call("pointwise", task)
    return out


_OPERATOR = define(
    "pointwise_difference(Tensor x, Tensor lanes, Tensor radii, str kind, float[] options) -> Tensor",
    summary="second differences through an activation",
    reference=_reference,
    fake=_fake,
    check=_check,
    kernels={
        "CPU": _native.kernel(_native_kernel),
        "CUDA": _triton.kernel(
            "fastscape.ops.pointwise_difference.triton", "pointwise_difference", "float32 lanes; else the reference"
        ),
    },
)


def pointwise_difference(x: Tensor, lanes: Tensor, radii: Tensor, kind: Kind, options: Sequence[float] = ()) -> Tensor:
    r"""First and second differences of a pointwise function along K lines, at S radii.

    .. math:: x_\pm = x \pm e a + \tfrac{e^2}{2} b, \qquad
       a_y = \frac{f(x_+) - f(x_-)}{2e}, \quad b_y = \frac{f(x_+) - 2 f(x) + f(x_-)}{e^2},

    the first and second derivative along the line where e = 0. Nothing cancels at any radius: analytic pieces go by a series of
    divided differences, :math:`a_y = a f[x_-, x_+]` and :math:`b_y = b f[x_-, x_+] + 2 (a^2 - e^2 b^2 / 4) f[x_-, x, x_+]`;
    breakpoints are decided by exact comparisons of x, in its own dtype, with the displacements, and a piece ends at its right
    breakpoint (relu and abs have the left slope at 0).

    Kinds and their options: ``relu``, ``abs``, ``hardsigmoid``, ``hardswish``, ``gelu``, ``gelu_tanh``, ``silu``, ``tanh``,
    ``sigmoid``, ``exp``, ``mish``; ``leaky_relu`` [slope]; ``clamp`` [lo, hi], infinite for no bound (also hardtanh, relu6);
    ``elu`` [alpha, scale, input_scale] (also selu, celu); ``softplus`` [beta], the true one without torch's threshold.

    Args:
        x: base value, float32 or float64, any shape.
        lanes: a and b, ``[K, 2, S', *x.shape]``, or a alone, ``[K, 1, S', *x.shape]`` (b is zero); float32 or float64; S' is S,
            or 1 if the same for all radii.
        radii: e, float64 ``[S]`` on the same device, not negative, zeros allowed. Products e a below the smallest normal number
            of the lanes' dtype may count as zero.
        kind: name of the function.
        options: its parameters.

    Returns:
        ``[K, 2, S, *x.shape]`` in the dtype of ``lanes``. Where x is NaN or f(x) infinite, NaN.

    Raises:
        ValueError: naming the argument.

    Cost: reads x and the lanes once, writes the result once; what depends on x alone is computed once for all lanes.
    """
    result: Tensor = _OPERATOR(x, lanes, radii, kind, [float(option) for option in options])
    return result
