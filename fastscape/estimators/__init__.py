"""Array mathematics without models: measures, exponents, scalars, intervals. Usable on any responses."""

from fastscape.estimators.analysis import Analysis, AnalysisSettings
from fastscape.estimators.association import Association, association
from fastscape.estimators.intervals import Estimate
from fastscape.estimators.multifractal import analyse
from fastscape.estimators.rules import DEFAULT_RULES, Condition, Rule, Verdict

__all__ = [
    "DEFAULT_RULES",
    "Analysis",
    "AnalysisSettings",
    "Association",
    "Condition",
    "Estimate",
    "Rule",
    "Verdict",
    "analyse",
    "association",
]
