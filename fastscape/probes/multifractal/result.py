"""Results of multifractal probes: frozen, saved as plain arrays, analysed again without the model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastscape._checks import one_line
from fastscape.evaluation.noise import passes_gate
from fastscape.numerics.arrays import Array, Shapes
from fastscape.probes.multifractal.analyse import analyse
from fastscape.probes.multifractal.description import Analysis, AnalysisSettings
from fastscape.probes.multifractal.flags import analysis_flags
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.probes.multifractal.trust import Trust
from fastscape.reports import storage
from fastscape.reports.document import Along, Document
from fastscape.runs.provenance import Provenance, remarks_and_notes

STOPPED = "the analysis was stopped; run result.reanalyse() or fastscape report to compute it from the saved evaluations"

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """Evaluations of a probe at one checkpoint; everything an analysis needs.

    Attributes:
        even, odd: signed responses ``[banks, K, N]``; columns beyond a bank's count are NaN.
        counts: directions per bank ``[banks]``.
        batches: batch of each bank ``[banks]`` (all 0 where banks share the data).
        base: L(w) per bank ``[banks]``.
        radii: in units of ||d|| ``[K]``.
        eps_abs, eps_rel: distances, and distances relative to ||w|| ``[K]``.
        weight_norm: ||w||.
        noise: RMS rounding error of ``even`` ``[K]``.
        calibrated: the noise gate's verdict on even and odd responses from a float64 calibration ``[2, K]``; ``None`` where
            the responses themselves are compared with the noise.
    """

    shapes: ClassVar[Shapes] = {
        "even": "BANKS K N",
        "odd": "BANKS K N",
        "counts": "BANKS",
        "batches": "BANKS",
        "base": "BANKS",
        "radii": "K",
        "eps_abs": "K",
        "eps_rel": "K",
        "noise": "K",
        "calibrated": "2 K",
    }
    even: Array
    odd: Array
    counts: Ints
    batches: Ints
    base: Array
    radii: Array
    eps_abs: Array
    eps_rel: Array
    weight_norm: float
    noise: Array
    calibrated: Bools | None
    __repr__ = one_line

    def response(self, variant: str) -> list[Array]:
        """Signed responses ``[K, count]`` of every bank that has directions."""
        values = self.even if variant == "even" else self.odd
        return [values[bank, :, :count] for bank, count in enumerate(self.counts) if count]

    def analyse(self, settings: AnalysisSettings) -> Analysis:
        """The analysis of what was measured."""
        response = self.response(settings.variant)
        if self.counts.sum() < 2:  # a measure over one direction is the number 1
            return self.unanalysed(settings, "fewer than two directions were evaluated before the run ended")
        if self.calibrated is not None:
            gate = self.calibrated[0 if settings.variant == "even" else 1]
        else:
            gate = passes_gate(np.concatenate(response, axis=1), self.noise)
        used = [int(batch) for batch, count in zip(self.batches, self.counts, strict=True) if count]
        return analyse(response, self.radii, batches=used, above_noise=gate, settings=settings)

    def unanalysed(self, settings: AnalysisSettings, reason: str) -> Analysis:
        """An analysis without numbers."""
        none = np.zeros(len(self.radii), dtype=np.bool_)
        flags = analysis_flags(Trust(~none, ~none, ~none), self.radii, (), (), int(self.counts.sum()))
        return Analysis(False, reason, settings, Trust(none, none, none), flags=flags)


@dataclass(frozen=True, repr=False)
class MultifractalResult(Document):
    """The multifractal description of one checkpoint, with what it was computed from.

    Attributes:
        name, step: of the checkpoint; step is ``None`` where its name has no number.
        loss, accuracy: on the data; accuracy is ``None`` where the task is not classification.
        measured: signed responses, scales and noise.
        analysis: exponents, scalars, intervals and flags.
        probe: settings of the evaluation.
        meta: seed, versions, device, fingerprints, precision, path, evaluations, seconds, stop reason.
        notes: flags of the evaluation, in words.
    """

    kind: ClassVar[str] = "multifractal"
    companions: ClassVar[frozenset[str]] = frozenset({"spectrum", "spectra"})

    name: str
    step: int | None
    loss: float
    accuracy: float | None
    measured: Measured
    analysis: Analysis
    probe: ProbeSettings
    meta: Provenance
    notes: tuple[str, ...] = ()

    @property
    def directions(self) -> int:
        """Directions evaluated, over all banks."""
        return int(self.measured.counts.sum())

    @property
    def analysed(self) -> bool:
        """Whether the analysis was made; false where Ctrl-C stopped it: run :meth:`reanalyse`."""
        return self.analysis.reason != STOPPED

    @property
    def decades(self) -> float:
        """Decades of scale in the (first) analysed window; NaN without one."""
        if not self.analysis.windows:
            return float("nan")
        start, stop = self.analysis.windows[0]
        return float(np.log10(self.measured.radii[stop - 1] / self.measured.radii[start]))

    @property
    def flags(self) -> tuple[str, ...]:
        """Every flag raised, of the evaluation and of the analysis, in words."""
        reason = () if self.analysis.valid else (f"no multifractal numbers: {self.analysis.reason}",)
        return (*remarks_and_notes(self.meta, self.notes), *reason, *self.analysis.flags)

    def reanalyse(self, **changes: Any) -> MultifractalResult:
        """The same measurements under other :class:`AnalysisSettings` fields; no model is needed.

        Example: ``result.reanalyse(windows=((4, 10),), q=(-1, 1, 2, 3))``.
        """
        settings = dataclasses.replace(self.analysis.settings, **changes)
        return dataclasses.replace(self, analysis=self.measured.analyse(settings))

    def data(self) -> dict[str, Any]:
        """See :class:`Document`; without raw responses and single banks, which the npz has."""
        analysis = dataclasses.replace(self.analysis, banks=())
        empty = np.empty(0)
        measured = dataclasses.replace(self.measured, even=empty, odd=empty)
        content: dict[str, Any] = storage.plain(dataclasses.replace(self, analysis=analysis, measured=measured))
        del content["measured"]["even"], content["measured"]["odd"], content["analysis"]["banks"]
        return content


@dataclass(frozen=True, repr=False)
class TrajectoryResult(Along):
    """Multifractal results of several checkpoints along the same directions.

    Attributes:
        points: one result per checkpoint, in the order given.
        meta: of the run: seconds, budget, stop reason.
    """

    kind: ClassVar[str] = "trajectory"
    companions: ClassVar[frozenset[str]] = MultifractalResult.companions
    counted_by: ClassVar[str] = "direction"

    points: tuple[MultifractalResult, ...]
    meta: Provenance

    def series(self, name: str) -> tuple[Array, Array, Array]:
        """Value and lower and upper interval bound along the checkpoints, each ``[checkpoints]``.

        Args:
            name: an estimate (see :class:`fastscape.Analysis`), or ``loss``, ``accuracy``, ``weight_norm``, ``p_value`` (without
                bounds, NaN).
        """
        rows = []
        for point in self.points:
            estimate = point.analysis.estimates.get(name)
            if estimate is not None:
                rows.append((estimate.value, *estimate.interval))
                continue
            plain = {
                "loss": point.loss,
                "accuracy": point.accuracy,
                "weight_norm": point.measured.weight_norm,
                "p_value": point.analysis.p_value,
            }.get(name)
            rows.append((float("nan") if plain is None else plain, float("nan"), float("nan")))
        table = np.array(rows, dtype=np.float64).reshape(-1, 3)
        return table[:, 0], table[:, 1], table[:, 2]

    @property
    def analysed(self) -> bool:
        """Whether every checkpoint's analysis was made."""
        return all(point.analysed for point in self.points)

    def reanalyse(self, **changes: Any) -> TrajectoryResult:
        """Every checkpoint under other :class:`AnalysisSettings` fields."""
        return dataclasses.replace(self, points=tuple(point.reanalyse(**changes) for point in self.points))
