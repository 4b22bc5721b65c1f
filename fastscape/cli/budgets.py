"""Overhead in a budget: loading torch, and writing a page."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import fastscape as fs
from fastscape._clock import processor_seconds

if TYPE_CHECKING:
    from fastscape.runs.budget import Budget

_PAGE, _CHECKPOINT, _SPECTRUM = 2.5, 1.1, 0.6  # seconds to load matplotlib, to draw and save a checkpoint, and its spectrum
_ENOUGH = 2.0  # times the fixed part


@functools.cache
def start_up() -> float:
    """Import all that runs need, and return the seconds that this took, as far as it computed: those of torch, mostly."""
    for name in dir(fs):
        getattr(fs, name)
    return min(processor_seconds(), 10.0)


def run_budget(text: str | None, *, page: bool, checkpoints: int, spectrum: bool = False) -> Budget:
    """The budget of a run that started with the process and may end with a page.

    Args:
        text: as for :class:`Budget`.
        page: whether one is written.
        checkpoints: on it; 0 for a single model.
        spectrum: whether it also shows their spectra.

    Raises:
        BudgetError: less than the start-up and the page take.
    """
    from fastscape.runs.budget import Budget, BudgetError, load_once, time_text

    each = _CHECKPOINT + _SPECTRUM * spectrum
    reserve = _PAGE + each * max(1, checkpoints) if page else 0.0
    started = start_up() + (0.0 if text is None else load_once())
    budget = Budget(text, spent=started, reserve=reserve)
    if budget.remaining <= 0:
        fixed = f"{started:.2g} s of start-up" + (f" and {reserve:.2g} s of the page" if page else "")
        enough = time_text(_ENOUGH * (started + reserve))
        raise BudgetError(f"budget must exceed the {fixed}, got {text!r}; {enough} would leave half of the time for work")
    return budget
