"""Array mathematics without models: measures, exponents, scalars, intervals. Usable on any responses."""

from fastscape.estimators.intervals import Estimate
from fastscape.estimators.multifractal import Analysis, AnalysisSettings, analyse

__all__ = ["Analysis", "AnalysisSettings", "Estimate", "analyse"]
