"""Results of spectral probes: eigenvalues, trace, density and stability of one checkpoint, or of several."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastscape.numerics.arrays import Array, Shapes
from fastscape.numerics.estimate import Estimate
from fastscape.numerics.positive import shown_ends
from fastscape.numerics.spectra import Density, Gap, Stability
from fastscape.reports import storage
from fastscape.reports.document import Along, Document
from fastscape.runs.provenance import Provenance

Bools = NDArray[np.bool_]


@dataclass(frozen=True, repr=False)
class SpectrumResult(Document):
    r"""The spectrum of the Hessian (or GGN) H of the loss at one checkpoint, D x D.

    Eigenvalues are Ritz values theta of block Lanczos; with the residual r = ||Hv - theta v||, some eigenvalue of H lies in
    theta +- r. Traces are means over random probes v with E[vv'] = I.

    Attributes:
        name, step: of the checkpoint; step is ``None`` where its name has no number.
        loss, accuracy: on the data; accuracy is ``None`` where the task is not classification.
        size: D, parameters.
        operator: ``"hessian"`` or ``"ggn"``.
        eigenvalues, residuals, converged: the k largest, descending ``[k]``, loss per squared parameter.
        smallest, smallest_residuals, smallest_converged: the s smallest, ascending ``[s]``.
        trace: tr(H), interval over probes.
        trace_data_stderr: standard error of tr(H) over batches of data; ``None`` with one batch.
        trace_square: tr(H^2) = E ||Hv||^2.
        effective_rank: tr(H)^2 / tr(H^2), jackknife interval.
        mean_curvature: tr(H) / D, the mean eigenvalue.
        directional_variance: variance of v'Hv over Rademacher v, 2 (tr(H^2) - sum of squared diagonal entries).
        layer_traces: trace of each parameter's diagonal block, by name.
        density: smoothed spectral density; ``None`` where too few products were made.
        gradient_norm: ||g||.
        gradient_curvature: g'Hg / g'g.
        stability: of an optimizer at this checkpoint; ``None`` without one.
        products: vectors multiplied by H.
        meta: seed, settings, versions, device, dtype, fingerprints, path chosen, refused, gradients per product, seconds,
            budget, stop reason, orthogonality loss, NaN products, asymmetry.
        notes: flags of the evaluation, in words.
        vectors: eigenvectors ``[D, k]`` of ``eigenvalues`` on the operator's device, to start a next run from; not saved.
    """

    kind: ClassVar[str] = "spectrum"

    shapes: ClassVar[Shapes] = {
        "eigenvalues": "k",
        "residuals": "k",
        "converged": "k",
        "smallest": "s",
        "smallest_residuals": "s",
        "smallest_converged": "s",
    }
    name: str
    step: int | None
    loss: float
    accuracy: float | None
    size: int
    operator: str
    eigenvalues: Array
    residuals: Array
    converged: Bools
    smallest: Array
    smallest_residuals: Array
    smallest_converged: Bools
    trace: Estimate
    trace_data_stderr: float | None
    trace_square: Estimate
    effective_rank: Estimate
    mean_curvature: Estimate
    directional_variance: Estimate
    layer_traces: dict[str, Estimate]
    density: Density | None
    gradient_norm: float
    gradient_curvature: float
    stability: Stability | None
    products: int
    meta: Provenance
    notes: tuple[str, ...] = ()
    vectors: Tensor | None = None

    @property
    def lambda_max(self) -> float:
        """Largest eigenvalue; NaN where none was found."""
        return float(self.eigenvalues[0]) if len(self.eigenvalues) else math.nan

    @property
    def lambda_min(self) -> float:
        """Smallest eigenvalue; NaN where none was found."""
        return float(self.smallest[0]) if len(self.smallest) else math.nan

    @property
    def spectral_norm(self) -> float:
        """Largest absolute eigenvalue, which is not lambda_max where H is very indefinite; NaN where an end is missing."""
        return float(np.max(np.abs([self.lambda_max, self.lambda_min])))

    @property
    def gap(self) -> Gap:
        """lambda_1 - lambda_2, with the bound from their residuals."""
        return Gap.between(self.eigenvalues, self.residuals)

    def stored(self) -> Self:
        """See :class:`Document`; without ``vectors``."""
        return dataclasses.replace(self, vectors=None)

    def data(self) -> dict[str, Any]:
        """See :class:`Document`; with what follows from the eigenvalues."""
        content = super().data()
        del content["vectors"]
        derived = {"lambda_max": self.lambda_max, "lambda_min": self.lambda_min, "spectral_norm": self.spectral_norm}
        content.update(storage.plain(derived | {"gap": self.gap}))
        return content


@dataclass(frozen=True, repr=False)
class SpectrumTrajectory(Along):
    """Spectra of several checkpoints with the same probes.

    Attributes:
        points: one result per checkpoint, in the order given.
        meta: of the run: seconds, budget, stop reason.
    """

    kind: ClassVar[str] = "spectra"
    counted_by: ClassVar[str] = "product"

    points: tuple[SpectrumResult, ...]
    meta: Provenance

    def series(self, name: str) -> tuple[Array, Array, Array]:
        """Value and lower and upper bound along the checkpoints, each ``[checkpoints]``; NaN where there is none.

        Args:
            name: ``lambda_max``, ``lambda_min`` (theta +- residual); ``trace``, ``trace_square``, ``effective_rank``,
                ``mean_curvature``, ``directional_variance``, ``batch_sharpness``, ``negative_mass`` (95 % intervals, NaN where
                withheld); without
                bounds ``spectral_norm``, ``loss``, ``accuracy``, ``gradient_norm``, ``gradient_curvature``,
                ``stability_ratio``, ``critical``, ``eta_lambda``, ``preconditioned``, ``products``.

        Raises:
            ValueError: another name.
        """
        rows = [_entry(point, name) for point in self.points]
        table = np.array(rows, dtype=np.float64).reshape(-1, 3)
        return table[:, 0], table[:, 1], table[:, 2]


_ESTIMATES = ("trace", "trace_square", "effective_rank", "mean_curvature", "directional_variance")
_NUMBERS = ("spectral_norm", "loss", "accuracy", "gradient_norm", "gradient_curvature", "products")
_STABILITY = {"stability_ratio": "ratio", "critical": "critical", "eta_lambda": "eta_lambda", "preconditioned": "preconditioned"}


def _entry(point: SpectrumResult, name: str) -> tuple[float, float, float]:
    """Value and bounds of one quantity at one checkpoint."""
    found: Estimate | float | None
    if name in ("lambda_max", "lambda_min"):
        value, residuals = getattr(point, name), point.residuals if name == "lambda_max" else point.smallest_residuals
        error = float(residuals[0]) if len(residuals) else math.nan
        return value, value - error, value + error
    if name in _ESTIMATES or name in _NUMBERS:
        found = getattr(point, name)
    elif name == "negative_mass":
        found = None if point.density is None else point.density.negative_mass
    elif name == "batch_sharpness":
        found = None if point.stability is None else point.stability.batch_sharpness
    elif name in _STABILITY:
        found = None if point.stability is None else getattr(point.stability, _STABILITY[name])
    else:
        known = ("lambda_max", "lambda_min", *_ESTIMATES, *_NUMBERS, "negative_mass", "batch_sharpness", *_STABILITY)
        raise ValueError(f"name must be one of {', '.join(known)}, got {name!r}")
    if isinstance(found, Estimate):
        return found.value, *shown_ends(found)
    return math.nan if found is None else float(found), math.nan, math.nan
