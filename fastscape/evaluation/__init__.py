"""Evaluate losses, responses and curvature along directions: numerically careful, on the fastest path that runs the model."""

from fastscape.evaluation.agreement import DtypeDependentLossError
from fastscape.evaluation.curvature import (
    AsymmetricProductError,
    CurvatureOperator,
    NoPathError,
    ProductChoice,
    ggn,
    hessian,
)
from fastscape.evaluation.determinism import NarrowLossError, NondeterministicLossError
from fastscape.evaluation.differences.propagation import MissingRuleError
from fastscape.evaluation.differences.refusals import UntraceableError
from fastscape.evaluation.losses import losses
from fastscape.evaluation.operators import Operators, operators
from fastscape.evaluation.quadratic import QuadraticForms, quadratic_forms
from fastscape.evaluation.responses import PrecisionWarning, Responses, responses

__all__ = [
    "AsymmetricProductError",
    "CurvatureOperator",
    "DtypeDependentLossError",
    "MissingRuleError",
    "NarrowLossError",
    "NoPathError",
    "NondeterministicLossError",
    "Operators",
    "PrecisionWarning",
    "ProductChoice",
    "QuadraticForms",
    "Responses",
    "UntraceableError",
    "ggn",
    "hessian",
    "losses",
    "operators",
    "quadratic_forms",
    "responses",
]
