"""Losses of points from what a path finds of their batches and samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastscape.evaluation.points import Array
from fastscape.evaluation.surface.paths import Raw
from fastscape.evaluation.surface.sample_losses import SampleLosses, standard_errors
from fastscape.objective.definition import Definition
from fastscape.objective.objective import Objective


@dataclass(frozen=True)
class SurfaceLosses:
    """Losses at P points.

    Attributes:
        losses: sample-weighted means, float64 ``[P]``; NaN and inf are results.
        stderr: their standard errors over samples, or over batches where samples are not known, ``[P]``; NaN where unknown.
        accuracy: share of correct classifications ``[P]``; ``None`` where the task is not classification.
        samples: losses of single samples ``[P, N]``, where they were asked for and are known.
        weights: of the samples ``[N]``, where they are known.
        batches: mean losses of the batches ``[P, batches]``.
        hits: share of correct classifications of every sample ``[P, N]``, where samples were asked for and points are
            evaluated one by one; ``None`` without classes.
    """

    losses: Array
    stderr: Array
    accuracy: Array | None
    samples: Array | None
    weights: Array | None
    batches: Array
    hits: Array | None = None


def total(objective: Definition, raw: Raw) -> Array:
    """Losses ``[p]``, with the batches in the order and arithmetic of ``objective.loss``."""
    found = np.zeros(len(raw.batches))
    with np.errstate(invalid="ignore", over="ignore"):
        for index, weight in enumerate(objective.batch_weights):
            found += weight * raw.batches[:, index]
    return found / objective.samples


def reduced(objective: Objective, terms: SampleLosses, raw: Raw, *, hits: bool) -> SurfaceLosses:
    """Losses of points with what is known of their samples; ``weights`` are for the caller to add."""
    parts = raw.batches if raw.samples is None else raw.samples
    return SurfaceLosses(
        losses=total(objective, raw),
        stderr=standard_errors(parts, terms.weights),
        accuracy=None if raw.correct is None else raw.correct / terms.targets,
        samples=raw.samples,
        weights=None,
        batches=raw.batches,
        hits=None if raw.hits is None or not hits else raw.hits / np.maximum(terms.counts(), 1),
    )
