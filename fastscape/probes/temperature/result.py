"""Results of the gradient-noise probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastscape.numerics.arrays import Array, Shapes
from fastscape.numerics.estimate import Estimate
from fastscape.reports.document import Document
from fastscape.reports.numbers import interval, number
from fastscape.runs.provenance import Provenance


@dataclass(frozen=True)
class TemperatureResult(Document):
    r"""Noise of minibatch gradients at one checkpoint, and the temperature of SGD that it amounts to.

    Sigma_1 is the covariance of the gradient of one sample, Sigma_B that of a minibatch.

    Attributes:
        name, step: of the checkpoint.
        trace: tr Sigma_1, squared loss per squared parameter; interval over samples.
        gradient_norm_squared: unbiased :math:`\|g\|^2`; may be negative near a minimum.
        noise_scale: :math:`B_{simple} = \mathrm{tr}\Sigma_1 / \|g\|^2`, in samples.
        noise_scale_h: :math:`B_{noise} = \mathrm{tr}(H\Sigma_1) / g^\top H g`; ``None`` without Hessian products.
        temperature: :math:`T = \tfrac{\eta}{2} \mathrm{tr}\Sigma_B / D`, units of the loss; ``None`` for optimizers that
            precondition, with the reason in ``notes``.
        temperature_h: :math:`T_H = \tfrac{\eta}{2} \mathrm{tr}(H\Sigma_B) / \mathrm{tr} H`; ``None`` likewise, or without
            products.
        gibbs: the factor 1 / (2 T) of the exponent of :math:`p(w) \propto \exp(-(w - w^*)^\top H (w - w^*) / (2T))`.
        batch_factor: Sigma_B over Sigma_1, (1 - B/N) / B.
        batch_size, population: B and N (infinite for independent draws).
        rates: effective learning rate of every parameter ``[tensors]``, momentum included; empty where there is none.
        method: ``"per-sample"`` or ``"two-batch"``.
        samples, units: samples in the data, and units (samples or groups) whose deviations were measured.
        norms: gradient norms of the units ``[units]``.
        layer_traces: tr Sigma_1 of every parameter, by name; they add up to the trace.
        gradient_norm: norm of the mean gradient of the data.
        loss: L(w).
        meta: seed, settings, path, reason, counts, fingerprints, seconds, stop reason.
        notes: flags of the evaluation, in words.
    """

    kind: ClassVar[str] = "temperature"

    shapes: ClassVar[Shapes] = {"rates": "*", "norms": "*"}
    name: str
    step: int | None
    trace: Estimate
    gradient_norm_squared: Estimate
    noise_scale: Estimate
    noise_scale_h: Estimate | None
    temperature: Estimate | None
    temperature_h: Estimate | None
    gibbs: float | None
    batch_factor: float
    batch_size: int
    population: float
    rates: Array
    method: str
    samples: int
    units: int
    norms: Array
    layer_traces: dict[str, float]
    gradient_norm: float
    loss: float
    meta: Provenance
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        heat = "n/a" if self.temperature is None else number(self.temperature.value)
        return f"<TemperatureResult {self.name!r}: tr Sigma_1 = {interval(self.trace)}, T = {heat}>"
