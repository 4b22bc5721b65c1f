"""Results of slices: losses along lines, and over a plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fastscape.numerics.arrays import Array, Shapes
from fastscape.numerics.estimate import Estimate
from fastscape.probes.slices.roughness import RESOLVED
from fastscape.reports.document import Document
from fastscape.runs.provenance import Provenance


@dataclass(frozen=True, repr=False)
class SliceResult(Document):
    r"""Losses :math:`L(w + \alpha v_i)` along n lines through the weights, and their roughness.

    Estimates are means over the n directions with 95 % intervals on a logarithmic scale (see
    :mod:`fastscape.numerics.positive`); of fewer than 8, or where the ends are a factor of 10 apart, none is shown.

    Attributes:
        name, step: of the checkpoint.
        loss: L(w).
        alphas: coordinates ``[A]``, symmetric about an exact 0.
        losses: ``[n, A]``; NaN and inf are results.
        stderr: standard errors over samples (or batches) of each loss ``[n, A]``; NaN where unknown.
        labels: what each direction is.
        eps_relative: relative change of the weights per unit of alpha, :math:`\|v_i\| / \|w\|`, ``[n]``.
        roughness: R, mean over directions of the variance of L over alpha.
        detrended, detrended4: the same about the best polynomial of degree 2 and 4.
        second_difference: mean square of the second derivative in alpha, from second differences of neighbours.
        minima: local minima inside the line that are deeper than 4 times the rounding.
        noise_floor: variance of one loss by rounding; roughness below it is not of the landscape.
        accuracy: ``[n, A]``; ``None`` where the task is not classification.
        meta: seed, settings, versions, device, fingerprints, path, evaluations, seconds, stop reason.
        notes: flags of the evaluation, in words.
    """

    kind: ClassVar[str] = "slice"
    shapes: ClassVar[Shapes] = {
        "alphas": "points",
        "losses": "lines points",
        "stderr": "lines points",
        "accuracy": "lines points",
        "labels": "lines",
        "eps_relative": "lines",
    }
    name: str
    step: int | None
    loss: float
    alphas: Array
    losses: Array
    stderr: Array
    labels: tuple[str, ...]
    eps_relative: Array
    roughness: Estimate
    detrended: Estimate
    detrended4: Estimate
    second_difference: Estimate
    minima: Estimate
    noise_floor: float
    accuracy: Array | None
    meta: Provenance
    notes: tuple[str, ...] = ()

    @property
    def resolved(self) -> bool:
        """Whether the detrended roughness is above the noise floor."""
        return self.detrended.value > RESOLVED * self.noise_floor


@dataclass(frozen=True, repr=False)
class PlaneResult(Document):
    r"""Losses :math:`L(w + \alpha_1 v_1 + \alpha_2 v_2)` over a plane through the weights.

    The first dimension of every grid belongs to ``alpha_1``, the second to ``alpha_2``.

    Attributes:
        name, step: of the checkpoint.
        loss: L(w).
        alpha_1, alpha_2: coordinates ``[A1]`` and ``[A2]``, each symmetric about an exact 0.
        losses, stderr: ``[A1, A2]``; rows that the budget left out are NaN (see ``evaluated``).
        evaluated: which rows ``[A1]`` were evaluated.
        labels: what v_1 and v_2 are.
        eps_relative: :math:`\|v_j\| / \|w\|`, ``[2]``.
        cosine: between v_1 and v_2 as they were evaluated; 0 up to rounding where they were made orthogonal.
        roughness: variance of L over the plane; ``detrended``, ``detrended4``: about the best polynomial of total degree 2, 4.
        minima: local minima inside the plane that are deeper than 4 times the rounding; -1 where the analysis failed.
        noise_floor: variance of one loss by rounding.
        trajectory: coordinates of checkpoints projected onto the plane ``[C, 2]``, or ``None``.
        residual: their distance from the plane relative to that from w ``[C]``.
        explained: share of the squared distances of the trajectory from w along each axis ``[2]``, for principal components.
        meta, notes: as for :class:`SliceResult`.
    """

    kind: ClassVar[str] = "plane"
    shapes: ClassVar[Shapes] = {
        "alpha_1": "rows",
        "alpha_2": "columns",
        "losses": "rows columns",
        "stderr": "rows columns",
        "evaluated": "rows",
        "labels": "2",
        "eps_relative": "2",
        "explained": "2",
        "trajectory": "checkpoints 2",
        "residual": "checkpoints",
    }
    name: str
    step: int | None
    loss: float
    alpha_1: Array
    alpha_2: Array
    losses: Array
    stderr: Array
    evaluated: NDArray[np.bool_]
    labels: tuple[str, ...]
    eps_relative: Array
    cosine: float
    roughness: float
    detrended: float
    detrended4: float
    minima: int
    noise_floor: float
    trajectory: Array | None
    residual: Array | None
    explained: Array | None
    meta: Provenance
    notes: tuple[str, ...] = ()

    @property
    def resolved(self) -> bool:
        """Whether the detrended roughness is above the noise floor."""
        return self.detrended > RESOLVED * self.noise_floor
