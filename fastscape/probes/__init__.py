"""What a user asks: one file per question."""

from fastscape.probes.curvature import mean_quadratic_form
from fastscape.probes.multifractal import multifractal, trajectory
from fastscape.probes.session import ProbeError, Progress

__all__ = ["ProbeError", "Progress", "mean_quadratic_form", "multifractal", "trajectory"]
