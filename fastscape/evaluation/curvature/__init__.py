"""Products with Hessians and Gauss-Newton matrices, on the fastest path that runs the model."""

from fastscape.evaluation.curvature.choice import AsymmetricProductError, NoPathError, ProductChoice
from fastscape.evaluation.curvature.operator import CurvatureOperator, SymmetricOperator, ggn, hessian

__all__ = ["AsymmetricProductError", "CurvatureOperator", "NoPathError", "ProductChoice", "SymmetricOperator", "ggn", "hessian"]
