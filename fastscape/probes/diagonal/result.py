"""Result of the diagonal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fastscape.numerics.arrays import Array, Shapes
from fastscape.numerics.estimate import Estimate
from fastscape.reports.document import Document
from fastscape.runs.provenance import Provenance


@dataclass(frozen=True, repr=False)
class DiagonalResult(Document):
    r"""The diagonal of the Hessian or Gauss-Newton matrix, and its sums over parameters.

    Attributes:
        name, step: of the checkpoint.
        loss: L(w).
        operator: ``"hessian"`` or ``"ggn"``.
        estimator: ``"exact"``, ``"xdiag"`` or ``"hutchinson"``; ``""`` before the first products.
        values, stderr: of every element in the order of ``parameters``, loss over squared parameters ``[D]``. The standard
            errors are the estimator's own, over probes, and rounding.
        parameters: shape of each parameter by name.
        layers: sum over each parameter, the trace of its diagonal block, with its interval.
        trace: sum of everything.
        error: of the whole diagonal, the norm of ``stderr``: the root mean square of :math:`\|\hat d - d\|`.
        products: vectors multiplied.
        probes: random vectors among them that the estimate is a mean over.
        dimension: of the basis whose range is exact.
        meta: settings, fingerprints, seconds, stop reason, how products were made.
        notes: flags, in words.
    """

    kind: ClassVar[str] = "diagonal"
    shapes: ClassVar[Shapes] = {"values": "d", "stderr": "d"}

    name: str
    step: int | None
    loss: float
    operator: str
    estimator: str
    values: Array
    stderr: Array
    parameters: dict[str, tuple[int, ...]]
    layers: dict[str, Estimate]
    trace: Estimate
    error: float
    products: int
    probes: int
    dimension: int
    meta: Provenance
    notes: tuple[str, ...] = ()

    @property
    def norm(self) -> float:
        r"""Norm of the diagonal: of ``values`` without what their errors add to it, :math:`\sqrt{\|\hat d\|^2 - error^2}`."""
        square = float(np.sum(self.values**2)) - self.error**2
        return math.sqrt(max(square, 0.0)) if not math.isnan(square) else math.nan

    @property
    def relative_error(self) -> float:
        """Error over norm; infinite where no norm is left beside the error."""
        return self.error / norm if (norm := self.norm) else math.inf if self.error else math.nan

    def tensors(self) -> dict[str, Tensor]:
        """The values by parameter, in their shapes, float64."""
        return self._parts(self.values)

    def errors(self) -> dict[str, Tensor]:
        """The standard errors by parameter, in their shapes, float64."""
        return self._parts(self.stderr)

    def _parts(self, flat: Array) -> dict[str, Tensor]:
        sizes = [math.prod(shape) for shape in self.parameters.values()]
        parts = torch.split(torch.from_numpy(flat.copy()), sizes)
        return {name: part.reshape(shape) for part, (name, shape) in zip(parts, self.parameters.items(), strict=True)}
