"""Differences through pointwise functions: the specification in plain PyTorch, computed in float64 and rounded once.

With P = a + e b/2, M = a - e b/2 the displaced points are x + e P and x - e M, and

    a_y = a f[x-, x+]          b_y = b f[x-, x+] + 2 P M f[x-, x, x+]

with the divided differences of f. For an analytic piece of f with Taylor coefficients t_j = f^(j)(x) / j! they are beta_1 and
beta_2 of beta_j = t_j + (e^2 b) beta_{j+1} + (e^2 P M) beta_{j+2}: no division by e, no cancellation, and e = 0 is the 2-jet.
Where a displaced point lies on another piece, the jump J = f_right - f_left of the analytic continuations is added, a number
that vanishes at the breakpoint. Displacements too large for the series take plain differences, of what is left of f without its
asymptotes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastscape.ops.pointwise_difference.rules import RULES, SWITCH, Jump


def _jumps(jumps: Sequence[Jump], x: Tensor, plus: Tensor, minus: Tensor) -> tuple[Tensor, Tensor]:
    """Excess of f over the continuation of the piece that holds x, at x + plus and at x - minus."""
    rise, fall = torch.zeros_like(plus), torch.zeros_like(plus)
    for point, jump in jumps:
        z = x - point
        above = x > point
        up, down = plus > -z, z > minus  # exact: neither sum is formed
        rise = rise + torch.where(up == above, 0.0, torch.where(up, 1.0, -1.0) * jump(z + plus))
        fall = fall + torch.where(down == above, 0.0, torch.where(down, 1.0, -1.0) * jump(z - minus))
    return rise, fall


def pointwise_difference(x: Tensor, lanes: Tensor, radii: Tensor, kind: str, options: Sequence[float]) -> Tensor:
    """See :func:`fastscape.ops.pointwise_difference.pointwise_difference`."""
    rule = RULES[kind](*options)
    base = x.double()
    a = lanes[:, 0].double()
    b = lanes[:, 1].double() if lanes.shape[1] == 2 else torch.zeros_like(a)
    e = radii.reshape(-1, *[1] * x.ndim)
    half = e / 2 * b
    product = (a + half) * (a - half)
    plus, minus = e * (a + half), e * (a - half)

    first, second = torch.zeros_like(product), torch.zeros_like(product)
    for coefficient in reversed(rule.series(base)):
        first, second = coefficient + (e * e * b) * first + (e * e * product) * second, first
    first_lane, second_lane = a * first, b * first + 2 * product * second

    unit = torch.where(e == 0, 1.0, e)
    if rule.jumps:
        rise, fall = _jumps(rule.jumps, base, plus, minus)
        first_lane = first_lane + (rise - fall) / (2 * unit)
        second_lane = second_lane + (rise + fall) / unit / unit
    if rule.rest is not None:
        large = torch.maximum(plus.abs(), minus.abs()) * rule.stretch > SWITCH
        rise, fall = _jumps([(0.0, lambda z: rule.ramp * z + rule.step)], base, plus, minus)
        rest, slope = rule.rest(base), torch.where(base > 0, rule.ramp, 0.0)
        rise, fall = rise + (rule.rest(base + plus) - rest), fall + (rule.rest(base - minus) - rest)
        first_lane = torch.where(large, slope * a + (rise - fall) / (2 * unit), first_lane)
        second_lane = torch.where(large, slope * b + (rise + fall) / unit / unit, second_lane)

    infinite = base.isnan() | (base.isinf() & torch.where(base > 0, rule.grows[1], rule.grows[0]))
    result = torch.stack((first_lane, second_lane), 1)
    return torch.where(infinite, torch.nan, result).to(lanes.dtype)
