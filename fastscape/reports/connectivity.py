"""Results of the connectivity probes: barriers along paths, their matrix, and curves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastscape._checks import counted
from fastscape.estimators.intervals import Estimate
from fastscape.estimators.scaling import Array
from fastscape.reports import connectivity_figures as figures
from fastscape.reports.document import Document
from fastscape.reports.sections import Figure, Grid, Quantity, Section
from fastscape.reports.tables import interval, number
from fastscape.runs.provenance import told

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BATCH_NORM = {
    "none": "the model has no running statistics",
    "recalibrate": "running statistics recomputed at every point, ends included: weighted averages over the data's batches",
    "running": "running statistics interpolated between those of the ends",
    "batch": "statistics of each batch",
}
_BAND = "The interval is of a band that holds at all points at once, so it allows for the maximum being looked for."
_FEW = 10  # units below which an interval over them says little


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
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<BarrierResult {self.a!r} to {self.b!r}: linear {number(self.linear.value, 4)} at alpha {self.argmax:.3g}>"

    @property
    def flags(self) -> tuple[str, ...]:
        """Everything to beware of, in words."""
        return (*told(self.meta, self.notes), *_raised(self))

    def section(self) -> Section:
        """See :class:`Document`."""
        title = "Barrier along a curve" if self.path == "curve" else "Barrier"
        shown = [
            Figure(
                "Loss along the path",
                lambda ax: figures.loss_line(self, ax),
                "Mean loss at w(alpha), 95 % band over samples at each point; the chord joins the ends, and the arrow is the "
                f"barrier above it. Batch norm: {BATCH_NORM[self.batch_norm]}.",
            )
        ]
        if self.accuracy is not None:
            words = "Share of correct classifications at w(alpha), with the chord of the ends."
            shown.append(Figure("Accuracy along the path", lambda ax: figures.accuracy_line(self, ax), words))
        return Section(
            f"{title}: {self.a} to {self.b}",
            _verdict(self),
            tuple(_quantities(self)),
            tuple(shown),
            flags=self.flags,
            settings=_settings(self.meta),
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """The loss along the path (needs matplotlib)."""
        return figures.loss_line(self, ax)


def _settings(meta: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((key, str(value)) for key, value in meta.get("settings", {}).items())


def _quantities(result: BarrierResult) -> list[Quantity]:
    where, top = f"at alpha = {result.argmax:.3g}", f"at alpha = {result.argmax_loss:.3g}"
    rows = [
        Quantity("B_lin", interval(result.linear), f"max of L(w(alpha)) - (1 - alpha) L_a - alpha L_b, {where}. {_BAND}"),
        Quantity("B_end", interval(result.end), "max of L(w(alpha)) - max(L_a, L_b)"),
        Quantity("B_max", interval(result.max), f"max of L(w(alpha)), {top}; not zero without a barrier"),
    ]
    if result.accuracy_barrier is not None:
        words = "max of (1 - alpha) A_a + alpha A_b - A(w(alpha)), a share of the targets"
        rows.append(Quantity("accuracy barrier", interval(result.accuracy_barrier), words))
    ends = f"{number(float(result.losses[0]), 4)} and {number(float(result.losses[-1]), 4)}"
    rows.append(Quantity("L_a and L_b", ends, "losses at the ends, treated as every other point"))
    if result.accuracy is not None:
        ends = f"{float(result.accuracy[0]):.2%} and {float(result.accuracy[-1]):.2%}"
        rows.append(Quantity("A_a and A_b", ends, "accuracies at the ends"))
    words = "after reordering the hidden units of b" if result.matched else "over all parameters"
    rows.append(Quantity("distance", number(result.distance, 4), f"||w_a - w_b|| {words}"))
    if result.path == "curve":
        rows.append(Quantity("length", number(result.length, 4), "of the curve"))
    rows.append(Quantity("resolution", number(result.resolution), f"what {counted(len(result.alphas), 'point')} may have missed"))
    return rows


def _verdict(result: BarrierResult) -> str:
    value = result.linear.value
    along = "curve" if result.path == "curve" else "line"
    if math.isnan(value):
        return "No barrier: the loss at an end is not finite."
    if value <= max(0.0, 2 * result.noise):
        return f"No barrier: along the {along} from {result.a} to {result.b} the loss stays on or below the chord of its ends."
    text = f"Along the {along} from {result.a} to {result.b} the loss rises {number(value)} above the chord of its ends"
    text += f" ({number(float(result.losses[0]))} and {number(float(result.losses[-1]))}) at alpha = {result.argmax:.2g}"
    low = result.linear.interval[0]
    if low <= 0:
        text += ", which this many samples cannot tell from none"
    drop = result.accuracy_barrier
    if drop is not None and drop.value > 0:
        text += f"; the accuracy falls {100 * drop.value:.1f} points below theirs"
    return text + "."


def _raised(result: BarrierResult) -> list[str]:
    flags = []
    if result.nonfinite:
        flags.append(f"{counted(result.nonfinite, 'point')} with a NaN or infinite loss; NaN is left out of the maxima")
    size = float(np.nanmax(result.losses) - np.nanmin(result.losses)) if np.isfinite(result.losses).any() else math.nan
    asked = result.meta.get("settings", {}).get("tolerance", math.inf)
    if result.resolution > max(asked * size, 8 * result.noise):
        flags.append(f"a maximum between the points may be {number(result.resolution)} higher; raise points")
    if 0 < result.linear.value < 10 * result.noise:
        flags.append(f"the barrier is within 10 times the rounding noise ({result.noise:.1e}); precision='float64' tells")
    if result.batch_norm == "running":
        flags.append("interpolated running statistics fit no network inside the path; bn='recalibrate' recomputes them")
    if math.isnan(result.linear.stderr) and math.isfinite(result.linear.value):
        flags.append("no intervals: the losses of samples are not known, and there is one batch")
    elif result.meta.get("unit") == "batches" and result.linear.n < _FEW:
        flags.append(f"intervals over {counted(result.linear.n, 'batch')} only: the losses of samples are not known")
    reason = result.meta.get("stop_reason")
    if reason in ("deadline", "interrupted"):
        flags.append(f"ended early ({reason}) after {counted(len(result.alphas), 'point')}")
    return flags


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
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<BarrierMatrix of {len(self.labels)} solutions, {counted(len(self.pairs), 'pair')}>"

    @property
    def flags(self) -> tuple[str, ...]:
        """Everything to beware of, in words."""
        total = len(self.labels) * (len(self.labels) - 1) // 2
        early = [f"{total - len(self.pairs)} of {counted(total, 'pair')} were not evaluated"] if len(self.pairs) < total else []
        single: dict[str, list[str]] = {}
        for pair in self.pairs:
            for flag in (flag for flag in pair.flags if flag not in self.meta.get("remarks", ())):
                single.setdefault(flag, []).append(f"{pair.a} - {pair.b}")
        grouped = [f"{flag} ({', '.join(where[:3])}{' ...' if len(where) > 3 else ''})" for flag, where in single.items()]
        return (*told(self.meta, self.notes), *early, *grouped)

    def section(self) -> Section:
        """See :class:`Document`."""
        words = "max over alpha of L(w(alpha)) - (1 - alpha) L_row - alpha L_column along the straight line"
        if self.matched:
            words += ", the hidden units of the later solution reordered to match the earlier"
        shown = [Figure("Barriers between solutions", lambda ax: figures.heat_map(self, self.linear, "B_lin", ax), words + ".")]
        if self.accuracy_barrier is not None:
            drop = self.accuracy_barrier
            text = "max over alpha of (1 - alpha) A_row + alpha A_column - A(w(alpha))."
            shown.append(Figure("Accuracy barriers", lambda ax: figures.heat_map(self, drop, "accuracy barrier", ax), text))
        shown.append(
            Figure("Lines", lambda ax: figures.all_lines(self, ax), "Losses along every line, less the chord of its ends.")
        )
        return Section(
            f"Barriers between {counted(len(self.labels), 'solution')}",
            self._verdict(),
            (Quantity("batch norm", self.batch_norm, BATCH_NORM[self.batch_norm]),),
            tuple(shown),
            (Grid("Pairs", tuple(_pair_row(pair) for pair in self.pairs), _COLUMNS),),
            self.flags,
            _settings(self.meta),
        )

    def _verdict(self) -> str:
        found = [pair for pair in self.pairs if math.isfinite(pair.linear.value)]
        if not found:
            return "No pair with finite ends was evaluated."
        values = [pair.linear.value for pair in found]
        apart = sum(1 for pair in found if pair.linear.interval[0] > 0)
        return (
            f"B_lin is {number(min(values))} to {number(max(values))} over {counted(len(found), 'pair')}; "
            f"{apart} of them above zero by their 95 % intervals."
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """The matrix as a heat map (needs matplotlib)."""
        return figures.heat_map(self, self.linear, "B_lin", ax)


_COLUMNS = {
    "B_lin [95 %]": f"max over alpha of L(w(alpha)) - (1 - alpha) L_a - alpha L_b. {_BAND[:-1]}",
    "at alpha": "where B_lin is reached, from 0 at the first of the pair to 1 at the second",
    "B_end [95 %]": "max over alpha of L(w(alpha)) - max(L_a, L_b)",
    "B_max": "largest loss along the line; not zero without a barrier",
    "accuracy barrier [95 %]": "max over alpha of (1 - alpha) A_a + alpha A_b - A(w(alpha)), a share of the targets",
    "distance": "||w_a - w_b|| over all parameters",
}


def _pair_row(pair: BarrierResult) -> dict[str, str]:
    row = {
        "pair": f"{pair.a} - {pair.b}",
        "B_lin [95 %]": interval(pair.linear),
        "at alpha": f"{pair.argmax:.2f}",
        "B_end [95 %]": interval(pair.end),
        "B_max": number(pair.max.value),
    }
    if pair.accuracy_barrier is not None:
        row["accuracy barrier [95 %]"] = interval(pair.accuracy_barrier)
    return row | {"distance": number(pair.distance)}


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

    name: str
    step: int | None
    line: BarrierResult
    curve: BarrierResult
    length: float
    distance: float
    training: Array
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()
    bend: dict[str, Any] | None = None

    def __repr__(self) -> str:
        values = f"{number(self.line.linear.value)} to {number(self.curve.linear.value)}"
        return f"<CurveResult {self.line.a!r} to {self.line.b!r}: linear barrier from {values}>"

    def stored(self) -> CurveResult:
        """Without the bend, which is as large as the model."""
        import dataclasses

        return dataclasses.replace(self, bend=None)

    @property
    def flags(self) -> tuple[str, ...]:
        """Everything to beware of, in words."""
        own = told(self.meta, self.notes)
        lines = {flag: f"line: {flag}" for flag in self.line.flags if flag not in own}
        curves = {flag: f"curve: {flag}" for flag in self.curve.flags if flag not in own}
        both = [flag for flag in lines if flag in curves]
        single = [words for table in (lines, curves) for flag, words in table.items() if flag not in both]
        done, wanted, reason = len(self.training), self.meta["settings"]["steps"], self.meta["stop_reason"]
        short = (
            [f"the bend was trained for {done} of {wanted} steps ({reason})"] if done < wanted and reason != "complete" else []
        )
        return (*own, *short, *both, *single)

    def section(self) -> Section:
        """See :class:`Document`."""
        curve, line = self.curve, self.line
        rows = [
            Quantity("B_lin, curve", interval(curve.linear), f"above the chord of the ends, at t = {curve.argmax:.3g}. {_BAND}"),
            Quantity("B_lin, line", interval(line.linear), f"along the straight line, at alpha = {line.argmax:.3g}"),
            Quantity("max, curve", interval(curve.max), "largest loss along the curve"),
            Quantity("max, line", interval(line.max), "largest loss along the straight line"),
        ]
        if curve.accuracy_barrier is not None:
            rows.append(Quantity("accuracy barrier, curve", interval(curve.accuracy_barrier), "below the chord of the ends"))
            rows.append(Quantity("accuracy barrier, line", interval(line.accuracy_barrier), "along the straight line"))
        rows.append(Quantity("length", f"{number(self.length, 4)} ({number(self.distance, 4)})", "of the curve (of the line)"))
        shown = [
            Figure(
                "Loss along curve and line",
                lambda ax: figures.both_lines(self, ax),
                "Mean loss along (1 - t)^2 a + 2 t (1 - t) theta + t^2 b and along the straight line, 95 % bands over samples. "
                f"Batch norm: {BATCH_NORM[curve.batch_norm]}.",
            ),
            Figure(
                "Training of the bend",
                lambda ax: figures.training(self, ax),
                "Loss of a batch at a random t, one dot a step, and its running mean.",
            ),
        ]
        return Section(
            f"Bezier curve: {line.a} to {line.b}",
            self._verdict(),
            tuple(rows),
            tuple(shown),
            flags=self.flags,
            settings=_settings(self.meta),
        )

    def _verdict(self) -> str:
        line, curve = self.line.linear.value, self.curve.linear.value
        if not (math.isfinite(line) and math.isfinite(curve)):
            return "No curve: a loss along the path is not finite."
        text = f"The curve has a barrier of {number(curve)}, the straight line one of {number(line)}"
        ratio = self.length / self.distance if self.distance else 1.0
        return f"{text}; it is {number(ratio)} times as long."

    def plot(self, ax: Axes | None = None) -> Axes:
        """Curve and line beside each other (needs matplotlib)."""
        return figures.both_lines(self, ax)
