"""How work is done: settings, time budgets, checkpoints."""

from fastscape.runs.schedule import Schedule, fractions, log_spaced
from fastscape.runs.settings import ProbeSettings, preset

__all__ = ["ProbeSettings", "Schedule", "fractions", "log_spaced", "preset"]
