"""Running statistics of batch norm along slices: which are taken, and whether those of w fit where the weights have moved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastscape._checks import first_line
from fastscape.evaluation.batch_statistics import BatchNorm, checked_mode, recalibrate, statistics
from fastscape.evaluation.surface.surface import Surface
from fastscape.numerics.arrays import Array
from fastscape.objective.objective import Objective
from fastscape.objective.statistics import Statistics
from fastscape.reports.numbers import number
from fastscape.runs.anytime import Anytime


class Norms:
    """Treatment of running statistics in a slice.

    Args:
        objective: the loss.
        bn: as asked for; see :func:`fastscape.slice1d`.

    Attributes:
        objective: the function that is evaluated.
        prepare: of :class:`Surface`.
    """

    def __init__(self, objective: Objective, bn: BatchNorm | None) -> None:
        self.mode = checked_mode(objective, bn, objective.batch_norm)
        self.objective, self.prepare = objective, None if self.mode != "recalibrate" else _recalibrated
        if bn is not None and objective.tracking:
            self.objective = objective.normalised("batch" if bn == "batch" else "running")
        self._told: dict[str, Any] = {}

    def compare(self, surface: Surface, points: Array, losses: Array, where: str = "", run: Anytime | None = None) -> None:
        """Hold losses at points against those with statistics recomputed there; the farthest apart is kept."""
        if self.mode != "running" or not len(points) or "failure" in self._told or not statistics(self.objective.model):
            return
        if run is not None and not run.fits(2 * len(points) * surface.seconds):
            self._told = {"failure": "the time was up"}
            return
        try:
            recomputed = surface.recalibrated(points)
        except Exception as error:  # of the model, or batches of a single value per channel: the slice stands without it
            self._told = {"failure": f"{type(error).__name__}: {first_line(error)}"}
            return
        for point, loss, other in zip(points.tolist(), losses.tolist(), recomputed.tolist(), strict=True):
            found = Statistics(loss, other)
            if found.differ and _apart(loss, other) > self._told.get("apart", 0.0):
                self._told = {"apart": _apart(loss, other), "at": point, "where": where, "running": loss, "recalibrated": other}

    @property
    def meta(self) -> dict[str, Any]:
        """Record of it for the result's meta."""
        told = {"moved_statistics": self._told} if self._told else {}
        return told | ({"batch_norm": self.mode} if self.mode == "recalibrate" else {})


def _recalibrated(replica: Any, _coordinates: Any) -> None:
    recalibrate(replica)


def _apart(first: float, second: float) -> float:
    """Logarithm of the ratio of two losses; infinite where one is 0 or not finite, or their signs differ."""
    ratio = second / first if first else math.inf
    return abs(math.log(ratio)) if math.isfinite(ratio) and ratio > 0 else math.inf


def norm_notes(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Flags of a slice: running statistics of w that do not fit the weights at its ends."""
    told = meta.get("moved_statistics")
    if not told:
        return ()
    if "failure" in told:
        return (f"running statistics are those of w at every point, and could not be recomputed at the ends ({told['failure']})",)
    place = ", ".join(number(float(value)) for value in np.atleast_1d(told["at"]))
    where = f" {told['where']}" if told["where"] else ""
    return (
        f"running statistics are those of w at every point: at alpha = {place}{where} the loss is {number(told['running'])}, and "
        f"{number(told['recalibrated'])} with statistics recomputed there; bn='recalibrate' recomputes them everywhere",
    )
