"""Central differences of gradients: for models whose operations have no second derivative, or whose graph does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastscape.curvature.flat import norm
from fastscape.curvature.paths import Product
from fastscape.curvature.program import Parts

LARGEST_ERROR = 1e-2  # relative error of products above which they are refused
_LARGEST, _RATIO, _LEVELS = 16.0, 4.0, 12  # steps that are tried, relative to u^(1/3): kinks want far smaller ones
_ENOUGH = 3.0  # times the root of the rounding unit: an error that is small enough, 1e-3 in float32 and 5e-8 in float64
_COARSE = 3.0  # units of the narrowest dtype inside: a smaller step leaves weights that are rounded to it where they are
_GOOD = 1e-3  # error at which the search stops once steps get worse


class Differentiated(Protocol):
    """What is asked of a loss.

    Attributes:
        leaves: the weights, which are written over.
        narrow: a dtype inside that is narrower than theirs, and its operation.
    """

    @property
    def leaves(self) -> Sequence[Tensor]:
        """See above."""
        ...

    @property
    def narrow(self) -> tuple[torch.dtype, str] | None:
        """See above."""
        ...

    def gradient(self, batch: int) -> Parts:
        """The gradient of a batch at the weights as they are."""
        ...


class InaccurateDifferenceError(ValueError):
    """No step gives products with an error below :data:`LARGEST_ERROR`."""


class DifferencePath:
    r"""Products from two gradients on the line through the weights, with a step and an error found on the first vector.

    .. math:: H v = \frac{g(w + h v) - g(w - h v)}{2 h} + O(h^2), \qquad h = s\, u^{1/3}\, (1 + \|w\|) / \|v\|

    with u the rounding unit. On the first vector the factor s is taken from a ladder: where the products of neighbouring steps
    differ least, rounding (1 / h) and truncation (h^2, or crossed kinks) balance; a smaller one is taken while it is good
    enough. ``error`` is that difference relative to the product; by Richardson's rule the truncation error of the smaller of the
    two steps h and 4 h is a fifteenth of it. A step that leaves the gradient as it was tells nothing: the product is zero only
    where no step, up to 8 % of the weights in float32, moves the gradient. Where the model rounds to a narrower dtype inside,
    steps below its resolution are not tried: they would leave out what they do not move.

    Cost: 2 gradients a product, and 6 to 24 on the first; memory of a gradient, one more, and a copy of the parameters. Runs
    wherever a gradient does.

    Attributes:
        error: estimated relative error of a product; ``None`` before the first.
        step: s u^(1/3), the relative step; ``None`` before the first.
    """

    name = "gradient difference"
    batched = False
    held = False
    exact = False

    def __init__(self, program: Differentiated, length: Callable[[Parts], float] = norm) -> None:
        self._program, self._norm = program, length
        self.error: float | None = None
        self.step: float | None = None
        self._weights = [leaf.data for leaf in program.leaves]
        self._origin = [weight.clone() for weight in self._weights]
        self._scale = 1.0 + self._norm(self._weights)

    def build(self, batch: int) -> Product:
        """Find the step on the first vector of the first batch; nothing is kept for a batch."""

        def product(block: Parts) -> Parts:
            vector = [part[0] for part in block]
            length = self._norm(vector)
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
        """Gradient at the displaced weights, which are written over the private copy's and back."""
        try:
            for weight, origin, direction in zip(self._weights, self._origin, vector, strict=True):
                torch.add(origin, direction, alpha=step, out=weight)
            return self._program.gradient(batch)
        finally:
            for weight, origin in zip(self._weights, self._origin, strict=True):
                weight.copy_(origin)

    def _calibrate(self, batch: int, vector: Parts, length: float) -> None:
        eps = torch.finfo(self._weights[0].dtype).eps
        steps = [_LARGEST * eps ** (1 / 3) / _RATIO**level for level in range(_LEVELS)]
        narrow = self._program.narrow
        if narrow is not None:
            steps = [step for step in steps if step >= _COARSE * torch.finfo(narrow[0]).eps] or steps[:1]
        coarse = self._difference(batch, vector, steps[0] * self._scale / length)
        moved = self._norm(coarse) > 0
        errors: list[float] = []
        enough = _ENOUGH * math.sqrt(eps)
        for step in steps[1:]:
            fine = self._difference(batch, vector, step * self._scale / length)
            size, change = self._norm(fine), self._norm([c - f for c, f in zip(coarse, fine, strict=True)])
            moved = moved or size > 0
            errors.append(change / size if size and math.isfinite(change) else math.inf)
            coarse = fine
            if min(errors) < _GOOD and errors[-1] > max(enough, min(errors)):  # past the balance of rounding and truncation
                break
        if not moved:  # a loss that is linear along the vector
            self.step, self.error = steps[0], 0.0
            return
        best = min(range(len(errors)), key=errors.__getitem__, default=0)
        if errors and errors[best] <= enough:  # the least step that is good enough: other vectors cross their kinks at others
            best = max(index for index, error in enumerate(errors) if error <= enough)
        if not errors or not errors[best] <= LARGEST_ERROR:
            raise InaccurateDifferenceError(self._inaccurate(errors[best] if errors else math.inf))
        self.step, self.error = steps[best + 1], errors[best]

    def _inaccurate(self, error: float) -> str:
        dtype, narrow = str(self._weights[0].dtype)[6:], self._program.narrow
        inside = "" if narrow is None else f", with {str(narrow[0])[6:]} inside ({narrow[1]}),"
        return (
            f"products by differences of gradients in {dtype}{inside} have an estimated relative error of "
            f"{error:.1g}, above {LARGEST_ERROR:g}; use dtype=torch.float64 in the objective, or another path"
        )
