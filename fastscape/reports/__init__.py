"""Results: frozen dataclasses, files, tables, figures and pages."""

from fastscape.reports.bench import BenchResult
from fastscape.reports.doctor import Diagnosis
from fastscape.reports.result import Measured, MultifractalResult, TrajectoryResult, load
from fastscape.reports.spectrum import SpectrumResult, SpectrumTrajectory

__all__ = [
    "BenchResult",
    "Diagnosis",
    "Measured",
    "MultifractalResult",
    "SpectrumResult",
    "SpectrumTrajectory",
    "TrajectoryResult",
    "load",
]
