"""Results: frozen dataclasses, files, tables, figures and pages."""

from fastscape.reports.result import Measured, MultifractalResult, TrajectoryResult, load
from fastscape.reports.slices import PlaneResult, SliceResult
from fastscape.reports.spectrum import SpectrumResult, SpectrumTrajectory
from fastscape.reports.tracking import DifficultyResult, TrackResult

__all__ = [
    "DifficultyResult",
    "Measured",
    "MultifractalResult",
    "PlaneResult",
    "SliceResult",
    "SpectrumResult",
    "SpectrumTrajectory",
    "TrackResult",
    "TrajectoryResult",
    "load",
]
