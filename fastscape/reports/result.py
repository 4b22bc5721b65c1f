"""Results of multifractal probes: frozen, saved as plain arrays, analysed again without the model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType

from fastscape._checks import counted, one_line
from fastscape.estimators import Analysis, AnalysisSettings, analyse
from fastscape.estimators.flags import analysis_flags
from fastscape.estimators.scaling import Array
from fastscape.estimators.trust import Trust
from fastscape.evaluation.noise import passes_gate
from fastscape.reports import batch_norm, figures, leads, storage, tables
from fastscape.reports.document import Document
from fastscape.reports.sections import led
from fastscape.reports.spectrum import SpectrumResult, SpectrumTrajectory
from fastscape.runs.provenance import told
from fastscape.runs.settings import ProbeSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STOPPED = "the analysis was stopped; result.reanalyse() and fastscape report make it up from the evaluations"

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """What a probe evaluated at one checkpoint; everything an analysis needs.

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


@dataclass(frozen=True)
class MultifractalResult:
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

    name: str
    step: int | None
    loss: float
    accuracy: float | None
    measured: Measured
    analysis: Analysis
    probe: ProbeSettings
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<MultifractalResult {self.name!r}: {tables.brief(self)}>"

    @property
    def directions(self) -> int:
        """Directions evaluated, over all banks."""
        return int(self.measured.counts.sum())

    @property
    def analysed(self) -> bool:
        """Whether the analysis was made; false where Ctrl-C left it out, and :meth:`reanalyse` makes it up."""
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
        return (*told(self.meta, self.notes), *reason, *self.analysis.flags)

    def reanalyse(self, **changes: Any) -> MultifractalResult:
        """The same measurements under other :class:`AnalysisSettings` fields; no model is needed.

        Example: ``result.reanalyse(windows=((4, 10),), q=(-1, 1, 2, 3))``.
        """
        settings = dataclasses.replace(self.analysis.settings, **changes)
        return dataclasses.replace(self, analysis=self.measured.analyse(settings))

    def save(self, path: str | Path) -> Path:
        """Write one npz file (plain arrays and a JSON string) and return its path."""
        return storage.save(path, self, "multifractal")

    def to_dict(self) -> dict[str, Any]:
        """Everything but raw responses and single banks (the npz has both) as JSON data, NaN and inf as ``None``."""
        analysis = dataclasses.replace(self.analysis, banks=())
        empty = np.empty(0)
        measured = dataclasses.replace(self.measured, even=empty, odd=empty)
        content: dict[str, Any] = storage.plain(dataclasses.replace(self, analysis=analysis, measured=measured))
        del content["measured"]["even"], content["measured"]["odd"], content["analysis"]["banks"]
        return content | {"leads": leads.multifractal_leads(self), "flags": list(self.flags), "verdict": self.verdict()}

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def verdict(self) -> str:
        """What was found, in one sentence."""
        return batch_norm.before(batch_norm.lead(self.meta), tables.verdict(self))

    def summary(self) -> str:
        """The table a person wants, as text."""
        return tables.as_text(self.table())

    def table(self, spectrum: SpectrumResult | None = None) -> RenderableType:
        """What a terminal shows; a ``spectrum`` of the same weights gives what is read first of it."""
        return led(batch_norm.lead(self.meta), tables.multifractal_table(self, spectrum))

    def __str__(self) -> str:
        return self.summary()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Log-response against the scale, with noise floor and trusted window (needs matplotlib)."""
        return figures.log_response(self, ax)


@dataclass(frozen=True)
class TrajectoryResult:
    """Multifractal results of several checkpoints along the same directions.

    Attributes:
        points: one result per checkpoint, in the order given.
        meta: of the run: seconds, budget, stop reason.
    """

    points: tuple[MultifractalResult, ...]
    meta: dict[str, Any]

    def __repr__(self) -> str:
        names = " .. ".join(repr(point.name) for point in (self.points[:1] + self.points[1:][-1:]))
        directions = sum(point.directions for point in self.points)
        return f"<TrajectoryResult {names}: {counted(len(self.points), 'checkpoint')}, {counted(directions, 'direction')}>"

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

    @property
    def steps(self) -> Array:
        """Training steps, or 0, 1, 2 ... where a checkpoint has none."""
        known = [point.step for point in self.points]
        return np.array(range(len(known)) if None in known else known, dtype=np.float64)

    def reanalyse(self, **changes: Any) -> TrajectoryResult:
        """Every checkpoint under other :class:`AnalysisSettings` fields."""
        return dataclasses.replace(self, points=tuple(point.reanalyse(**changes) for point in self.points))

    def save(self, path: str | Path) -> Path:
        """Write one npz file (plain arrays and a JSON string) and return its path."""
        return storage.save(path, self, "trajectory")

    def to_dict(self) -> dict[str, Any]:
        """Every checkpoint's :meth:`MultifractalResult.to_dict` and the run's ``meta``."""
        told = {"leads": leads.lead_rows(self), "flags": tables.trajectory_flags(self), "verdict": self.verdict()}
        return {"points": [point.to_dict() for point in self.points], "meta": storage.plain(self.meta)} | told

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def verdict(self) -> str:
        """What was found, in one sentence."""
        return batch_norm.before(self._lead, tables.trajectory_verdict(self))

    @property
    def _lead(self) -> str:
        return batch_norm.lead_along([(point.name, point.meta) for point in self.points])

    def summary(self) -> str:
        """The table a person wants, as text."""
        return tables.as_text(self.table())

    def table(self, spectrum: SpectrumResult | SpectrumTrajectory | None = None) -> RenderableType:
        """What a terminal shows; spectra of the same checkpoints give what is read first of them."""
        return led(self._lead, tables.trajectory_table(self, spectrum))

    def __str__(self) -> str:
        return self.summary()

    def plot(self, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
        """Panels along training: M_tau, c2, exponents, loss and accuracy (needs matplotlib)."""
        return figures.trajectory_panels(self, axes)


AnyResult = MultifractalResult | TrajectoryResult | SpectrumResult | SpectrumTrajectory | Document

storage.KINDS.update(
    multifractal=MultifractalResult, trajectory=TrajectoryResult, spectrum=SpectrumResult, spectra=SpectrumTrajectory
)


def load(path: str | Path) -> AnyResult:
    """Read a result written by ``.save``; no pickled objects are read.

    Raises:
        ValueError: not a result file, or a damaged one.
        FileNotFoundError: no such file.
    """
    result: AnyResult = storage.read(path)
    return result
