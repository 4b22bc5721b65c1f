"""Products held against the loss itself: second differences in float64, on the pieces that hold at the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscape._batches import placed
from fastscape.evaluation.branches import Branches
from fastscape.evaluation.curvature.flat import norm
from fastscape.evaluation.curvature.program import Parts, Program

_RADII = (1e-3, 6e-5, 4e-6)  # relative to ||w||: sharp losses want small ones, flat ones large
_CLOSE = 1e-2  # of the size of a form: float32 products are a hundred times nearer
_CONVERGED = 0.25  # of the gap between losses and products: how far losses at two radii may lie apart to outweigh products
_ROUNDING = 1e4 * torch.finfo(torch.float64).eps  # of a loss, inner cancellation included
_KINK = (1.8, 2.2)  # ratio of forms at r and 2 r where the loss has a kink: the second difference grows as r, not as its square


class UnsoundProductError(ValueError):
    """Products are not those of the second derivative of the loss, or there is none."""


@dataclass(frozen=True)
class Verdict:
    """What losses say of a product.

    Attributes:
        agrees: whether they bear it out; ``None`` where they do not tell.
        words: why not.
    """

    agrees: bool | None
    words: str = ""


class LossCurvature:
    r"""Forms v'Hv of one batch by second differences of its loss, which need no derivative of torch's.

    .. math:: v^T H v = \frac{L(w + h v) - 2 L(w) + L(w - h v)}{h^2} + O(h^2), \qquad h = r \|w\| / \|v\|

    in float64, in which an error of rounding is far below what is looked for, and on the pieces of the network that hold at w
    (:class:`~fastscape.evaluation.branches.Branches`), which is what derivatives mean. Torch's second derivatives are wrong, or
    NaN, at points where an operation is smooth only together with the next: ``vector_norm(d) ** 2`` at d = 0.

    Cost: 4 forwards in float64 where the loss agrees, up to 14 where it does not; a copy of the parameters in float64.
    """

    def __init__(self, program: Program, batch: int) -> None:
        self._program, self._batch = program, batch
        objective = program.replica.objective
        self._replica = objective.replica(torch.float64)
        self._replica.batches = [placed(program.replica.batches[batch], objective.device, torch.float64)]
        self._replica.forget()
        buffers = dict(program.replica.module.model.named_buffers())
        for name, buffer in self._replica.module.model.named_buffers():
            buffer.copy_(buffers[name])
        self._norm = norm(program.leaves) or 1.0
        self._branches = Branches()
        self._write(program.leaves, 0.0)
        with self._branches.recording(0):
            self._replica.batch_loss(0)
        self.base = self._loss()

    def judge(self, vector: Parts, product: Parts) -> Verdict:
        """Compare v'Hv of a vector and its product (of the parameters' shapes) with the loss.

        Where the loss's slope is not that of its gradient (a part is detached, or a backward is made up), it cannot tell: the
        second derivative is then automatic differentiation's, and no other has been asked for.
        """
        length = norm(vector)
        form = _dot(vector, product)
        size = norm(product) * length / math.sqrt(sum(part.numel() for part in vector))
        ratios: list[float] = []
        for radius in _RADII:
            step = radius * self._norm / length
            near, slope, floor = self._difference(vector, step)
            gap = abs(near - form)
            if not math.isfinite(gap) or gap <= max(_CLOSE * max(abs(form), abs(near), size), floor):
                return Verdict(None if not math.isfinite(gap) else True)
            far = self._difference(vector, 2 * step)[0]
            ratios.append(near / far if far else math.nan)
            if abs(near - far) <= _CONVERGED * gap:
                return self._contradicted(vector, form, near + (near - far) / 3, slope)
        if all(_KINK[0] < ratio < _KINK[1] for ratio in ratios):
            return Verdict(
                False,
                f"the loss has a kink at these weights: v'Hv is {form:.4g} by products, and by the loss {near:.4g}, twice that at "
                f"half the distance; there is no second derivative",
            )
        return Verdict(None)

    def _contradicted(self, vector: Parts, form: float, found: float, slope: float) -> Verdict:
        gradient = self._program.gradient(self._batch)
        expected = _dot(gradient, vector)
        size = norm(gradient) * norm(vector) / math.sqrt(sum(part.numel() for part in vector))
        if not abs(slope - expected) <= _CLOSE * max(abs(expected), size):
            return Verdict(None, "the gradient is not that of the loss: a part is detached, or has a backward of its own")
        return Verdict(
            False,
            f"v'Hv is {form:.4g} by its products and {found:.4g} by the loss nearby: torch differentiates an operation wrongly at "
            "these weights (a norm at zero, a product with a factor near zero), or float32 is too coarse",
        )

    def _difference(self, vector: Parts, step: float) -> tuple[float, float, float]:
        """Second and first difference quotient, and the rounding of the second."""
        losses = []
        for sign in (1, -1):
            self._write(vector, sign * step)
            losses.append(self._loss())
        plus, minus = losses
        floor = _ROUNDING * (1 + abs(self.base)) / step**2
        return ((plus - self.base) + (minus - self.base)) / step**2, (plus - minus) / (2 * step), floor

    def _write(self, vector: Sequence[Tensor], step: float) -> None:
        for slot, leaf, direction in zip(self._replica.scratch, self._program.leaves, vector, strict=True):
            slot.copy_(leaf.detach())
            if step:
                slot.add_(direction, alpha=step)

    def _loss(self) -> float:
        with self._branches.held(0):
            return float(self._replica.batch_loss(0)[0])


def _dot(one: Parts, other: Parts) -> float:
    return math.fsum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))
