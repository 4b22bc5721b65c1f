"""Results: frozen dataclasses, files, tables, figures and pages."""

from fastscape.reports.result import Measured, MultifractalResult, TrajectoryResult, load

__all__ = ["Measured", "MultifractalResult", "TrajectoryResult", "load"]
