"""The result of a study: every run with its signatures, the barriers between seeds, and the tables made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Self

import numpy as np

from fastscape.numerics.arrays import Array, Shapes
from fastscape.numerics.estimate import Estimate
from fastscape.probes.barriers.result import BarrierMatrix
from fastscape.probes.signature.association import Association, association
from fastscape.probes.signature.result import Signature
from fastscape.reports.document import Document
from fastscape.runs.provenance import Provenance
from fastscape.study.claims import Claim, claims
from fastscape.study.seeds import geometric, pairs
from fastscape.study.training import TrainingOutcome

EARLY = ("mean_curvature", "lambda_max", "roughness_detrended")  # the source's early signals, section 6.1
OUTCOMES = {"test_loss": "test loss", "train_loss": "training loss", "halved": "share of training until the loss has halved"}


@dataclass(frozen=True, repr=False)
class RunResult(Document):
    """One training run of one architecture.

    Attributes:
        name: ``"MLP, seed 0"``.
        step: planned steps.
        architecture, seed: which.
        size: D, parameters.
        early_step: at which the early signature was taken.
        outcome: what became of the training.
        losses: of every minibatch ``[steps]``.
        early, final: signatures at the early step and at the end.
        parts: single results by name, such as ``"final.spectrum"``; those behind the signatures and the record of the tracker.
        meta: seconds and settings.
        notes: what could not be measured, in words.
        running: ``"early"`` and ``"final"`` by the running statistics of batch norm, where the network keeps them; ``early`` and
            ``final`` are of the function that was trained.
    """

    kind: ClassVar[str] = "study-run"

    shapes: ClassVar[Shapes] = {"losses": "*"}
    name: str
    step: int | None
    architecture: str
    seed: int
    size: int
    early_step: int
    outcome: TrainingOutcome
    losses: Array
    early: Signature
    final: Signature
    parts: dict[str, Annotated[Any, Document]]
    meta: Provenance
    notes: tuple[str, ...] = ()
    running: dict[str, Signature] = field(default_factory=dict)

    def stored(self) -> Self:
        """The run without eigenvectors."""
        return dataclasses.replace(self, parts={name: part.stored() for name, part in self.parts.items()})


@dataclass(frozen=True, repr=False)
class StudyResult(Document):
    """Several architectures, several seeds of each.

    Attributes:
        name: ``"quick"`` or ``"full"``.
        plan: what was trained and probed, in words, by architecture, and the settings.
        runs: in the order of architectures and seeds.
        barriers: between the final states of an architecture's seeds, by architecture.
        meta: seconds, stop reason, versions.
        notes: what is missing, in words.
    """

    kind: ClassVar[str] = "study"

    name: str
    step: int | None
    plan: dict[str, Any]
    runs: tuple[RunResult, ...]
    barriers: dict[str, BarrierMatrix]
    meta: Provenance
    notes: tuple[str, ...] = ()

    def stored(self) -> Self:
        """The study without eigenvectors."""
        return dataclasses.replace(self, runs=tuple(run.stored() for run in self.runs))

    @property
    def architectures(self) -> tuple[str, ...]:
        """Names of the architectures that have runs, in order."""
        return tuple(dict.fromkeys(run.architecture for run in self.runs))

    def of(self, architecture: str) -> tuple[RunResult, ...]:
        """Runs of an architecture."""
        return tuple(run for run in self.runs if run.architecture == architecture)

    def values(self, quantity: str, when: str = "early", *, running: bool = False) -> dict[str, Array]:
        """One number per seed of a field of the signatures, by architecture; NaN where it is missing.

        Args:
            quantity: a field of :class:`Signature`.
            when: ``"early"`` or ``"final"``.
            running: by running statistics of batch norm, for the architectures that have them, in place of those of each batch.
        """
        return {
            name: np.array([_value(getattr(signature, quantity)) for signature in signatures])
            for name in self.architectures
            if (signatures := self.signatures(name, when, running=running))
        }

    def signatures(self, architecture: str, when: str = "early", *, running: bool = False) -> tuple[Signature, ...]:
        """Signatures of an architecture's runs; see :meth:`values`."""
        runs = self.of(architecture)
        if running:
            return tuple(run.running[when] for run in runs if when in run.running)
        return tuple(getattr(run, when) for run in runs)

    def across(self, quantity: str, when: str = "early", *, running: bool = False) -> dict[str, Estimate]:
        """Geometric mean over seeds with its interval (:func:`fastscape.study.seeds.geometric`), by architecture."""
        return {name: geometric(values.tolist()) for name, values in self.values(quantity, when, running=running).items()}

    def outcomes(self, name: str) -> Array:
        """One field of the outcomes, run by run."""
        return np.array([_value(getattr(run.outcome, name)) for run in self.runs])

    def associations(self) -> tuple[Association, ...]:
        """Hypothesis H5: rank correlations of early signals with outcomes over all runs, within architectures."""
        groups = [run.architecture for run in self.runs]
        found = []
        for early in EARLY:
            x = np.array([_value(getattr(run.early, early)) for run in self.runs])
            found += [association(x, self.outcomes(name), groups, names=(early, words)) for name, words in OUTCOMES.items()]
        return tuple(found)

    def claims(self) -> tuple[Claim, ...]:
        """The source's claims against these runs, by the function that was trained; by running statistics in the evidence."""
        early = {name: self.values(name) for name in ("trace", "lambda_max", "roughness_detrended")}
        beside = {name: self.values(name, running=True) for name in early}
        beside["roughness_worst"] = self.values("roughness_worst", "final", running=True)
        rest: dict[str, Mapping[str, Array]] = {
            "resolved": self._per_run(_resolved),
            "roughness_worst": self.values("roughness_worst", "final"),
            "normalized_sharpness": self.values("normalized_sharpness", "final"),
            "normalized_sharpness_bound": self._per_run(_sharpness_bound),
            "difficulty": self._per_run(_difficulty),
            "barrier": {name: pairs(matrix.linear) for name, matrix in self.barriers.items()},
            "barrier_max": {name: pairs(matrix.max) for name, matrix in self.barriers.items()},
        }
        return claims(early | rest, self.plan["epsilon"], beside)

    def _per_run(self, number: Any) -> dict[str, Array]:
        return {name: np.array([number(run) for run in self.of(name)]) for name in self.architectures}


def _value(found: Estimate | float | None) -> float:
    if found is None:
        return float("nan")
    return found.value if isinstance(found, Estimate) else float(found)


def _resolved(run: RunResult) -> float:
    """1 where the two largest eigenvalues at the end are further apart than their residuals, 0 where not."""
    spectrum = run.parts.get("final.spectrum")
    return float("nan") if spectrum is None or len(spectrum.eigenvalues) < 2 else float(spectrum.gap.resolved)


def _sharpness_bound(run: RunResult) -> float:
    found = run.final.normalized_sharpness
    return float("nan") if found is None else found.interval[1]


def _difficulty(run: RunResult) -> float:
    found = run.parts.get("difficulty")
    return float("nan") if found is None else float(found.dimensionless)
