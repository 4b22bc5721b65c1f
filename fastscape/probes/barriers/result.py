"""Results of the connectivity probes: barriers along paths, their matrix, and curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fastscape._checks import counted
from fastscape.numerics.arrays import Array, Shapes
from fastscape.numerics.estimate import Estimate
from fastscape.reports.document import Document
from fastscape.reports.numbers import number
from fastscape.runs.provenance import Provenance


@dataclass(frozen=True)
class BarrierResult(Document):
    r"""Losses along a path from a (alpha = 0) to b (alpha = 1), and its barriers, in units of the loss.

    Attributes:
        name, step: of the result.
        a, b: names of the ends.
        path: ``"line"`` or ``"curve"``.
        alphas: ascending, with both ends ``[A]``.
        losses, stderr: L at every point and its standard error over samples ``[A]``.
        accuracy: share of correct classifications ``[A]``, or ``None``.
        linear: :math:`B_{lin} = \max_\alpha [L(w(\alpha)) - (1 - \alpha) L_a - \alpha L_b]`; never negative.
        end: :math:`B_{end} = \max_\alpha L(w(\alpha)) - \max(L_a, L_b)`; never negative.
        max: :math:`B_{max} = \max_\alpha L(w(\alpha))`, which is not 0 without a barrier.
        argmax: where ``linear`` is reached; ``argmax_loss``: where the loss is largest.
        accuracy_barrier: :math:`\max_\alpha [(1 - \alpha) A_a + \alpha A_b - A(w(\alpha))]`, or ``None``.
        distance: ||w_a - w_b|| over all parameters; ``length`` of the path.
        resolution: by how much a maximum between the points may exceed the largest of the points, from their second differences.
        noise: rounding error of one loss.
        nonfinite: points with a NaN or infinite loss.
        batch_norm: ``"none"``, ``"recalibrate"``, ``"running"`` or ``"batch"``.
        matched: whether b's hidden units were reordered to match a's.
        meta: settings, unit of the standard errors, fingerprints of both ends, evaluations, seconds, stop reason.
        notes: flags of the evaluation, in words.

    The standard errors are of *paired* differences: a sample's loss at a point less its own at the ends.
    """

    kind: ClassVar[str] = "barrier"

    shapes: ClassVar[Shapes] = {"alphas": "points", "losses": "points", "stderr": "points", "accuracy": "points"}
    name: str
    step: int | None
    a: str
    b: str
    path: str
    alphas: Array
    losses: Array
    stderr: Array
    accuracy: Array | None
    linear: Estimate
    end: Estimate
    max: Estimate
    argmax: float
    argmax_loss: float
    accuracy_barrier: Estimate | None
    distance: float
    length: float
    resolution: float
    noise: float
    nonfinite: int
    batch_norm: str
    matched: bool
    meta: Provenance
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<BarrierResult {self.a!r} to {self.b!r}: linear {number(self.linear.value, 4)} at alpha {self.argmax:.3g}>"


@dataclass(frozen=True)
class BarrierMatrix(Document):
    """Barriers between every two of K solutions; symmetric, NaN where a pair was not evaluated.

    Attributes:
        name, step: of the result.
        labels: of the solutions.
        losses: of each ``[K]``; ``accuracy`` ``[K]`` or ``None``.
        linear, end, max: see :class:`BarrierResult`, ``[K, K]``; the diagonal is 0, and the own loss for ``max``.
        low, high: 95 % interval of ``linear`` ``[K, K]``.
        argmax: position of ``linear`` from row to column ``[K, K]``; NaN on the diagonal.
        accuracy_barrier: ``[K, K]`` or ``None``.
        distance: ``[K, K]``, after matching where that was asked for.
        batch_norm, matched: see :class:`BarrierResult`.
        pairs: what was evaluated, each with its line.
        meta, notes: see :class:`BarrierResult`.
    """

    kind: ClassVar[str] = "barriers"

    shapes: ClassVar[Shapes] = {
        "labels": "k",
        "losses": "k",
        "accuracy": "k",
        "linear": "k k",
        "low": "k k",
        "high": "k k",
        "end": "k k",
        "max": "k k",
        "argmax": "k k",
        "accuracy_barrier": "k k",
        "distance": "k k",
    }
    name: str
    step: int | None
    labels: tuple[str, ...]
    losses: Array
    accuracy: Array | None
    linear: Array
    low: Array
    high: Array
    end: Array
    max: Array
    argmax: Array
    accuracy_barrier: Array | None
    distance: Array
    batch_norm: str
    matched: bool
    pairs: tuple[BarrierResult, ...]
    meta: Provenance
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<BarrierMatrix of {len(self.labels)} solutions, {counted(len(self.pairs), 'pair')}>"


@dataclass(frozen=True)
class CurveResult(Document):
    """A trained quadratic Bezier curve between two solutions, beside the straight line.

    Attributes:
        name, step: of the result.
        line, curve: barriers along both; ``curve.losses`` are those along the curve, ``curve.max`` their largest.
        length: of the curve; ``distance`` of its ends.
        training: losses at the random points of the training ``[steps]``.
        bend: theta by parameter name, as tensors; not saved.
        meta, notes: see :class:`BarrierResult`.
    """

    kind: ClassVar[str] = "curve"

    shapes: ClassVar[Shapes] = {"training": "*"}
    name: str
    step: int | None
    line: BarrierResult
    curve: BarrierResult
    length: float
    distance: float
    training: Array
    meta: Provenance
    notes: tuple[str, ...] = ()
    bend: dict[str, Any] | None = None

    def __repr__(self) -> str:
        values = f"{number(self.line.linear.value)} to {number(self.curve.linear.value)}"
        return f"<CurveResult {self.line.a!r} to {self.line.b!r}: linear barrier from {values}>"

    def stored(self) -> CurveResult:
        """Without the bend, which is as large as the model."""
        import dataclasses

        return dataclasses.replace(self, bend=None)
