"""Products compared with the loss itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from fastscape.curvature.flat import dot, norm
from fastscape.curvature.program import Parts, Program
from fastscape.curvature.slopes import DETACHED, WIDE, slopes
from fastscape.evaluation.arithmetic import arithmetic
from fastscape.evaluation.branches import Branches
from fastscape.evaluation.nearby import CLOSE, NARROW, Verdict, judged
from fastscape.objective.batches import placed
from fastscape.objective.examination import replica_of

_SAME = 1e-2  # of the size of a slope: how far losses and a gradient may lie apart


class UnsoundProductError(ValueError):
    """Products are not those of the second derivative of the loss, or there is none."""


class LossCurvature:
    """Losses of one batch near the weights of a program, in float64 and on the pieces that hold there.

    Cost: a copy of the parameters in float64, and two evaluations.
    """

    def __init__(self, program: Program, batch: int) -> None:
        self._program, self._batch = program, batch
        objective = program.replica.objective
        self._replica = replica_of(objective, torch.float64)
        self._replica.batches = [placed(program.replica.batches[batch], objective.device, torch.float64)]
        buffers = dict(program.replica.module.model.named_buffers())
        for name, buffer in self._replica.module.model.named_buffers():
            buffer.copy_(buffers[name])
        self._branches, self._narrow = Branches(), arithmetic(objective, torch.float64).narrow
        self._write(program.leaves, 0.0)
        self.base = self._branches.settled(self._in)[1]

    def contradiction(self, vector: Parts, product: Parts, error: float = 0.0) -> tuple[str, bool | None]:
        """Why a product cannot be that of the Hessian, and whether it is that; see :func:`~fastscape.evaluation.nearby.judged`.

        ``error`` is what it is off by its own account. Where the slope of the losses is not that of the gradient (a part is
        detached, or a backward is made up) they do not tell: the second derivative is automatic differentiation's, and no other
        has been asked for. Then the words say that.
        """
        length, count = norm(vector), sum(part.numel() for part in vector)
        form, unit = dot(vector, product), (norm(self._program.leaves) or 1.0) / length
        size = norm(product) * length / math.sqrt(count)
        close = max(CLOSE, 3 * error)
        found = judged(lambda step: self._both(vector, step, self._held), self.base, unit, form, size, close, self._narrow)
        if found.agrees is None:  # a piece may end at w itself, as that of normalize within 1e-12 of zero
            found = judged(
                lambda step: self._both(vector, step, self._plain), self._plain(), unit, form, size, close, self._narrow
            )
            found = Verdict(None) if found.kink else found
            if found.agrees is None:
                slope, off = self._slope(vector, unit)
                return (DETACHED if math.isfinite(slope) and self._departs(vector, slope, off) else ""), None
        if found.kink:
            return "the loss has a kink at these weights: its second differences grow as the distance, not as its square", False
        if found.agrees is not False:
            return "", found.agrees
        if not math.isfinite(form):
            return f"its products hold NaN or inf, and v'Hv is {found.form:.4g} by losses nearby", False
        if self._departs(vector, found.slope):
            return DETACHED, None
        return (
            f"v'Hv is {form:.4g} by its products and {found.form:.4g} by losses nearby: torch differentiates an operation "
            "wrongly at these weights (a norm at zero, a product with a factor near zero), or float32 is too coarse",
            False,
        )

    def _slope(self, vector: Parts, unit: float) -> tuple[float, float]:
        """G'v by losses, and how far it may be off: by the distance of two radii, and by narrow arithmetic inside."""
        rounding = 0.0 if self._narrow is None else NARROW * torch.finfo(self._narrow).eps * (1 + abs(self.base))
        return slopes(lambda step: self._both(vector, step, self._held), WIDE, unit, rounding)[-1]

    def _departs(self, vector: Parts, slope: float, error: float = 0.0) -> bool:
        """Whether a slope of losses is another than that of the gradient."""
        gradient = self._program.gradient(self._batch)
        own, size = dot(gradient, vector), norm(gradient) * norm(vector) / math.sqrt(sum(part.numel() for part in vector))
        return not abs(own - slope) <= max(_SAME * max(abs(own), size), error)

    def _both(self, vector: Parts, step: float, loss: Callable[[], float]) -> tuple[float, float]:
        losses = []
        for sign in (1, -1):
            self._write(vector, sign * step)
            losses.append(loss())
        self._write(vector, 0.0)
        return losses[0], losses[1]

    def _write(self, vector: Sequence[Tensor], step: float) -> None:
        for slot, leaf, direction in zip(self._replica.scratch, self._program.leaves, vector, strict=True):
            slot.copy_(leaf.detach())
            if step:
                slot.add_(direction, alpha=step)

    def _in(self, mode: Callable[[int], AbstractContextManager[None]]) -> float:
        with mode(0):
            return self._plain()

    def _held(self) -> float:
        return self._in(self._branches.held)

    def _plain(self) -> float:
        return float(self._replica.batch_loss(0)[0])
