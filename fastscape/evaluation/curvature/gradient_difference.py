"""Central differences of gradients: for models whose operations have no second derivative, or whose graph does not fit."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from fastscape.evaluation.curvature.flat import norm
from fastscape.evaluation.curvature.paths import Product
from fastscape.evaluation.curvature.program import Parts, Program

HOPELESS = 1e-2  # relative error of products above which they are refused
_LADDER = (16.0, 4.0, 1.0, 0.25, 0.0625)  # steps that are tried, relative to the first guess


class InaccurateDifferenceError(ValueError):
    """No step gives products with an error below :data:`HOPELESS`."""


class DifferencePath:
    r"""Products from two gradients on the line through the weights, with a step and an error found on the first vector.

    .. math:: H v = \frac{g(w + h v) - g(w - h v)}{2 h} + O(h^2), \qquad h = s\, u^{1/3}\, (1 + \|w\|) / \|v\|

    with u the rounding unit. On the first vector the factor s is taken from a ladder: where products of neighbouring steps differ
    least, rounding (1 / h) and truncation (h^2) balance. ``error`` is that difference relative to the product, which Richardson's
    rule makes a bound: the truncation error of the smaller of two steps is a fifteenth of the difference of steps h and 4 h.

    Cost: 2 gradients a product, and 10 on the first; memory of a gradient and one more. Runs wherever a gradient
    does.

    Attributes:
        error: estimated relative error of a product; ``None`` before the first.
        step: s u^(1/3), the relative step; ``None`` before the first.
    """

    name = "gradient difference"
    batched = False
    held = False
    exact = False

    def __init__(self, program: Program) -> None:
        self._program = program
        self.error: float | None = None
        self.step: float | None = None
        self._weights = [leaf.data for leaf in program.leaves]
        self._scale = 1.0 + norm(self._weights)

    def build(self, batch: int) -> Product:
        """Find the step on the first vector of the first batch; nothing is kept for a batch."""

        def product(block: Parts) -> Parts:
            vector = [part[0] for part in block]
            length = norm(vector)
            if length == 0 or not math.isfinite(length):
                return [part * torch.nan if length else torch.zeros_like(part) for part in block]
            if self.step is None:
                self._calibrate(batch, vector, length)
            assert self.step is not None
            return [part[None] for part in self._difference(batch, vector, self.step * self._scale / length)]

        return product

    def _difference(self, batch: int, vector: Parts, step: float) -> Parts:
        plus = self._gradient(batch, vector, step)
        minus = self._gradient(batch, vector, -step)
        return [p.sub_(m).mul_(0.5 / step) for p, m in zip(plus, minus, strict=True)]

    def _gradient(self, batch: int, vector: Parts, step: float) -> Parts:
        """Gradient at the displaced weights, which are written over the private copy's and back: no second copy."""
        base = self._program.replica.base
        try:
            for weight, origin, direction in zip(self._weights, base, vector, strict=True):
                torch.add(origin.to(weight.dtype), direction, alpha=step, out=weight)
            return self._program.gradient(batch)
        finally:
            self._program.replica.reset()

    def _calibrate(self, batch: int, vector: Parts, length: float) -> None:
        unit = torch.finfo(self._weights[0].dtype).eps ** (1 / 3)
        steps = [factor * unit for factor in _LADDER]
        products = [self._difference(batch, vector, step * self._scale / length) for step in steps]
        errors = []
        for coarse, fine in pairwise(products):
            size = norm(fine)
            change = norm([c - f for c, f in zip(coarse, fine, strict=True)])
            errors.append(change / size if size else (0.0 if change == 0 else math.inf))
        best = min(range(len(errors)), key=lambda index: errors[index] if errors[index] == errors[index] else math.inf)
        if not errors[best] <= HOPELESS:
            raise InaccurateDifferenceError(
                f"products by differences of gradients in {str(self._weights[0].dtype)[6:]} have an estimated relative error of "
                f"{errors[best]:.1g}, above {HOPELESS:g}; use dtype=torch.float64 in the objective, or another path"
            )
        self.step, self.error = steps[best + 1], errors[best]
