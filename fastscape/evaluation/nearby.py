"""Second derivatives compared with losses nearby, which need no derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

RADII = (1e-3, 6e-5, 4e-6)  # relative to ||w||: sharp losses want small ones, flat ones large
CLOSE = 1e-3  # of the size of a form: products and lanes in float32 are ten times nearer and more
_CONVERGED = 0.25  # of the gap between losses and a form: how far losses at two radii may lie apart to outweigh it
_ROUNDING = 1e4 * torch.finfo(torch.float64).eps  # of a loss, inner cancellation included
NARROW = 4.0  # units of a narrower dtype inside, times the loss, in a second difference: five times their deviation in a mean
_KINK = (1.8, 2.2)  # ratio of forms at r and 2 r where the loss has a kink: its second difference grows as r, not as r^2


@dataclass(frozen=True)
class Verdict:
    """Bounds that losses near w give of a form v'Hv.

    Attributes:
        agrees: whether they bear it out; ``None`` where they do not tell.
        form: by the losses, extrapolated to w, where they contradict; else NaN.
        slope: g'v by the losses.
        kink: whether the second difference grows as the distance, so that there is no second derivative.
    """

    agrees: bool | None
    form: float = math.nan
    slope: float = math.nan
    kink: bool = False


def judged(
    losses: Callable[[float], tuple[float, float]],
    base: float,
    unit: float,
    form: float,
    size: float,
    close: float = CLOSE,
    narrow: torch.dtype | None = None,
) -> Verdict:
    r"""Compare a form with second differences of losses in float64 on the pieces of the network that hold at w.

    .. math:: v^T H v = \frac{L(w + h v) - 2 L(w) + L(w - h v)}{h^2} + O(h^2), \qquad h = r \|w\| / \|v\|

    Torch's second derivatives are wrong, or NaN, at points where an operation is smooth only together with the next:
    ``vector_norm(d) ** 2`` at d = 0. Losses outweigh a form where those at two radii agree with one another, and not with it.

    Args:
        losses: L(w + h v) and L(w - h v).
        base: L(w).
        unit: ||w|| / ||v||.
        form: what is judged; NaN and inf too.
        size: what it is of, where terms cancel in it.
        close: relative distance that is none.
        narrow: a dtype that something inside of the losses is rounded to; what this may have done to them tells nothing.

    Cost: 2 evaluations where they agree, at most 12.
    """
    ratios: list[float] = []
    blurred = 0.0 if narrow is None else NARROW * torch.finfo(narrow).eps * (1 + abs(base))
    for radius in RADII:
        (near, slope), floor = _quotients(losses, base, radius * unit), _ROUNDING * (1 + abs(base)) / (radius * unit) ** 2
        if not math.isfinite(near):
            return Verdict(None)
        gap = abs(near - form)
        if gap <= max(close * max(abs(form), abs(near), size), floor):
            return Verdict(True)
        blur = blurred / (radius * unit) ** 2
        if gap <= blur or (not math.isfinite(form) and abs(near) <= blur):
            continue
        far = _quotients(losses, base, 2 * radius * unit)[0]
        apart = abs(near - far)
        ratios.append(near / far if far else math.nan)
        if apart <= _CONVERGED * gap or (not math.isfinite(form) and apart <= max(close * abs(near), floor)):
            return Verdict(False, near + (near - far) / 3, slope)
    grows = len(ratios) == len(RADII) and all(_KINK[0] < ratio < _KINK[1] for ratio in ratios)
    return Verdict(False, kink=True) if grows else Verdict(None)


def _quotients(losses: Callable[[float], tuple[float, float]], base: float, step: float) -> tuple[float, float]:
    plus, minus = losses(step)
    return ((plus - base) + (minus - base)) / step**2, (plus - minus) / (2 * step)
