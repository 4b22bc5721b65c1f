"""Measure the geometry of a neural network's loss, with numbers that can be believed.

The public names; see the README for a tour and each docstring for formula, shapes, errors, cost and source.
"""

import fastscape._interrupts  # noqa: F401 - first, because what follows takes seconds
from fastscape._version import __version__
from fastscape.directions import Axes, Directions
from fastscape.estimators import Analysis, AnalysisSettings, Estimate, analyse
from fastscape.estimators.spectra import Stability
from fastscape.evaluation import (
    AsymmetricProductError,
    CurvatureOperator,
    MissingRuleError,
    NondeterministicLossError,
    NoPathError,
    Operators,
    PrecisionWarning,
    ProductChoice,
    QuadraticForms,
    Responses,
    UntraceableError,
    ggn,
    hessian,
    losses,
    operators,
    quadratic_forms,
    responses,
)
from fastscape.objective import Objective
from fastscape.ops import Status, status
from fastscape.probes import (
    ProbeError,
    Progress,
    SliceError,
    SpectrumError,
    edge_of_stability,
    mean_quadratic_form,
    multifractal,
    slice1d,
    slice2d,
    spectra,
    spectrum,
    trajectory,
)
from fastscape.reports import (
    MultifractalResult,
    PlaneResult,
    SliceResult,
    SpectrumResult,
    SpectrumTrajectory,
    TrajectoryResult,
    load,
)
from fastscape.runs import ProbeSettings, preset

__all__ = [
    "Analysis",
    "AnalysisSettings",
    "AsymmetricProductError",
    "Axes",
    "CurvatureOperator",
    "Directions",
    "Estimate",
    "MissingRuleError",
    "MultifractalResult",
    "NoPathError",
    "NondeterministicLossError",
    "Objective",
    "Operators",
    "PlaneResult",
    "PrecisionWarning",
    "ProbeError",
    "ProbeSettings",
    "ProductChoice",
    "Progress",
    "QuadraticForms",
    "Responses",
    "SliceError",
    "SliceResult",
    "SpectrumError",
    "SpectrumResult",
    "SpectrumTrajectory",
    "Stability",
    "Status",
    "TrajectoryResult",
    "UntraceableError",
    "__version__",
    "analyse",
    "edge_of_stability",
    "ggn",
    "hessian",
    "load",
    "losses",
    "mean_quadratic_form",
    "multifractal",
    "operators",
    "preset",
    "quadratic_forms",
    "responses",
    "slice1d",
    "slice2d",
    "spectra",
    "spectrum",
    "status",
    "trajectory",
]
