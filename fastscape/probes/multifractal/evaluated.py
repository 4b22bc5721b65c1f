"""Evaluations of one checkpoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
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
from fastscape.probes.multifractal.description import AnalysisSettings
from fastscape.probes.multifractal.result import STOPPED, Measured, MultifractalResult
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.response.precision import Noise, PrecisionChoice
from fastscape.response.responses import relative, warn_if_noise
from fastscape.runs.provenance import Provenance, statistics_meta


class Track:
    """Responses, noise and provenance of one checkpoint, growing block by block."""

    def __init__(self, name: str, step: int | None, probe: ProbeSettings) -> None:
        self.name, self.step, self.probe = name, step, probe
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
        self._columns: list[list[tuple[Array, Array]]] = [[] for _ in range(probe.banks)]
        self._base = np.full(probe.banks, np.nan)
        self._batches = 1
        self._why_still = "does loss= use the model it is given?"

    @property
    def precision(self) -> str | None:
        """The arithmetic, once it is chosen."""
        return self.probe.precision if self.chosen is None else self.chosen.name

    @property
    def counts(self) -> list[int]:
        """Directions per bank."""
        return [sum(even.shape[1] for even, _ in columns) for columns in self._columns]

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
        if self.meta:
            return
        self.describe(objective)
        self.meta |= {"path": dataclasses.asdict(path), "skipped_fraction": directions.skipped_fraction}
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
        self.notes = [*_weight_notes(objective), *arithmetic.notes, *noise.notes]
        if noise.how:
            self.notes.append(noise.how)
        if noise.narrow:
            self.notes.append(f"the model computes in lower precision inside ({noise.narrow}): its rounding sets the noise")

    def describe(self, objective: Objective) -> None:
        """Record the provenance of a checkpoint, evaluated or not."""
        self.weight_norm = objective.norm
        self.meta = _identity(objective, self.precision) | {
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
            self._note(f"operations without a difference rule were evaluated in float64: {', '.join(handling.fallbacks)}")
        if handling.frozen:
            self._note(f"the forward decides by values that depend on the weights; taken as at w: {', '.join(handling.frozen)}")
            self.calibrated = np.zeros((2, len(self.radii)), dtype=np.bool_)  # nothing is trusted

    def _note(self, words: str) -> None:
        if words not in self.notes:
            self.notes.append(words)

    def add(self, bank: int, even: Array, odd: Array, base: Array) -> None:
        """Append the responses ``[K, n]`` of a block of directions."""
        self._columns[bank].append((even, odd))
        if math.isnan(self._base[bank]):
            self._base[bank] = base[0]

    def measured(self) -> Measured:
        """The arrays of a result; banks of different length are padded with NaN."""
        counts = self.counts
        shape = (self.probe.banks, len(self.radii), max(1, *counts))
        even, odd = np.full(shape, np.nan), np.full(shape, np.nan)
        for bank, columns in enumerate(self._columns):
            if columns:
                even[bank, :, : counts[bank]] = np.concatenate([column[0] for column in columns], axis=1)
                odd[bank, :, : counts[bank]] = np.concatenate([column[1] for column in columns], axis=1)
        return Measured(
            even=even,
            odd=odd,
            counts=np.array(counts, dtype=np.int64),
            batches=np.arange(self.probe.banks, dtype=np.int64) % self._batches,
            base=self._base.copy(),
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
        meta = self.meta | {"evaluations": self.evaluations, "seconds": self.seconds}
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

    def restore(self, earlier: MultifractalResult, objective: Objective) -> None:
        """Continue an earlier result, after checking that it measured the same thing.

        Raises:
            ValueError: naming what differs.
        """
        now = _identity(objective, self.precision) | {"settings": _comparable(self.probe)}
        then = earlier.meta | {"settings": _comparable(earlier.probe)}
        different = [name for name, value in now.items() if then.get(name) != value]
        if not different and not math.isclose(objective.loss(), earlier.loss, rel_tol=1e-5) and not math.isnan(earlier.loss):
            different = ["loss function"]
        if different:
            raise ValueError(
                f"extend must be a result of the same run of {self.name}, got other "
                f"{', '.join(_WORDS.get(name, name) for name in different)}; start a new result"
            )
        measured = earlier.measured
        for bank, count in enumerate(measured.counts):
            if count:
                self._columns[bank].append((measured.even[bank, :, :count], measured.odd[bank, :, :count]))
        self._base = measured.base.copy()
        self._batches = int(measured.batches.max()) + 1
        self.opened = set(measured.batches[measured.counts > 0].tolist())
        self.radii, self.eps_abs, self.weight_norm = measured.radii, measured.eps_abs, measured.weight_norm
        self.noise, self.calibrated = measured.noise, measured.calibrated
        self.loss, self.accuracy, self.meta = earlier.loss, earlier.accuracy, dict(earlier.meta)
        self.notes = [note for note in earlier.notes if not note.startswith("partial result")]
        self.evaluations, self.seconds = earlier.meta["evaluations"], earlier.meta["seconds"]


_LEFT_OUT = (
    "the directions move only what cannot move it at these weights; normalize='global' moves tensors of zeros too, and after "
    "some steps of training they are none"
)


def _comparable(probe: ProbeSettings) -> ProbeSettings:
    """Settings that two runs must share; of the precision, the one that was used is compared."""
    return dataclasses.replace(probe, count=None, precision=None)


def _weight_notes(objective: Objective) -> list[str]:
    broken = [name for name, tensor in objective.base.items() if not bool(torch.isfinite(whole(tensor)).all())]
    if not broken:
        return []
    return [f"weights hold NaN or inf in {', '.join(broken[:3])}{' and more' if len(broken) > 3 else ''}"]


_WORDS = {
    "weight_fingerprint": "weights",
    "data_fingerprint": "data",
    "names": "parameters",
    "batch_weights": "batch weights",
    "batch_norm": "batch_norm",
    "dtype": "dtype",
}


def _identity(objective: Objective, precision: str | None) -> dict[str, Any]:
    """Identity of a measurement: everything that ``extend`` compares."""
    return {
        "weight_fingerprint": objective.weight_fingerprint(),
        "data_fingerprint": objective.data_fingerprint(),
        "names": list(objective.names),
        "batch_weights": list(objective.batch_weights),
        "batch_norm": objective.batch_norm,
        "dtype": str(objective.dtype),
        "precision": precision,
    }
