"""Shared parts of the references and checks of the difference ops on rows: lanes split in float64, the exponential rule on rows.

A tensor of a perturbed network is (x, a, b) with x± = x ± ε a + (ε²/2) b; p = x+ - x and m = x - x-.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastscape.ops import _native, _tasks

REAL = (torch.float32, torch.float64)
PLAIN = 4.0  # sums of exponentials that grow further than this are subtracted plainly: nothing cancels there
FAR = 1.0  # exponents beyond which differences of exponentials are taken plainly
CONFIDENT = 0.5  # a share above which an entry serves as the origin of its row


def check_lanes(x: Tensor, lanes: Tensor, radii: Tensor, shape: str) -> None:
    """Check a base value, its lanes and radii; ``shape`` names the axes of ``x``, as in ``"[R, C]"``."""
    if x.ndim != shape.count(",") + 1 or x.dtype not in REAL:
        raise ValueError(f"x must be float32 or float64 of shape {shape}, got {x.dtype} of shape {tuple(x.shape)}")
    if radii.ndim != 1 or radii.dtype != torch.float64:
        raise ValueError(f"radii must be float64 of shape [S], got {radii.dtype} of shape {tuple(radii.shape)}")
    if lanes.dtype not in REAL:
        raise ValueError(f"lanes must be float32 or float64, got {lanes.dtype}; convert them")
    size = len(radii)
    fits = lanes.ndim == x.ndim + 3 and lanes.shape[3:] == x.shape
    if not fits or lanes.shape[1] not in (1, 2) or lanes.shape[2] not in (1, size):
        wanted = f"[K, 1 or 2, 1 or {size}, {', '.join(map(str, x.shape))}]"
        raise ValueError(f"lanes must be of shape {wanted} for this x and {size} radii, got {tuple(lanes.shape)}")
    for name, tensor in (("lanes", lanes), ("radii", radii)):
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x is on {x.device}; move them to one device")


def split(lanes: Tensor, radii: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The lanes a and b, ``[K, S', *shape]``, and the radii, ``[S, 1, ...]``, in float64; a missing b is zero."""
    wide = lanes.double()
    a = wide[:, 0]
    b = wide[:, 1] if lanes.shape[1] == 2 else torch.zeros_like(a)
    return a, b, radii.reshape(-1, *[1] * (lanes.ndim - 3))


def joined(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """The result ``[K, 2, S, *shape]`` of two lanes."""
    return torch.stack([a, b], 1).to(dtype)


def divided(values: Tensor, arguments: Tensor) -> Tensor:
    """f(z) / z of a function with f(0) = 0 and f'(0) = 1."""
    zero = arguments == 0
    return torch.where(zero, 1.0, values / torch.where(zero, 1.0, arguments))


def plain(plus: Tensor, minus: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The lanes of a result from its differences y+ - y and y- - y; any numbers at radius 0."""
    safe = torch.where(radius == 0, 1.0, radius)
    return (plus - minus) / (2 * safe), (plus + minus) / safe.square()


def _rises(a: Tensor, b: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Lanes of exp(x - base x): closed forms, and plain differences where the exponents are large and nothing cancels in them."""
    step, middle = radius * a, radius.square() / 2 * b
    half = step / 2
    rise_a = middle.exp() * a * divided(step.sinh(), step)
    rise_b = b * divided(middle.expm1(), middle) * step.cosh() + a.square() * divided(half.sinh(), half).square()
    far_a, far_b = plain((middle + step).expm1(), (middle - step).expm1(), radius)
    far = (step.abs() + middle.abs() > FAR) & (radius != 0)
    return torch.where(far, far_a, rise_a), torch.where(far, far_b, rise_b)


@dataclass(frozen=True)
class Exponentials:
    r"""Rows of exponentials in lanes, relative to their sum: :math:`y_i = e^{x_i} / \sum_j e^{x_j}` at the base point.

    Attributes:
        share: y, ``[R, C]``; 0 where masked.
        a, b: lanes of x, ``[K, S', R, C]``, less one number per row and lane; 0 where masked.
        rise_a, rise_b: lanes of exp(x - base x), ``[K, S, R, C]``.
        sum_a, sum_b: their sums weighted with y, ``[K, S, R, 1]``.
        radius: ``[S, 1, 1]``.
    """

    share: Tensor
    a: Tensor
    b: Tensor
    rise_a: Tensor
    rise_b: Tensor
    sum_a: Tensor
    sum_b: Tensor
    radius: Tensor

    @property
    def sums(self) -> tuple[Tensor, Tensor]:
        """The sums at x+ and x-, relative to that at x; not below one half."""
        middle, step = self.radius.square() / 2 * self.sum_b, self.radius * self.sum_a
        return 1 + middle + step, 1 + middle - step

    def exponents(self) -> tuple[Tensor, Tensor]:
        """Logarithms of the shares at x+ and x-, up to a number per row."""
        middle, step = self.share.log() + self.radius.square() / 2 * self.b, self.radius * self.a
        return middle + step, middle - step


def exponentials(x: Tensor, lanes: Tensor, radii: Tensor) -> Exponentials:
    r"""Lanes of the exponentials of rows ``[R, C]``, C at least 1.

    A number per row cancels in softmax: the lanes are taken relative to their mean weighted with y, or to the entry whose y
    exceeds one half, whose own derivative 1 - y would cancel otherwise. With A = ε a, H = ε² b / 2 the closed forms
    e^H a sinh(A)/A and b expm1(H)/H cosh(A) + a² (sinh(A/2)/(A/2))² are exact at every ε, and stable for small A and H.
    """
    a, b, radius = split(lanes, radii)
    masked = x == -torch.inf
    share = (x.double() - x.double().amax(-1, keepdim=True)).exp()  # to the last place, which torch.softmax does not promise
    share = share.masked_fill(masked, 0.0) / share.sum(-1, keepdim=True)
    share = share.masked_fill(masked, 0.0)
    a, b = a.masked_fill(masked, 0.0), b.masked_fill(masked, 0.0)
    top = share.argmax(-1, keepdim=True)
    confident = share.gather(-1, top) > CONFIDENT
    weights = torch.where(confident, torch.zeros_like(share).scatter(-1, top, 1.0), share)
    a = (a - (weights * a).sum(-1, keepdim=True)).masked_fill(masked, 0.0)
    b = (b - (weights * b).sum(-1, keepdim=True)).masked_fill(masked, 0.0)
    rise_a, rise_b = _rises(a, b, radius)
    sum_a, sum_b = ((share * rise).sum(-1, keepdim=True) for rise in (rise_a, rise_b))
    return Exponentials(share, a, b, rise_a, rise_b, sum_a, sum_b, radius)


def result(lanes: Tensor, radii: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An empty result ``[K, 2, S, *shape]`` in the dtype of the lanes."""
    return lanes.new_empty((lanes.shape[0], 2, len(radii), *shape))


LIMITS = "float32 x with float64 lanes: the reference"


def native(x: Tensor, lanes: Tensor) -> bool:
    """Whether the C++ kernels take these dtypes."""
    return x.dtype == torch.float64 or lanes.dtype == x.dtype


def fields(x: Tensor, lanes: Tensor, radii: Tensor, out: Tensor) -> dict[str, int]:
    """The fields that every native task has, from contiguous tensors."""
    return {
        "x": x.data_ptr(),
        "lanes": lanes.data_ptr(),
        "out": out.data_ptr(),
        "radii": radii.data_ptr(),
        "directions": lanes.shape[0],
        "lane_radii": lanes.shape[2],
        "radii_count": len(radii),
        "x_type": _tasks.TYPES[x.dtype],
        "lane_type": _tasks.TYPES[lanes.dtype],
        "second": lanes.shape[1] == 2,
    }


def run_rows(entry: str, x: Tensor, lanes: Tensor, radii: Tensor, shape: tuple[int, ...], **own: float) -> Tensor:
    """Run a native op on rows.

    Args:
        entry: its name in the library.
        x, lanes, radii: the op's arguments.
        shape: of the result of a base value.
        own: further fields of the task, as numbers and addresses.
    """
    out = result(lanes, radii, shape)
    if not out.numel():
        return out
    x, lanes, radii = x.contiguous(), lanes.contiguous(), radii.contiguous()
    rows, length = x.shape
    scratch = lanes.new_empty(x.shape) if length > _tasks.ROW_ELEMENTS else None
    task = _tasks.RowTask(
        **fields(x, lanes, radii, out),
        scratch=None if scratch is None else scratch.data_ptr(),
        rows=rows,
        length=length,
        **own,
    )
    _native.library.call(entry, task)
    return out
