r"""Exact rules of the calculus in plain PyTorch: sums, products, closed forms, quadrature.

Every function takes triples and gives the lanes of its result, ``None`` where they are zero. Nothing is divided by e, and no
difference of nearly equal numbers is taken. With :math:`\tilde x = x + \tfrac{e^2}{2} b = (x_+ + x_-)/2`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastscape.differences.triple import LEAD, Frame, Triple

Pointwise = Callable[[Tensor], Tensor]


# ---------------------------------------------------------------- shapes of lanes
def aligned(lanes: Tensor, ndim: int) -> Tensor:
    """Lanes of a tensor with fewer than ``ndim`` axes, with ones in front of them, as broadcasting reads shapes."""
    missing = ndim - (lanes.ndim - LEAD)
    return lanes.reshape(*lanes.shape[:LEAD], *[1] * missing, *lanes.shape[LEAD:]) if missing else lanes


def fitted(lanes: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Lanes broadcast to the shape of a result."""
    if lanes is None:
        return None
    lanes = aligned(lanes, len(shape))
    return lanes if lanes.shape[LEAD:] == shape else lanes.expand(*lanes.shape[:LEAD], *shape)


def each(function: Callable[[Tensor], Tensor], lanes: Tensor | None) -> Tensor | None:
    """Apply a linear function of ``[R, *shape]``, rows independent, to all lanes at once."""
    if lanes is None:
        return None
    out = function(lanes.flatten(0, LEAD - 1))
    return out.reshape(*lanes.shape[:LEAD], *out.shape[1:])


def total(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Sum of lanes of one shape; one may lack b, or radii."""
    if first is None or second is None:
        return second if first is None else first
    if first.shape[1] == second.shape[1]:
        return first + second
    short, long = (first, second) if first.shape[1] == 1 else (second, first)
    radii = max(short.shape[2], long.shape[2])
    out = long.expand(-1, -1, radii, *torch.broadcast_shapes(short.shape[LEAD:], long.shape[LEAD:])).clone()  # type: ignore[no-untyped-call]
    out[:, :1] += short
    return out


def joined(a: Tensor, b: Tensor | None) -> Tensor:
    """Lanes from a and b, ``[K, S', *shape]`` each, of the same shape or broadcast over radii."""
    if b is None:
        return a.unsqueeze(1)
    return torch.stack(torch.broadcast_tensors(a, b), 1)  # type: ignore[no-untyped-call]


def narrow_points(frame: Frame, value: Triple, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, x+ and x- of a value that may not move, in the dtype of the lanes; axes of directions and radii lead the latter two."""
    if value.lanes is None:
        return (value.base.narrow(dtype),) * 3
    a, middle = value.parts[0], frame.middle(value)
    step = frame.power(value.ndim, 1, dtype) * a
    return value.base.narrow(dtype), middle + step, middle - step


# ---------------------------------------------------------------- linear
def plus(left: Triple, right: Triple, alpha: float = 1.0) -> Tensor | None:
    r"""X + alpha u: :math:`a_x + \alpha a_u,\ b_x + \alpha b_u`."""
    shape = torch.broadcast_shapes(left.shape, right.shape)  # type: ignore[no-untyped-call]
    other = right.lanes if right.lanes is None or alpha == 1 else right.lanes * alpha
    return total(fitted(left.lanes, shape), fitted(other, shape))


def scaled(lanes: Tensor | None, factor: float | Tensor) -> Tensor | None:
    """Lanes of a constant times x."""
    return None if lanes is None else lanes * factor


# ---------------------------------------------------------------- products
def product(frame: Frame, left: Triple, right: Triple) -> Tensor | None:
    r"""X u: :math:`a = a_x \tilde u + \tilde x\, a_u`, :math:`b = b_x \tilde u + x\, b_u + 2 a_x a_u`."""
    shape = torch.broadcast_shapes(left.shape, right.shape)  # type: ignore[no-untyped-call]
    if left.lanes is None or right.lanes is None:
        moving, still = (right, left) if left.lanes is None else (left, right)
        if moving.lanes is None:
            return None
        return fitted(aligned(moving.lanes, len(shape)) * still.base.narrow(moving.lanes.dtype), shape)
    x, u = (Triple(value.base, fitted(value.lanes, shape)) for value in (left, right))
    (a, b), (g, d) = x.parts, u.parts
    x, u = (Triple(value.x.expand(shape), value.lanes) for value in (x, u))
    u_middle = frame.middle(u)
    first = a * u_middle + frame.middle(x) * g
    second = 2 * a * g
    if b is not None:
        second = second + b * u_middle
    if d is not None:
        second = second + x.base.narrow(d.dtype) * d
    return joined(first, second)


def square(frame: Frame, value: Triple) -> Tensor | None:
    r"""x^2: :math:`a = 2 \tilde x a`, :math:`b = b (x + \tilde x) + 2 a^2`."""
    if value.lanes is None:
        return None
    a, b = value.parts
    middle = frame.middle(value)
    second = 2 * a * a
    if b is not None:
        second = second + b * (value.base.narrow(b.dtype) + middle)
    return joined(2 * middle * a, second)


def _pair(value: Triple) -> tuple[Tensor, Tensor]:
    assert value.lanes is not None
    a, b = value.parts
    return a, torch.zeros_like(a) if b is None else b


def reciprocal(frame: Frame, value: Triple) -> Tensor | None:
    r"""1 / x: :math:`a = -a / (x_+ x_-)`, :math:`b = (2 a^2 - b \tilde x) / (x\, x_+ x_-)`."""
    if value.lanes is None:
        return None
    a, b = _pair(value)
    x, middle = value.base.narrow(a.dtype), frame.middle(value)
    step = frame.power(value.ndim, 1, a.dtype) * a
    both = (middle + step) * (middle - step)
    return joined(-a / both, (2 * a * a - b * middle) / (x * both))


def root(frame: Frame, value: Triple) -> Tensor | None:
    r"""sqrt(x), :math:`S_\pm = \sqrt{x_\pm}`.

    :math:`a = a / (S_+ + S_-)`, :math:`b = [b (S + S_+) - 2 a (a + e b / 2) / (S_+ + S_-)] / ((S_+ + S)(S_- + S))`.
    """
    if value.lanes is None:
        return None
    return root_between(frame, value, *(v.sqrt() for v in narrow_points(frame, value, value.lanes.dtype)))


def root_between(frame: Frame, value: Triple, y: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """:func:`root` with S, S+ and S- in the dtype of the lanes: of lengths, of which squares keep half of the digits."""
    a, b = _pair(value)
    one = frame.power(value.ndim, 1, a.dtype)
    both = up + down
    still = (both == 0) & (a == 0)  # a length that is zero all along
    both = torch.where(still, torch.ones_like(both), both)
    below = torch.where(still, both, (up + y) * (down + y))
    return joined(a / both, (b * (y + up) - 2 * a * (a + 0.5 * one * b) / both) / below)


def _over(function: Pointwise, z: Tensor) -> Tensor:
    """function(z) / z, 1 at 0."""
    zero = z == 0
    return torch.where(zero, 1.0, function(z) / torch.where(zero, 1.0, z))


_DISTANT = 0.5  # of |x|: displacements from which on value and difference cancel in powers


def powers(frame: Frame, value: Triple, lanes: Tensor | None, power: Pointwise) -> Tensor | None:
    """Lanes of a power, with those of displacements that are no longer small beside x by differences of float64 powers.

    There the power at x is other orders of magnitude than those at x+ and x-, and their sums lose what is asked for.
    """
    if value.lanes is None or lanes is None or frame.jet:
        return lanes
    up, down = frame.steps(value)
    distant = torch.maximum(up.abs(), down.abs()) > _DISTANT * value.base.narrow(up.dtype).abs()
    if not bool(distant.any()):
        return lanes
    here, plus, minus = (power(side) for side in frame.points(value))
    plain = frame.from_points(here, plus, minus, lanes.dtype)
    return torch.where(distant.unsqueeze(1), plain, lanes)


def exponential(frame: Frame, value: Triple) -> Tensor | None:
    r"""exp(x), :math:`E = e^x,\ A = e a,\ H = \tfrac{e^2}{2} b`, sinhc z = sinh(z)/z.

    :math:`a = E\, e^H a\, \mathrm{sinhc} A`, :math:`b = E\,[\,b\,\mathrm{expm1c}(H) \cosh A + a^2\, \mathrm{sinhc}^2(A/2)\,]`.
    """
    if value.lanes is None:
        return None
    a, b = _pair(value)
    step = frame.power(value.ndim, 1, a.dtype) * a
    half = 0.5 * frame.power(value.ndim, 2, a.dtype) * b
    y = value.base.narrow(a.dtype).exp()
    slope = half.exp() * a * _over(torch.sinh, step)
    bend = b * _over(torch.expm1, half) * step.cosh() + (a * _over(torch.sinh, 0.5 * step)) ** 2
    steep = step.abs() > 1
    far = steep | (half.abs() > 1)
    if bool(far.any()):  # both terms of b grow as exp |A|, and cancel where H is as negative
        up, down, unit = (half + step).expm1(), (half - step).expm1(), frame.divisor(value.ndim, 1, a.dtype)
        slope, bend = torch.where(steep, (up - down) / (2 * unit), slope), torch.where(far, (up + down) / unit / unit, bend)
    return joined(y * slope, y * bend)


_FAR = 0.5  # growth beyond which logarithms are subtracted


def logarithm(frame: Frame, value: Triple) -> Tensor | None:
    r"""log(x), :math:`r = a / \tilde x`, :math:`\rho = b/x + \tfrac{e^2}{4} (b/x)^2 - (a/x)^2`.

    :math:`a = r\, \mathrm{atanhc}(e r)`, :math:`b = \rho\, \mathrm{log1pc}(e^2 \rho)`.
    """
    if value.lanes is None:
        return None
    a, b = _pair(value)
    x = value.base.narrow(a.dtype)
    one, two = (frame.power(value.ndim, exponent, a.dtype) for exponent in (1, 2))
    ratio = a / frame.middle(value)
    rho = b / x + 0.25 * two * (b / x) ** 2 - (a / x) ** 2
    first, second = ratio * _over(torch.atanh, one * ratio), rho * _over(torch.log1p, two * rho)
    far = ((one * ratio).abs() > _FAR) | ((two * rho).abs() > _FAR)
    if bool(far.any()):  # atanh and log1p near their poles; logarithms of ratios far from 1 do not cancel
        middle = frame.middle(value)
        up, down = (((middle + sign * one * a) / x).log() for sign in (1, -1))
        unit = frame.divisor(value.ndim, 1, a.dtype)
        first = torch.where(far, (up - down) / (2 * unit), first)
        second = torch.where(far, (up + down) / unit / unit, second)
    return joined(first, second)


# ---------------------------------------------------------------- any smooth function of which f, f', f'' are known
def _peano_nodes() -> tuple[list[float], list[float]]:
    """Seven-point Gauss rule for the weight 1 - |s| on [-1, 1], the Peano kernel of a central second difference."""
    count = 7
    moment = [2.0 / ((k + 1) * (k + 2)) if k % 2 == 0 else 0.0 for k in range(2 * count + 1)]
    hankel = np.array([[moment[i + j] for j in range(count + 1)] for i in range(count + 1)])
    lower = np.linalg.cholesky(hankel)  # moments of a weight on [-1, 1] of seven points are well conditioned enough
    upper = lower.T
    beta = np.array([upper[k + 1, k + 1] / upper[k, k] for k in range(count - 1)])
    values, vectors = np.linalg.eigh(np.diag(beta, 1) + np.diag(beta, -1))
    return values.tolist(), (vectors[0] ** 2 * moment[0]).tolist()


_LEGENDRE = tuple(part.tolist() for part in np.polynomial.legendre.leggauss(7))
_PEANO = _peano_nodes()
_NEAR = 0.25  # of the steps, in units of the function's own scale: seven nodes reach 1e-15 there


def smooth(frame: Frame, value: Triple, f: Pointwise, first: Pointwise, second: Pointwise) -> Tensor | None:
    r"""Any smooth f, by Gauss quadrature of its derivatives (in float64).

    .. math:: a_y = a \int_{-1}^{1} f'(\tilde x + s\,e a)\,\tfrac{ds}{2}, \qquad
              b_y = a^2 \int_{-1}^1 (1 - |s|) f''(\tilde x + s\,e a)\,ds + b \int_0^1 f'(x + s \tfrac{e^2}{2} b)\,ds

    Steps beyond 1/4 take plain differences of f. Cost: 21 evaluations of derivatives per element.
    """
    if value.lanes is None:
        return None
    narrow = value.lanes.dtype
    a, b = (part.double() for part in _pair(value))
    x = value.x.double()
    one, two = (frame.power(value.ndim, exponent, torch.float64) for exponent in (1, 2))
    step, half = one * a, 0.5 * two * b
    middle = x + half
    slope = _integral(lambda s: first(middle + s * step), *_LEGENDRE) / 2
    drift = _integral(lambda s: first(x + 0.5 * (1 + s) * half), *_LEGENDRE) / 2
    bend = _integral(lambda s: second(middle + s * step), *_PEANO)
    lanes = joined(a * slope, a * a * bend + b * drift)
    far = (step.abs() > _NEAR) | (half.abs() > _NEAR)
    if bool(far.any()):
        lanes = torch.where(far.unsqueeze(1), frame.from_points(f(x), f(middle + step), f(middle - step), torch.float64), lanes)
    return lanes.to(narrow)


def _integral(function: Callable[[float], Tensor], nodes: Sequence[float], weights: Sequence[float]) -> Tensor:
    total = weights[0] * function(nodes[0])
    for node, weight in zip(nodes[1:], weights[1:], strict=True):
        total = total + weight * function(node)
    return total


# ---------------------------------------------------------------- matrix products of two moving operands
def matrix_product(frame: Frame, left: Triple, right: Triple) -> Tensor | None:
    r"""X u over the last two axes, with as few calls as operands: the terms of a rule are one product with stacked inner axes.

    .. math:: a = [a_x, \tilde x]\,[\tilde u; a_u], \qquad b = [b_x,\ x,\ 2 a_x]\,[\tilde u;\ b_u;\ a_u]
    """
    if left.lanes is None and right.lanes is None:
        return None
    if right.lanes is None:
        return _left_moves(frame, left, right)
    if left.lanes is None:
        x = left.base.narrow(right.lanes.dtype)
        return count(frame, torch.matmul(x, aligned(right.lanes, max(2, x.ndim))), x.shape[-1])
    (a, b), (g, d) = left.parts, right.parts
    ndim = max(left.ndim, right.ndim)
    a, g = batched(a, ndim), batched(g, ndim)
    x = left.base.narrow(a.dtype)
    x_middle, u_middle = _batched_or_plain(frame.middle(left), left, ndim), _batched_or_plain(frame.middle(right), right, ndim)
    first = _stacked([(a, u_middle), (x_middle, g)])
    terms = [(2 * a, g)]
    if b is not None:
        terms.append((batched(b, ndim), u_middle))
    if d is not None:
        terms.append((x, batched(d, ndim)))
    second = _stacked(terms)
    frame.operations += 2 * (2 + len(terms)) * x.shape[-1] * second.numel()
    return joined(first, second)


def count(frame: Frame, out: Tensor, inner: int) -> Tensor:
    """Count the operations of a product and return it."""
    frame.operations += 2 * inner * out.numel()
    return out


def _left_moves(frame: Frame, left: Triple, right: Triple) -> Tensor:
    assert left.lanes is not None
    u = right.base.narrow(left.lanes.dtype)
    if u.ndim == 2:
        out = left.lanes.reshape(-1, left.shape[-1]) @ u
        return count(frame, out.reshape(*left.lanes.shape[:-1], u.shape[-1]), u.shape[0])
    return count(frame, torch.matmul(aligned(left.lanes, u.ndim), u), u.shape[-2])


def batched(part: Tensor, ndim: int) -> Tensor:
    """A part ``[K, S', *shape]`` with ones in front of the tensor's own axes."""
    missing = ndim - (part.ndim - 2)
    return part.reshape(*part.shape[:2], *[1] * missing, *part.shape[2:]) if missing else part


def _batched_or_plain(middle: Tensor, value: Triple, ndim: int) -> Tensor:
    return middle if middle.ndim == value.ndim else batched(middle, ndim)


def _stacked(terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The sum of matrix products as one product of operands that are concatenated along the inner axis."""
    ndim = max(max(left.ndim, right.ndim) for left, right in terms)
    lead = torch.broadcast_shapes(*(t.shape[:-2] for pair in terms for t in pair))  # type: ignore[no-untyped-call]
    assert ndim == len(lead) + 2
    left = torch.cat([term[0].expand(*lead, *term[0].shape[-2:]) for term in terms], -1)
    right = torch.cat([term[1].expand(*lead, *term[1].shape[-2:]) for term in terms], -2)
    return torch.matmul(left, right)
