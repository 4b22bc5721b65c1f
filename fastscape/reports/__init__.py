"""Results: frozen dataclasses, files, tables, figures and pages."""

from fastscape.reports.result import Measured, MultifractalResult, TrajectoryResult, load
from fastscape.reports.slices import PlaneResult, SliceResult
from fastscape.reports.spectrum import SpectrumResult, SpectrumTrajectory

__all__ = [
    "Measured",
    "MultifractalResult",
    "PlaneResult",
    "SliceResult",
    "SpectrumResult",
    "SpectrumTrajectory",
    "TrajectoryResult",
    "load",
]
