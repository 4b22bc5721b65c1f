"""What of a budget is not for the work: loading torch, and writing a page."""

from __future__ import annotations

import time

from fastscape.runs.budget import Budget

_PAGE, _CHECKPOINT, _SPECTRUM = 2.5, 1.1, 0.6  # seconds to load matplotlib, to draw and save a checkpoint, and its spectrum
_START_UP = min(time.process_time(), 10.0)  # seconds to import torch, part of a budget; capped where a host imports this late


def run_budget(text: str | None, *, page: bool, checkpoints: int, spectrum: bool = False) -> Budget:
    """The budget of a run that started with the process and may end with a page.

    Args:
        text: as for :class:`Budget`.
        page: whether one is written.
        checkpoints: on it; 0 for a single model.
        spectrum: whether it also shows their spectra.
    """
    each = _CHECKPOINT + _SPECTRUM * spectrum
    return Budget(text, spent=_START_UP, reserve=_PAGE + each * max(1, checkpoints) if page else 0.0)
