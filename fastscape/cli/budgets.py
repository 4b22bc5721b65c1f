"""What of a budget is not for the work: loading torch, and writing a page."""

from __future__ import annotations

import time

from fastscape.runs.budget import Budget

_PAGE, _CHECKPOINT = 2.5, 1.1  # seconds to load matplotlib, and to draw and save a checkpoint
_START_UP = min(time.process_time(), 10.0)  # seconds to import torch, part of a budget; capped where a host imports this late


def run_budget(text: str | None, *, page: bool, checkpoints: int) -> Budget:
    """The budget of a run that started with the process and may end with a page of ``checkpoints`` (0: a single model)."""
    return Budget(text, spent=_START_UP, reserve=_PAGE + _CHECKPOINT * max(1, checkpoints) if page else 0.0)
