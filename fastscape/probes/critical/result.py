"""Result of the critical sharpness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fastscape.numerics.arrays import Array, Shapes
from fastscape.numerics.estimate import Estimate
from fastscape.reports.document import Document
from fastscape.runs.provenance import Provenance


@dataclass(frozen=True, repr=False)
class CriticalSharpnessResult(Document):
    r"""The smallest step :math:`\eta_c` along an update u at which the loss exceeds L(w), and :math:`\lambda_c = 2 / \eta_c`.

    Attributes:
        name, step: of the checkpoint.
        outcome: ``"found"``; ``"undecided"``: the differences are within their standard errors, or the interval of
            :math:`\eta_c` reaches 0; ``"never rises"``: not up to ``bracket[0]``; ``"rises at once"``: no step lowers the loss by
            more than rounding, and it rises from ``bracket[1]`` at the latest; ``"unfinished"``: ended early;
            ``"undefined"``: a loss at w that is NaN or inf.
        eta_c: in units of the update, of the learning rate where that is an optimizer's step or a gradient; the root between the
            ends of ``bracket``, with its interval over samples. NaN where the outcome has none.
        lambda_c: 2 / eta_c.
        bracket: largest step tried at which the loss does not exceed L(w), and smallest at which it does; 0 and inf where
            there is none.
        loss: L(w).
        update: what u is, in words.
        rate: learning rate of the optimizer; ``None`` without one.
        norm, relative_norm: :math:`\|u\|`, and :math:`\|u\| / \|w\|`.
        slope: :math:`g^\top u`; NaN where it was not measured.
        curvature, curvature_error: :math:`u^\top H u / u^\top u` and its estimated error (0 where only the rounding of difference
            propagation is in it); NaN where they were not measured.
        steps: steps tried, in order ``[T]``.
        differences, stderr: L(w + eta u) - L(w) there, and the standard errors over samples ``[T]``.
        decided: whether a difference is beyond two standard errors, and beyond rounding ``[T]``.
        noise: of the rounding of a difference.
        meta: settings, counts (``steps``: forwards of the search), fingerprints, seconds, stop reason.
        notes: flags, in words.
    """

    kind: ClassVar[str] = "critical_sharpness"
    shapes: ClassVar[Shapes] = {"steps": "t", "differences": "t", "stderr": "t", "decided": "t"}

    name: str
    step: int | None
    outcome: str
    eta_c: Estimate
    lambda_c: Estimate
    bracket: tuple[float, float]
    loss: float
    update: str
    rate: float | None
    norm: float
    relative_norm: float
    slope: float
    curvature: float
    curvature_error: float
    steps: Array
    differences: Array
    stderr: Array
    decided: NDArray[np.bool_]
    noise: float
    meta: Provenance
    notes: tuple[str, ...] = ()

    @property
    def critical(self) -> float:
        """2 / rate, which lambda_c exceeds where the optimizer's step raises the loss; NaN without an optimizer."""
        return math.nan if self.rate is None else math.inf if self.rate == 0 else 2 / self.rate

    @property
    def quadratic(self) -> float:
        r""":math:`-u^\top H u / g^\top u`, lambda_c of a loss that is quadratic along u; NaN where it was not measured."""
        return -self.curvature * self.norm**2 / self.slope if self.slope else math.nan
