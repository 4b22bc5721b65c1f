"""Results: frozen dataclasses, files, tables, figures and pages."""

from fastscape.reports.dynamics import TemperatureResult
from fastscape.reports.result import Measured, MultifractalResult, TrajectoryResult, load
from fastscape.reports.sharpness import SharpnessResult
from fastscape.reports.spectrum import SpectrumResult, SpectrumTrajectory

__all__ = [
    "Measured",
    "MultifractalResult",
    "SharpnessResult",
    "SpectrumResult",
    "SpectrumTrajectory",
    "TemperatureResult",
    "TrajectoryResult",
    "load",
]
