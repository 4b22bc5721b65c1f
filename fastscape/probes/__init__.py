"""What a user asks: one file per question."""

from fastscape.probes.multifractal import multifractal, trajectory
from fastscape.probes.session import ProbeError, Progress

__all__ = ["ProbeError", "Progress", "multifractal", "trajectory"]
