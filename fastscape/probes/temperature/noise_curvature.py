"""Noise of gradients in the directions of the Hessian: quadratic forms of sample deviations, of the gradient, and the trace."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastscape._checks import first_line
from fastscape.curvature.operator import CurvatureOperator, hessian
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate, widened
from fastscape.numerics.gram_schmidt import random_rows
from fastscape.numerics.student import around, mean_estimate
from fastscape.numerics.trace import hutchinson
from fastscape.probes.spectrum.result import SpectrumResult
from fastscape.probes.temperature.sample_gradients import SampleGradients
from fastscape.runs.evaluations import Evaluations

_ROUNDING = 4.0  # units of rounding in a form with a product
_BLOCK = 4  # vectors at a time: bounds the memory beside the products' own


@dataclass(frozen=True)
class NoiseCurvature:
    r"""Quadratic forms with the Hessian H at J units, drawn with probabilities p in proportion to their squared deviations.

    Uniform draws would miss the few samples that carry the noise of a trained network: there the form of a draw over its
    probability varies over orders of magnitude, here only as the Rayleigh quotient does.

    Attributes:
        forms: :math:`h = b r^2\,(g - \bar g)_l \cdot [H (g - \bar g)]_l` of each draw, by tensor ``[J, tensors]``.
        slopes: :math:`\rho\,(g - \bar g) \cdot H \bar g` of each draw ``[J]``.
        chances: p of each draw ``[J]``; ``None`` where the draws are all units, once each.
        trace: tr H.
        gradient: :math:`\bar g^\top H \bar g`.
        units: K, of which were drawn.
        products: with H.
        rounding: relative error of a product.
    """

    forms: Array
    slopes: Array
    chances: Array | None
    trace: Estimate
    gradient: float
    units: int
    products: int
    rounding: float = 0.0

    def noise_form(self, rates: Array, unsampled: float) -> Estimate:
        r""":math:`\mathrm{tr}(H\,\mathrm{diag}(\eta)\,\Sigma_1)` for a rate per tensor; Student's t over draws and samples."""
        values = self.forms @ rates
        total, error = self._total(values)
        second, _ = self._total(values**2)
        count = self.units
        sampling = max(second - total**2 / count, 0.0) * count / (count - 1) * unsampled
        found = self._estimate(total / (count - 1), math.sqrt(error + sampling) / (count - 1))
        return widened(found, self.rounding * self._total(np.abs(self.forms) @ np.abs(rates))[0] / (count - 1))

    def gradient_form(self, samples: int, unsampled: float) -> Estimate:
        r"""Unbiased :math:`g^\top H g`: without the :math:`\mathrm{tr}(H\Sigma_1) / n` that noise adds; delta method."""
        noise = self.noise_form(np.ones(self.forms.shape[1]), unsampled)
        second, _ = self._total(self.slopes**2)
        sampling = 4 * second / (self.units * (self.units - 1)) * unsampled
        value = self.gradient - noise.value / samples * unsampled
        found = self._estimate(value, math.hypot(math.sqrt(sampling), noise.stderr / samples * unsampled))
        return widened(found, self.rounding * abs(self.gradient))

    def _total(self, values: Array) -> tuple[float, float]:
        """Sum over all units of what is known at the draws, and the variance that drawing adds to it."""
        if self.chances is None:
            return float(values.sum()), 0.0
        found = mean_estimate(values / self.chances)
        return found.value, found.stderr**2

    def _estimate(self, value: float, stderr: float) -> Estimate:
        return around(value, stderr, len(self.forms))


def curvature_of_noise(
    source: SampleGradients,
    spread: Array,
    products: int,
    spectrum: SpectrumResult | None,
    seed: int,
    notes: list[str],
    evaluations: Evaluations,
    memory: int | None = None,
) -> NoiseCurvature | None:
    """Multiply deviations of drawn units, the mean gradient, and probes of the trace; ``None``, and a note, where H cannot be.

    Args:
        source: of the gradients.
        spread: squared deviations of all units ``[K]``.
        products: draws, and probes of the trace.
        spectrum: whose trace is used, if any.
        seed: of draws and probes.
        notes: reasons are added to.
        evaluations: products are taken from; gradients of the drawn units are made again.
        memory: bytes for all.

    Cost: ``products`` + 1 products at most, and as many again for the trace without a spectrum.
    """
    if not (np.isfinite(spread).all() and spread.sum() > 0):
        notes.append("no Hessian-weighted numbers: the gradients do not differ, or are not finite")
        return None
    chosen, chances = np.arange(len(source)), None
    if len(source) > products:
        chances = spread / spread.sum()
        chosen = np.sort(np.random.default_rng(seed).choice(len(source), products, p=chances))
    different, places = np.unique(chosen, return_inverse=True)
    forms, slopes = [], []
    try:
        operator = hessian(source.objective, memory=memory, distributed=False).recorded(evaluations)
        operator.prepare(1)  # which tells the dtype
        mean = torch.cat([tensor.reshape(-1) for tensor in source.mean]).to(operator.dtype)
        curved = operator.matvec(mean)
        for block in _blocks(source, different.tolist()):
            deviations = source.rows(block).to(operator.dtype).sub_(mean)
            found = operator.reduced(deviations.T, functools.partial(_layer_forms, deviations, operator), batches=False)
            forms.append(source.factors[block][:, None] * found["forms"])
            slopes.append(source.shares[block] * (deviations.double() @ curved.double()).cpu().numpy())
        off = None if operator.choice is None else operator.choice.error
        rounding = _ROUNDING * torch.finfo(operator.dtype).eps + (off or 0.0)
        trace = _trace(_probe_forms(operator, products, seed), rounding) if spectrum is None else spectrum.trace
    except (ValueError, RuntimeError, NotImplementedError) as error:
        notes.append(f"no Hessian-weighted numbers: {type(error).__name__}: {first_line(error)[:120]}")
        return None
    return NoiseCurvature(
        forms=np.concatenate(forms)[places],
        slopes=np.concatenate(slopes)[places],
        chances=None if chances is None else chances[chosen],
        trace=trace,
        gradient=float(mean.double() @ curved.double()),
        units=len(source),
        products=operator.products,
        rounding=rounding,
    )


def _layer_forms(rows: Tensor, operator: CurvatureOperator, images: Tensor, _batches: Array) -> dict[str, Array]:
    """V' H v of every tensor ``[K, tensors]``, of rows ``[K, D]`` and their products ``[D, K]``."""
    found = images.T
    table = [(rows[:, where].double() * found[:, where].double()).sum(1) for where in operator.layers.values()]
    return {"forms": torch.stack(table, 1).cpu().numpy()}


def _trace(forms: Array, rounding: float) -> Estimate:
    return widened(hutchinson(forms), rounding * float(np.sqrt(np.mean(np.square(forms)))))


def _probe_forms(operator: CurvatureOperator, count: int, seed: int) -> Array:
    size, dtype, device = operator.shape[0], operator.dtype, operator.device
    parts = []
    for start in range(0, count, _BLOCK):
        indices = range(start, min(start + _BLOCK, count))
        rows = random_rows(size, indices, seed, distribution="rademacher", dtype=dtype, device=device)
        parts.append(operator.quadratic_forms(rows.T))
    return np.concatenate(parts)


def _blocks(source: SampleGradients, units: Sequence[int]) -> list[list[int]]:
    """At most four units at a time, of one batch."""
    found: list[list[int]] = []
    for unit in units:
        if found and len(found[-1]) < _BLOCK and source.together(found[-1][-1], unit):
            found[-1].append(unit)
        else:
            found.append([unit])
    return found
