"""Results: frozen dataclasses, files, tables, figures and pages."""

from fastscape.reports.connectivity import BarrierMatrix, BarrierResult, CurveResult
from fastscape.reports.result import Measured, MultifractalResult, TrajectoryResult, load
from fastscape.reports.slices import PlaneResult, SliceResult
from fastscape.reports.spectrum import SpectrumResult, SpectrumTrajectory

__all__ = [
    "BarrierMatrix",
    "BarrierResult",
    "CurveResult",
    "Measured",
    "MultifractalResult",
    "PlaneResult",
    "SliceResult",
    "SpectrumResult",
    "SpectrumTrajectory",
    "TrajectoryResult",
    "load",
]
