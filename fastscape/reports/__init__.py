"""Results: frozen dataclasses, files, tables, figures and pages."""

from fastscape.reports.bench import BenchResult
from fastscape.reports.comparison import Comparison, compare
from fastscape.reports.connectivity import BarrierMatrix, BarrierResult, CurveResult
from fastscape.reports.doctor import Diagnosis
from fastscape.reports.dynamics import TemperatureResult
from fastscape.reports.probe import ProbeResult
from fastscape.reports.result import Measured, MultifractalResult, TrajectoryResult, load
from fastscape.reports.sharpness import SharpnessResult
from fastscape.reports.signature import Signature
from fastscape.reports.slices import PlaneResult, SliceResult
from fastscape.reports.spectrum import SpectrumResult, SpectrumTrajectory
from fastscape.reports.tracking import DifficultyResult, TrackResult

__all__ = [
    "BarrierMatrix",
    "BarrierResult",
    "BenchResult",
    "Comparison",
    "CurveResult",
    "Diagnosis",
    "DifficultyResult",
    "Measured",
    "MultifractalResult",
    "PlaneResult",
    "ProbeResult",
    "SharpnessResult",
    "Signature",
    "SliceResult",
    "SpectrumResult",
    "SpectrumTrajectory",
    "TemperatureResult",
    "TrackResult",
    "TrajectoryResult",
    "compare",
    "load",
]
