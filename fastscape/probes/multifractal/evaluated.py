"""Evaluations of one checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fastscape._clock import now
from fastscape.differences.evaluator import Handling
from fastscape.directions import Directions
from fastscape.evaluation.arithmetic import measured_in
from fastscape.evaluation.trial import PathChoice
from fastscape.numerics.arrays import Array
from fastscape.objective.objective import Objective
from fastscape.objective.sharding import whole
from fastscape.probes.multifractal.columns import Columns
from fastscape.probes.multifractal.description import AnalysisSettings
from fastscape.probes.multifractal.result import STOPPED, Measured, MultifractalResult
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.probes.multifractal.units import settings_of
from fastscape.response.precision import Noise, PrecisionChoice, way_of
from fastscape.response.responses import relative, warn_if_noise
from fastscape.runs.plan import Plan, differences, identity, other_loss, plain_data, versions
from fastscape.runs.provenance import Provenance, statistics_meta


class Track:
    """Responses, noise and provenance of one checkpoint, growing block by block."""

    def __init__(self, name: str, step: int | None, probe: ProbeSettings, limit: int | None) -> None:
        self.name, self.step, self.probe, self.limit = name, step, probe, limit
        self.plan: Plan | None = None
        self.chosen: PrecisionChoice | None = None
        self.opened: set[int] = set()
        self.evaluations, self.seconds = 0, 0.0
        self.loss = float("nan")
        self.accuracy: float | None = None
        self.weight_norm = float("nan")
        self.radii: Array = probe.grid(1.0)
        self.eps_abs: Array = np.full(len(self.radii), np.nan)
        self.noise: Array = np.zeros(len(self.radii))
        self.calibrated: np.ndarray[Any, np.dtype[np.bool_]] | None = None
        self.meta: dict[str, Any] = {}
        self.notes: list[str] = []
        self.columns = [Columns(len(self.radii)) for _ in range(probe.banks)]
        self._batches = 1
        self._why_still = "does loss= use the model it is given?"

    @property
    def precision(self) -> str | None:
        """The arithmetic, once it is chosen."""
        return self.probe.precision if self.chosen is None else self.chosen.name

    @property
    def counts(self) -> list[int]:
        """Directions per bank in the result: of a whole last block, those that were asked for."""
        limits = (math.inf if self.limit is None else max(self.limit, bank.kept) for bank in self.columns)
        return [int(min(bank.count, limit)) for bank, limit in zip(self.columns, limits, strict=True)]

    @property
    def least(self) -> int:
        """Directions that every bank has, beyond what was asked for too."""
        return min(bank.count for bank in self.columns)

    @property
    def directions(self) -> int:
        """Directions over all banks."""
        return sum(self.counts)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time spent inside to this checkpoint's seconds."""
        start = now()
        try:
            yield
        finally:
            self.seconds += now() - start

    def open(
        self, batch: int, objective: Objective, directions: Directions, radii: Array, noise: Noise, path: PathChoice
    ) -> None:
        """Record what is known after the first visit to one batch of the checkpoint."""
        self.opened.add(batch)
        self.noise = np.fmax(self.noise, noise.sigma)
        if noise.calibrated is not None:
            warn_if_noise(str(self.precision), radii, noise.calibrated[0])
            self.calibrated = noise.calibrated if self.calibrated is None else self.calibrated & noise.calibrated
        if not self.meta:
            self._first(objective, directions, radii, noise, path)
        self._keep(batch, objective, noise, path)

    def _keep(self, batch: int, objective: Objective, noise: Noise, path: PathChoice) -> None:
        """Add what was chosen to the plan, unless the plan has chosen it."""
        assert self.chosen is not None
        if self.plan is None:
            self.plan = Plan.made(objective, settings_of(self.probe), self.radii, self.loss)
        if self.plan.way(batch) is None:
            self.plan = self.plan.having(way_of(batch, self.chosen, path, noise))
        else:
            self._note_versions()
        self.meta["plan"] = self.plan.to_dict()

    def _first(self, objective: Objective, directions: Directions, radii: Array, noise: Noise, path: PathChoice) -> None:
        """Record what is the same for all batches."""
        self.describe(objective)
        self.meta |= {"path": plain_data(path), "skipped_fraction": directions.skipped_fraction}
        self.meta["precision_reason"] = self.chosen.reason if self.chosen is not None else ""
        self.radii, self.weight_norm = radii, directions.weight_norm
        self.eps_abs = radii * (1.0 if directions.scale == "unit" else directions.weight_norm)
        self.loss, self.accuracy = objective.evaluate_once()
        self.meta["remarks"] = list(objective.remarks)
        self._batches = len(objective.batches) if self.probe.bank_batches == "rotate" else 1
        arithmetic = measured_in(objective, str(self.precision))
        self.meta |= arithmetic.meta
        if noise.influence is not None and not noise.influence.flat:
            self._why_still = _LEFT_OUT
        self.notes += [*_weight_notes(objective), *arithmetic.notes, *noise.notes]
        if noise.how:
            self.notes.append(noise.how)
        if noise.narrow:
            self.notes.append(f"the model computes in lower precision inside ({noise.narrow}): its rounding sets the noise")

    def describe(self, objective: Objective) -> None:
        """Record the provenance of a checkpoint, evaluated or not."""
        self.weight_norm = objective.norm
        self.meta = identity(objective) | {
            "precision": self.precision,
            **statistics_meta(objective),
            "model": type(objective.model).__name__,
            "parameters": objective.size,
            "samples": objective.samples,
            "batches": len(objective.batches),
            "device": str(objective.device),
            "skipped_fraction": None,
            "path": {"name": "none", "chunk": 0, "seconds": {}, "reason": "not evaluated before the run ended"},
        }

    def handle(self, handling: Handling) -> None:
        """Note what difference propagation could not follow by its rules."""
        if handling.fallbacks:
            self.note(f"operations without a difference rule were evaluated in float64: {', '.join(handling.fallbacks)}")
        if handling.frozen:
            self.note(f"the forward decides by values that depend on the weights; taken as at w: {', '.join(handling.frozen)}")
            self.calibrated = np.zeros((2, len(self.radii)), dtype=np.bool_)  # nothing is trusted

    def note(self, words: str) -> None:
        """Add a flag, once."""
        if words and words not in self.notes:
            self.notes.append(words)

    def measured(self) -> Measured:
        """The arrays of a result; banks of different length are padded with NaN."""
        counts = self.counts
        shape = (self.probe.banks, len(self.radii), max(1, *counts))
        even, odd = np.full(shape, np.nan), np.full(shape, np.nan)
        for bank, (columns, count) in enumerate(zip(self.columns, counts, strict=True)):
            even[bank, :, :count], odd[bank, :, :count] = (part[:, :count] for part in columns.arrays())
        return Measured(
            even=even,
            odd=odd,
            counts=np.array(counts, dtype=np.int64),
            batches=np.arange(self.probe.banks, dtype=np.int64) % self._batches,
            base=np.array([columns.base for columns in self.columns]),
            radii=self.radii,
            eps_abs=self.eps_abs,
            eps_rel=relative(self.eps_abs, self.weight_norm),
            weight_norm=self.weight_norm,
            noise=self.noise,
            calibrated=self.calibrated,
        )

    def result(self, settings: AnalysisSettings, reason: str, *, analysed: bool) -> MultifractalResult:
        """Result of the evaluations so far, with its analysis unless that was stopped."""
        measured = self.measured()
        analysis = measured.analyse(settings) if analysed else measured.unanalysed(settings, STOPPED)
        notes = list(self.notes)
        responses = measured.response("even") + measured.response("odd")
        if responses and not any(np.any(part != 0) for part in responses):
            notes.append(f"the loss did not change under any perturbation: {self._why_still}")
        if reason not in ("all directions done", "target met", "deadline"):
            notes.append(f"partial result: {reason}")
        meta = self.meta | {"evaluations": self.evaluations, "seconds": self.seconds, "law": self.probe.law}
        return MultifractalResult(
            self.name,
            self.step,
            self.loss,
            self.accuracy,
            measured,
            analysis,
            self.probe,
            Provenance(meta),
            tuple(notes),
        )

    def bare(self, settings: AnalysisSettings) -> MultifractalResult:
        """What was found out before any direction, as a result without one."""
        found = self.result(settings, "deadline", analysed=False)
        banks, empty = self.probe.banks, np.full((self.probe.banks, len(self.radii), 1), np.nan)
        none, base = np.zeros(banks, dtype=np.int64), np.full(banks, np.nan)
        measured = replace(found.measured, even=empty, odd=empty, counts=none, base=base)
        return replace(found, measured=measured, notes=tuple(self.notes), meta=found.meta | {"limit": self.limit})

    def check(self, earlier: MultifractalResult, objective: Objective, what: str) -> None:
        """Refuse an earlier result, ``what`` in words, that measured something else.

        Raises:
            ValueError: naming what differs.
        """
        found = identity(objective) | {"precision": self.precision, "settings": settings_of(self.probe)}
        then = earlier.meta | {"settings": settings_of(earlier.probe)}
        different = differences(then, found)
        if not different and other_loss(earlier.loss, objective.loss()):
            different = ["loss function"]
        if different:
            raise ValueError(f"{what} of the same run of {self.name}, got other {', '.join(different)}; start a new result")

    def adopt(self, earlier: MultifractalResult) -> None:
        """Continue an earlier result."""
        measured = earlier.measured
        for bank, count in enumerate(measured.counts):
            if count:
                even, odd = (part[bank, :, :count] for part in (measured.even, measured.odd))
                self.columns[bank].keep(even, odd, float(measured.base[bank]))
        self.plan = Plan.of(earlier.meta["plan"]) if earlier.meta.get("plan") else None
        self._batches = int(measured.batches.max()) + 1
        self.opened = set(measured.batches[measured.counts > 0].tolist())
        if self.plan is not None:
            self.opened |= {way.group for way in self.plan.ways}
        self.radii, self.eps_abs, self.weight_norm = measured.radii, measured.eps_abs, measured.weight_norm
        self.noise, self.calibrated = measured.noise, measured.calibrated
        self.loss, self.accuracy, self.meta = earlier.loss, earlier.accuracy, dict(earlier.meta)
        self.meta.pop("limit", None)
        self.notes = [note for note in earlier.notes if not note.startswith("partial result")]
        self.evaluations, self.seconds = earlier.meta["evaluations"], earlier.meta["seconds"]
        self._note_versions()

    def _note_versions(self) -> None:
        if self.plan is not None and self.plan.versions != versions():
            then = ", ".join(f"{name} {value}" for name, value in self.plan.versions.items())
            self.note(f"the plan was made with {then}: the last bits may be others here")


_LEFT_OUT = (
    "the directions move only what cannot move it at these weights; normalize='global' moves tensors of zeros too, and after "
    "some steps of training they are none"
)


def _weight_notes(objective: Objective) -> list[str]:
    broken = [name for name, tensor in objective.base.items() if not bool(torch.isfinite(whole(tensor)).all())]
    if not broken:
        return []
    return [f"weights hold NaN or inf in {', '.join(broken[:3])}{' and more' if len(broken) > 3 else ''}"]
