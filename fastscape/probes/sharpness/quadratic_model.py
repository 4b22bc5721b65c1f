r"""The largest value of the second-order model of a loss over a product of balls."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscape.curvature.operator import CurvatureOperator
from fastscape.numerics.lanczos import extreme_pairs
from fastscape.probes.sharpness.ascent import Ascent, ascend
from fastscape.probes.sharpness.balls import Balls

_TOLERANCE = 1e-3  # residual of the eigenvalue relative to it


@dataclass(frozen=True)
class ModelMaximum:
    r"""Maximum of :math:`q(u) = \tilde g \cdot u + \tfrac12 u^\top A u` over the balls.

    Attributes:
        value: the largest found: a lower bound of the maximum, 0 at least.
        bound: :math:`\sum_l \|\tilde g_l\| + \tfrac12 n \max(\lambda_1 + r, 0)`, an upper bound where the eigenvalue has
            converged up to its residual r; n is the number of balls.
        eigenvalue, residual: largest eigenvalue of A by Lanczos.
        point: where ``value`` is taken; ``None`` where no value was finite.
        products: with A.
    """

    value: float
    bound: float
    eigenvalue: float
    residual: float
    point: Tensor | None
    products: int


class ScaledCurvature:
    r"""The matrix :math:`A = \epsilon^2 S H S`, S = diag(s): curvature in the coordinates of the balls."""

    def __init__(self, operator: CurvatureOperator, scale: Tensor, epsilon: float) -> None:
        self._operator = operator
        self._scale = (scale.to(operator.dtype) * epsilon)[:, None]
        self.products = 0

    def matmat(self, vectors: Tensor) -> Tensor:
        """A V of ``[D, K]``."""
        self.products += vectors.shape[1]
        return self._scale * self._operator.matmat(self._scale * vectors)


def maximise_model(
    operator: CurvatureOperator, gradient: Tensor, balls: Balls, epsilon: float, products: int, seed: int
) -> ModelMaximum:
    r"""Climb the model from its two natural starts, and bound it by the top of the spectrum.

    A third of the products goes to the largest eigenvalue of :math:`A = \epsilon^2 S H S`, and a third to the ascent from each
    of its eigenvector and the first-order maximiser.

    Args:
        operator: H, ``[D, D]``.
        gradient: :math:`\tilde g = \epsilon\, s \circ g`, ``[D]``.
        balls: the set and the scale s.
        epsilon: radius.
        products: to spend, at least 6.
        seed: of Lanczos.
    """
    operator.prepare(1)  # which tells the dtype
    matrix = ScaledCurvature(operator, balls.scale, epsilon)
    size, linear = len(gradient), gradient.to(operator.dtype)
    share = max(2, products // 3)
    pairs = extreme_pairs(
        matrix.matmat,
        size,
        1,
        block=1,
        tolerance=_TOLERANCE,
        which="largest",
        max_products=share,
        dtype=operator.dtype,
        device=operator.device,
        seed=seed,
        keep_vectors=True,
    ).largest

    def model(point: Tensor) -> tuple[float, Tensor]:
        curved = matrix.matmat(point[:, None])[:, 0]
        value = float(linear.double() @ point.double()) + float(curved.double() @ point.double()) / 2
        return value, linear + curved

    starts = [balls.unit(linear)]
    if pairs.vectors is not None and len(pairs.values):
        top = balls.unit(pairs.vectors[:, 0].to(operator.dtype))
        starts.append(-top if float(linear @ top) < 0 else top)
    best = Ascent(torch.zeros(1).numpy())
    for start in starts:
        found = ascend(model, balls, start, share - 1)
        if found.best > best.best:
            best = found
    eigenvalue = float(pairs.values[0]) if len(pairs.values) else math.nan
    residual = float(pairs.residuals[0]) if len(pairs.values) else math.nan
    curvature = len(balls.blocks) * max(eigenvalue + residual, 0.0) / 2 if math.isfinite(eigenvalue) else math.nan
    value = math.nan if best.point is None else max(best.best, 0.0)
    return ModelMaximum(value, balls.dual_norm(linear) + curvature, eigenvalue, residual, best.point, matrix.products)
