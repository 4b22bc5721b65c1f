"""Results of slices: losses along lines, and over a plane."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastscape._checks import counted
from fastscape.estimators.intervals import Estimate
from fastscape.estimators.roughness import RESOLVED
from fastscape.estimators.scaling import Array
from fastscape.reports import slice_figures
from fastscape.reports.document import Document
from fastscape.reports.sections import Figure, Quantity, Section
from fastscape.reports.tables import interval, number
from fastscape.runs.provenance import told

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEANING = {
    "roughness": "R = Var L over alpha; h^2 A^4 / 45 for a bowl h alpha^2 / 2 on [-A, A]",
    "detrended": "Var L about the best polynomial of degree 2",
    "detrended4": "Var L about the best polynomial of degree 4",
    "second_difference": "mean square of d^2 L / d alpha^2",
    "minima": "local minima inside, deeper than 4 times the rounding",
    "noise_floor": "variance of L by rounding; what is not above it is no roughness",
}


@dataclass(frozen=True)
class SliceResult(Document):
    r"""Losses :math:`L(w + \alpha v_i)` along n lines through the weights, and their roughness.

    Estimates are means over the n directions with 95 % intervals on a logarithmic scale (see
    :mod:`fastscape.estimators.positive`); of fewer than 8, or where the ends are a factor of 10 apart, none is shown.

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
        noise_floor: variance of one loss by rounding; roughness below it is none of the landscape.
        accuracy: ``[n, A]``; ``None`` where the task is not classification.
        meta: seed, settings, versions, device, fingerprints, path, evaluations, seconds, stop reason.
        notes: flags of the evaluation, in words.
    """

    kind: ClassVar[str] = "slice"
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
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<SliceResult {self.name!r}: {_verdict_1d(self)}>"

    @property
    def resolved(self) -> bool:
        """Whether the detrended roughness is above the noise floor."""
        return self.detrended.value > RESOLVED * self.noise_floor

    def section(self) -> Section:
        """See :class:`Document`."""
        values = ("roughness", "detrended", "detrended4", "second_difference", "minima")
        labels = ("roughness R", "R, detrended", "R, order 4", "second differences", "local minima")
        rows = [Quantity("loss", number(self.loss, 4), "L(w), at alpha = 0")]
        rows += [
            Quantity(label, interval(getattr(self, name)), _MEANING[name]) for label, name in zip(labels, values, strict=True)
        ]
        rows.append(Quantity("noise floor", number(self.noise_floor), _MEANING["noise_floor"]))
        words = (
            "L(w + alpha v) along each direction v, alpha in units of ||v||, which is "
            f"{number(float(np.median(self.eps_relative)))} ||w||; bands are 95 % intervals over samples at fixed weights."
        )
        return Section(
            f"Losses along lines: {self.name}",
            _verdict_1d(self),
            tuple(rows),
            (Figure("Losses along lines", partial(slice_figures.lines, self), words),),
            flags=(*told(self.meta, self.notes), *_flags(self.losses, self.resolved, self.detrended.value)),
            settings=_settings(self.meta),
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Lines with bands (needs matplotlib)."""
        return slice_figures.lines(self, ax)


@dataclass(frozen=True)
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
        minima: local minima inside the plane that are deeper than 4 times the rounding.
        noise_floor: variance of one loss by rounding.
        trajectory: coordinates of checkpoints projected onto the plane ``[C, 2]``, or ``None``.
        residual: their distance from the plane relative to that from w ``[C]``.
        explained: share of the squared distances of the trajectory from w along each axis ``[2]``, for principal components.
        meta, notes: as for :class:`SliceResult`.
    """

    kind: ClassVar[str] = "plane"
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
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<PlaneResult {self.name!r}: {_verdict_2d(self)}>"

    @property
    def resolved(self) -> bool:
        """Whether the detrended roughness is above the noise floor."""
        return self.detrended > RESOLVED * self.noise_floor

    def section(self) -> Section:
        """See :class:`Document`."""
        rows = [
            Quantity("loss", number(self.loss, 4), "L(w), at the origin"),
            Quantity("roughness R", number(self.roughness), "variance of L over the plane"),
            Quantity("R, detrended", number(self.detrended), "about the best polynomial of total degree 2"),
            Quantity("R, order 4", number(self.detrended4), "about the best polynomial of total degree 4"),
            Quantity("local minima", str(self.minima), _MEANING["minima"]),
            Quantity("noise floor", number(self.noise_floor), _MEANING["noise_floor"]),
            Quantity("cosine", number(self.cosine, 2), "between the directions as they were evaluated"),
        ]
        if self.residual is not None:
            share = f"{number(float(np.nanmax(self.residual)))} at most"
            rows.append(Quantity("outside the plane", share, "distance of the checkpoints from the plane / from w"))
        words = (
            f"L(w + alpha_1 v_1 + alpha_2 v_2); v_1 = {self.labels[0]}, v_2 = {self.labels[1]}, of lengths "
            f"{number(float(self.eps_relative[0]))} and {number(float(self.eps_relative[1]))} ||w||. The cross is w"
        )
        words += "; the line shows checkpoints projected onto the plane." if self.trajectory is not None else "."
        figures = (
            Figure("Losses over a plane", partial(slice_figures.contour, self), words),
            Figure("Losses over a plane", partial(slice_figures.surface, self), words, projection="3d"),
        )
        return Section(
            f"Losses over a plane: {self.name}",
            _verdict_2d(self),
            tuple(rows),
            figures,
            flags=(*told(self.meta, self.notes), *_flags(self.losses[self.evaluated], self.resolved, self.detrended)),
            settings=_settings(self.meta),
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Filled contours (needs matplotlib); :func:`fastscape.reports.slice_figures.surface` draws the surface."""
        return slice_figures.contour(self, ax)


def _reach(losses: Array) -> tuple[float, float]:
    finite = losses[np.isfinite(losses)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (math.nan, math.nan)


def _left(resolved: bool, detrended: str) -> str:
    return f"of which a quadratic trend leaves {detrended if resolved else 'no more than rounding'}"


def _verdict_1d(result: SliceResult) -> str:
    low, high = _reach(result.losses)
    lines = counted(len(result.losses), "direction")
    if math.isnan(high):
        return f"No loss along {lines} is finite."
    reach = number(float(result.alphas[-1] * np.median(result.eps_relative)))
    found = f"Within {reach} ||w|| along {lines} the loss goes from {number(low)} to {number(high)}, {number(result.loss)} at w"
    return f"{found}; variance {interval(result.roughness)}, {_left(result.resolved, interval(result.detrended))}."


def _verdict_2d(result: PlaneResult) -> str:
    low, high = _reach(result.losses)
    if math.isnan(high):
        return "No loss over the plane is finite."
    found = f"Over the plane the loss goes from {number(low)} to {number(high)}, {number(result.loss)} at w"
    if math.isnan(result.roughness):
        return found + "."
    return f"{found}; variance {number(result.roughness)}, {_left(result.resolved, number(result.detrended))}."


def _flags(losses: Array, resolved: bool, detrended: float) -> list[str]:
    found = []
    bad = int((~np.isfinite(losses)).sum())
    if bad:
        words = "losses are" if bad > 1 else "loss is"
        found.append(f"{bad} of {losses.size} {words} NaN or inf: kept, and left out of averages with their line")
    if not resolved and math.isfinite(detrended):
        found.append("the detrended roughness is within the rounding of the losses: use precision='float64' to resolve it")
    return found


def _settings(meta: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in meta.get("settings", {}).items() if value is not None)
