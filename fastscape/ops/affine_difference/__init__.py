r"""First and second differences through a scale and a shift per channel, themselves displaced: frozen batch norm, group norm."""

from __future__ import annotations

from torch import Tensor

from fastscape.ops import _checks, _native, _tasks, _triton
from fastscape.ops._registry import define
from fastscape.ops.affine_difference.reference import affine_difference as _reference


def _check(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    scale: Tensor,
    scale_direction: Tensor | None,
    shift_direction: Tensor | None,
) -> None:
    _checks.lanes(x, lanes, radii)
    if x.ndim != 3:
        raise ValueError(f"x must be [N, C, I], got shape {tuple(x.shape)}; reshape it around the channel axis")
    channels = x.shape[1]
    if tuple(scale.shape) != (channels,) or not scale.is_floating_point():
        found = f"{scale.dtype} of shape {tuple(scale.shape)}"
        raise ValueError(f"scale must be real of shape ({channels},), one per channel of x, got {found}")
    shape = (lanes.shape[0], channels)
    for name, value in (("scale_direction", scale_direction), ("shift_direction", shift_direction)):
        if value is not None and (tuple(value.shape) != shape or value.dtype != lanes.dtype):
            found = f"{value.dtype} of shape {tuple(value.shape)}"
            raise ValueError(f"{name} must be {lanes.dtype} as lanes are, of shape {shape}, got {found}")
    for name, value in (("scale", scale), ("scale_direction", scale_direction), ("shift_direction", shift_direction)):
        if value is not None and value.device != x.device:
            raise ValueError(f"{name} is on {value.device}, x is on {x.device}; move them to one device")


def _fake(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    scale: Tensor,
    scale_direction: Tensor | None,
    shift_direction: Tensor | None,
) -> Tensor:
    return lanes.new_empty((lanes.shape[0], 2, len(radii), *x.shape))


def _native_kernel(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    scale: Tensor,
    scale_direction: Tensor | None,
    shift_direction: Tensor | None,
) -> Tensor:
    x, lanes, radii, scale = x.contiguous(), lanes.contiguous(), radii.contiguous(), scale.to(lanes.dtype).contiguous()
    directions = [value if value is None else value.contiguous() for value in (scale_direction, shift_direction)]
    out = _fake(x, lanes, radii, scale, scale_direction, shift_direction)
    task = _tasks.AffineTask(
        lanes=_tasks.lane_task(x, lanes, radii, out),
        channels=x.shape[1],
        inner=x.shape[2],
        scale=scale.data_ptr(),
        scale_direction=0 if directions[0] is None else directions[0].data_ptr(),
        shift_direction=0 if directions[1] is None else directions[1].data_ptr(),
    )
    _native.library.call("affine", task)
    return out


_OPERATOR = define(
    "affine_difference(Tensor x, Tensor lanes, Tensor radii, Tensor scale, Tensor? scale_direction, Tensor? shift_direction) "
    "-> Tensor",
    summary="second differences through a scale per channel",
    reference=_reference,
    fake=_fake,
    check=_check,
    kernels={
        "CPU": _native.kernel(_native_kernel),
        "CUDA": _triton.kernel(
            "fastscape.ops.affine_difference.triton", "affine_difference", "float32 lanes; else the reference"
        ),
    },
)


def affine_difference(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    scale: Tensor,
    scale_direction: Tensor | None = None,
    shift_direction: Tensor | None = None,
) -> Tensor:
    r"""First and second differences of :math:`y = g_c x + h_c` where scale and shift of the channels move along the line too.

    .. math:: a_y = g a + g_a \bigl(x + \tfrac{e^2}{2} b\bigr) + h_a, \qquad b_y = g b + 2 g_a a.

    Exact at any radius. Serves batch norm with running statistics (x already centred and divided) and the affine part of other
    norms.

    Args:
        x: base value ``[N, C, I]``, float32 or float64; I may be 1 (channels last).
        lanes: a and b, ``[K, 2, S', N, C, I]``, or a alone, ``[K, 1, S', N, C, I]`` (b is zero); float32 or float64; S' is S, or
            1 if the same for all radii.
        radii: e, float64 ``[S]`` on the same device, not negative, zeros allowed.
        scale: g, ``[C]``, any real dtype.
        scale_direction: g_a, ``[K, C]`` in the dtype of ``lanes``; None where the scale does not move.
        shift_direction: h_a likewise.

    Returns:
        ``[K, 2, S, N, C, I]`` in the dtype of ``lanes``.

    Raises:
        ValueError: naming the argument.

    Cost: reads x and the lanes once, writes the result once.
    """
    result: Tensor = _OPERATOR(x, lanes, radii, scale, scale_direction, shift_direction)
    return result
