"""How work is done: settings, time budgets, checkpoints."""

from fastscape.runs.settings import ProbeSettings, preset

__all__ = ["ProbeSettings", "preset"]
