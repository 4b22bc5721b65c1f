"""Results of the sharpness probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastscape.numerics.arrays import Array, Shapes
from fastscape.numerics.estimate import Estimate
from fastscape.reports.document import Document
from fastscape.reports.numbers import number
from fastscape.runs.provenance import Provenance


@dataclass(frozen=True)
class SharpnessResult(Document):
    r"""Rises of the loss, L(w + step) - L(w), within a ball of radius epsilon; all in units of the loss.

    Attributes:
        name, step: of the checkpoint.
        variant: ``"normalized"``, ``"sam"`` or ``"asam"``.
        epsilon: radius.
        loss: L(w).
        worst: the largest rise found: a lower bound of the maximum, never negative, because w is in the ball.
        random: mean rise over random points on the sphere; interval over pairs u and -u, on the logarithmic scale where no pair
            falls, else Student's t.
        first_order: :math:`\epsilon \sum_l \|s_l \circ g_l\|`.
        quadratic: maximum of the quadratic model, found by ascent; NaN where there was none.
        quadratic_bound: upper bound of that maximum from the largest eigenvalue.
        restarts: best rise of every ascent ``[R]``; NaN where none was made, or all were NaN.
        starts: of the ascents, in words ``[R]``.
        curves: rises along the ascents ``[R, steps + 1]``; NaN where an ascent ended early.
        random_rises: of the random points ``[samples]``.
        m: samples per group; ``None`` for one group. Then the numbers above are means over groups.
        group_worst: worst rise of every group ``[groups]``.
        nonfinite: points with a NaN or infinite loss.
        noise: rounding noise of one rise in the arithmetic of the ascents (an upper estimate).
        meta: seed, settings, precision of each part, counts, fingerprints, seconds, stop reason.
        notes: flags of the evaluation, in words.
    """

    kind: ClassVar[str] = "sharpness"

    shapes: ClassVar[Shapes] = {"restarts": "r", "starts": "r", "curves": "r *", "random_rises": "*", "group_worst": "*"}
    name: str
    step: int | None
    variant: str
    epsilon: float
    loss: float
    worst: float
    random: Estimate
    first_order: float
    quadratic: float
    quadratic_bound: float
    restarts: Array
    starts: tuple[str, ...]
    curves: Array
    random_rises: Array
    m: int | None
    group_worst: Array
    nonfinite: int
    noise: float
    meta: Provenance
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<SharpnessResult {self.name!r}: {self.variant}, epsilon = {self.epsilon:g}, worst >= {number(self.worst, 4)}>"
