"""Leads on batch norm: a result says first that its numbers are of another function than the one that was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastscape.objective.statistics import Statistics
from fastscape.reports.numbers import number

_PROBED = {
    "running": "the running statistics were probed",
    "batch": "those of the batch were probed",
    "recalibrate": "running statistics recomputed at every point were probed",
    "interpolate": "interpolated running statistics were probed",
}
_ROUND = 3  # digits of a loss


def lead(meta: Mapping[str, Any]) -> str:
    """The first line of a result; empty where the statistics of batch norm make no difference.

    Both losses, where they differ by more than 5 %; and in any case that the batch's statistics were taken where nobody asked.
    """
    losses_by = meta.get("statistics")
    if not losses_by:
        return ""
    running, batch = (math.nan if losses_by[name] is None else float(losses_by[name]) for name in ("running", "batch"))
    found, mode = Statistics(running, batch, losses_by.get("failure", "")), str(meta.get("batch_norm"))
    chosen = mode == "batch" and meta.get("batch_norm_asked") is None
    if not (found.differ or chosen):
        return ""
    losses = f"loss {number(running, _ROUND)} with running statistics, {number(batch, _ROUND)} with those of the batch"
    return f"{losses}: {_PROBED.get(mode, mode)}{', as in training' if chosen else ''}."


def lead_along(metas: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The first line of a result of several checkpoints: that of the one whose losses differ most, by their ratio."""
    leads = [(name, meta, line) for name, meta in metas if (line := lead(meta))]
    if not leads:
        return ""
    name, _, line = max(leads, key=lambda item: _ratio(item[1]["statistics"]))
    more = f" (and {len(leads) - 1} more)" if len(leads) > 1 else ""
    return f"{name}{more}: {line}"


def _ratio(losses_by: Mapping[str, Any]) -> float:
    """Ratio of the losses; infinite where one is not finite, or 0."""
    low, high = sorted(
        abs(float(value)) if value is not None else math.nan for value in (losses_by["running"], losses_by["batch"])
    )
    return high / low if low > 0 and math.isfinite(high) else math.inf


def before(first: str, verdict: str) -> str:
    """A verdict with what must be read before it."""
    return f"{first[0].upper()}{first[1:]} {verdict}" if first else verdict
