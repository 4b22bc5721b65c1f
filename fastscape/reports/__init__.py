"""Results: frozen dataclasses, files, tables, figures and pages."""

import fastscape.reports.bench_view
import fastscape.reports.comparison_view
import fastscape.reports.connectivity_view
import fastscape.reports.doctor_view
import fastscape.reports.dynamics_view
import fastscape.reports.multifractal_view
import fastscape.reports.probe_view
import fastscape.reports.sharpness_view
import fastscape.reports.signature_view
import fastscape.reports.slice_view
import fastscape.reports.spectrum_html
import fastscape.reports.tracking_view  # noqa: F401 - views register themselves
from fastscape.reports.bench import BenchResult
from fastscape.reports.comparison import Comparison, compare
from fastscape.reports.connectivity import BarrierMatrix, BarrierResult, CurveResult
from fastscape.reports.doctor import Diagnosis
from fastscape.reports.dynamics import TemperatureResult
from fastscape.reports.probe import ProbeResult
from fastscape.reports.result import Measured, MultifractalResult, TrajectoryResult
from fastscape.reports.sharpness import SharpnessResult
from fastscape.reports.signature import Signature
from fastscape.reports.slices import PlaneResult, SliceResult
from fastscape.reports.spectrum import SpectrumResult, SpectrumTrajectory
from fastscape.reports.storage import load
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
