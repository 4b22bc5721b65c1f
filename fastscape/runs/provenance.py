"""When, with which versions and on how many threads a run was made, and of which model and data."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import scipy
import torch

from fastscape._version import __version__
from fastscape.objective.objective import Objective


def provenance() -> dict[str, Any]:
    """Entries of the ``meta`` of every result on its run: ``created``, ``versions``, ``threads``."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "fastscape": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
    }


def statistics_meta(objective: Objective) -> dict[str, Any]:
    """Statistics that batch norm takes, those asked for, and where layers keep running ones, the loss by either."""
    found: dict[str, Any] = {"batch_norm": objective.batch_norm, "batch_norm_asked": objective.batch_norm_asked}
    if objective.by_batch:
        try:
            found["statistics"] = dataclasses.asdict(objective.statistics())
        except KeyboardInterrupt:  # results are made of what was evaluated, after an interrupt too
            return found
    return found


def objective_meta(objective: Objective, remarks: Sequence[str] | None = None) -> dict[str, Any]:
    """Entries of the ``meta`` of a result on the function that was probed, and :func:`provenance`.

    ``remarks``: of an objective that cannot be evaluated; by default its own.
    """
    return {
        "model": type(objective.model).__name__,
        "parameters": objective.size,
        "samples": objective.samples,
        "batches": len(objective.batches),
        **statistics_meta(objective),
        "weight_fingerprint": objective.weight_fingerprint(),
        "data_fingerprint": objective.data_fingerprint(),
        "device": str(objective.device),
        "dtype": str(objective.dtype),
        "remarks": list(objective.remarks if remarks is None else remarks),
        **provenance(),
    }


def remarks_and_notes(meta: Mapping[str, Any], notes: Iterable[str]) -> tuple[str, ...]:
    """Flags of a result that come before its own: the remarks on its objective and the notes of its run, each once."""
    return tuple(dict.fromkeys((*meta.get("remarks", ()), *notes)))
