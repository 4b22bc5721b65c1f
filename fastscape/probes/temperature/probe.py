"""The gradient-noise probe: covariance of sample gradients, noise scale, and the temperature of SGD."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from fastscape._checks import amount, check_memory, counted, integer
from fastscape._clock import now
from fastscape._keeping import keeps_result
from fastscape.curvature.slopes import departing
from fastscape.evaluation.arithmetic import measured_in
from fastscape.evaluation.samples import samples_of
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate, unknown, widened
from fastscape.numerics.positive import scaled, useful
from fastscape.objective.objective import Objective, checked_objective, untrained
from fastscape.probes.spectrum.result import SpectrumResult
from fastscape.probes.spectrum.stability import Optimizer
from fastscape.probes.temperature.gradient_noise import (
    Units,
    batch_factor,
    gibbs_factor,
    mean_square,
    noise_scale,
    noise_trace,
    ratio,
)
from fastscape.probes.temperature.learning_rates import effective_rates
from fastscape.probes.temperature.noise_curvature import NoiseCurvature, curvature_of_noise
from fastscape.probes.temperature.result import TemperatureResult
from fastscape.probes.temperature.sample_gradients import Deviations, Method, SampleGradients
from fastscape.probes.temperature.sample_paths import CoupledSamplesError
from fastscape.reports.numbers import spanned
from fastscape.runs.anytime import Anytime
from fastscape.runs.evaluations import opened
from fastscape.runs.provenance import objective_meta
from fastscape.runs.run import Resumed, Work, settled


class TemperatureKeywords(Work, Resumed, total=False):
    """Keywords beside those of the noise and the training."""

    memory: int | None


@keeps_result
def temperature(
    objective: Objective,
    *,
    batch_size: int,
    learning_rate: float | None = None,
    momentum: float = 0.0,
    optimizer: Optimizer | str | Path | None = None,
    population: int | None = None,
    method: Method | None = None,
    products: int = 32,
    spectrum: SpectrumResult | None = None,
    **keywords: Unpack[TemperatureKeywords],
) -> TemperatureResult:
    r"""Noise of minibatch gradients at the weights, and the temperature of SGD that it amounts to.

    .. math:: T = \frac{\eta}{2}\,\frac{\mathrm{tr}\,\Sigma_B}{D}, \qquad
              \Sigma_B = \frac{\Sigma_1}{B}\Bigl(1 - \frac{B}{N}\Bigr), \qquad
              T_H = \frac{\eta}{2}\,\frac{\mathrm{tr}(H\Sigma_B)}{\mathrm{tr}\,H}

    Sigma_1 is the covariance of the gradient of one *sample*: a row of a batch (:meth:`Objective.count`), a sentence where the
    loss is a mean over tokens. T matches the noise of a step, :math:`\eta^2 \Sigma_B`, to that of Langevin dynamics,
    :math:`2 \eta T` per parameter. With several learning rates :math:`T = \mathrm{tr}(\mathrm{diag}(\eta)\Sigma_B) / (2D)`, which
    is exact in one respect whatever the anisotropy: at a quadratic minimum and for small rates SGD's mean excess loss is
    :math:`\tfrac14 \mathrm{tr}(\mathrm{diag}(\eta)\Sigma_B) = DT/2`, that of the Gibbs law
    :math:`p(w) \propto \exp(-(w - w^*)^\top H (w - w^*) / (2T))`; the factor 1/(2T) is ``gibbs``. T_H is the temperature at which
    that law has SGD's mean squared gradient. Momentum replaces eta by :math:`\eta / (1 - \mu)`.

    Where terms have weights w_i (class weights, sequences of several lengths), the gradient of a minibatch is a ratio, and
    Sigma_1 is the covariance of :math:`w_i (g_i - \bar g) / \bar w` (its linearisation).

    Args:
        objective: the loss; n samples of the training data, D parameters. It is taken as it was trained
            (:meth:`fastscape.Objective.trained`): with batch norm, from groups of samples with statistics of their own.
        batch_size: B of the training.
        learning_rate, momentum: of SGD; or
        optimizer: a ``torch.optim`` optimizer, its state or a file. Optimizers that precondition (Adam ...) have no temperature
            in this sense: ``temperature`` is ``None``, with the reason in ``notes``.
        population: N, training samples that minibatches are drawn from without replacement; ``None`` for independent draws. With
            the objective's data being all N, tr Sigma_1 and :math:`\|g\|^2` have no sampling error.
        method: ``"per-sample"``; ``"two-batch"``: from gradients of groups of samples against their mean (McCandlish et al.);
            ``None``: per sample unless samples of a batch depend on each other, which ``meta["reason"]`` says.
        products: sample gradients, and random probes of tr H, to multiply with the Hessian for T_H and the Hessian-weighted noise
            scale; 0 leaves them out.
        spectrum: a result for the same weights, whose trace is used.
        seed: of the samples chosen for products, and of the probes.
        memory: bytes that the call may take: private copy, gradients, a block of those of samples, and products with the Hessian;
            too little is refused.
        budget: seconds, or ``"60s"``; what is known then is returned.
        resume: a folder for the journal of the call. The mean gradient, the numbers of every block of samples and product
            are written there; the same call goes on with what it holds, whatever ended the process, and gives the same numbers.
        name, step: of the checkpoint.
        run: seed, memory, budget, name, step, resume, or some of them, in a :class:`fastscape.Run`.

    Returns:
        A :class:`TemperatureResult`, intervals over samples. Ctrl-C gives the partial result once any sample is known.

    Raises:
        ValueError: batch_size below 1 or above the population, a population smaller than the data, learning rate and optimizer
            both missing or both given, momentum outside [0, 1), fewer than 3 samples, too little memory, a ``resume`` folder
            of another run.
        NondeterministicLossError: two evaluations at w differ.

    Cost: one gradient per sample (vmap: chunks under the memory cap), no D x n storage; 2 ``products`` Hessian products.

    Source: Mandt, Hoffman & Blei (2017), Jastrzebski et al., "Three factors influencing minima in SGD" (2017), for the
    temperature; McCandlish et al. (2018) for both noise scales and the two-batch estimator.

    Example:
        >>> import torch, fastscape as fs
        >>> model = torch.nn.Linear(4, 3)
        >>> objective = fs.Objective(model, [(torch.randn(8, 4), torch.arange(8) % 3)],
        ...                          criterion=torch.nn.functional.cross_entropy)
        >>> fs.temperature(objective, batch_size=2, learning_rate=0.1).temperature.value > 0
        True
    """
    work = settled(temperature, keywords)
    run = Anytime(work.clock())
    objective = checked_objective(objective).trained()
    size = integer("batch_size", batch_size, 1)
    total = samples_of(objective)
    if population is not None and integer("population", population, 1) < max(size, total):
        what = f"batch_size {size}" if size > total else f"the {total} samples of the data"
        raise ValueError(f"population must be at least {what}, got {population}; None is for independent draws")
    if 0 < amount("products", products, 0) < 3:
        raise ValueError(f"products must be 0 or at least 3, got {products}; an interval needs a spread")
    integer("seed", work.seed, 0, 2**63)
    check_memory(work.memory)
    _check_spectrum(objective, spectrum)
    rates, notes = effective_rates(objective, learning_rate, momentum, optimizer)
    if spectrum is not None and objective.tracking and spectrum.meta.get("batch_norm", "running") != objective.batch_norm:
        words = f"the spectrum is by {spectrum.meta.get('batch_norm', 'running')!r} statistics of batch norm, another function"
        spectrum, notes = None, (*notes, f"{words}: tr H is estimated anew; pass optimizer= to fs.spectrum")
    settings: dict[str, object] = {
        "batch_size": size,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "population": population,
        "method": method,
        "products": products,
        "spectrum": None if spectrum is None else spectrum.name,
        "budget": run.budget.seconds if run.budget.limited else None,
    }
    needs = 20 * len(objective.batches)
    with (
        torch.inference_mode(False),
        opened(work.resume, "temperature", [lambda: objective], {"seed": work.seed}) as run.evaluations,
        run.budget.opening("gradient of a sample", needs, begun=run.evaluations.replaying),
    ):
        measured = _Measured(objective, method, work.memory, products, spectrum, work.seed, run, size)
    found = measured.result(size, population, rates, notes, settings, work.name, work.step)
    return run.whole(found, f"the temperature of {work.name} failed after {counted(found.samples, 'sample')}")


class _Measured:
    """Measurements so far, whatever ended them; numbers are made of them in :meth:`result`."""

    def __init__(
        self,
        objective: Objective,
        method: Method | None,
        memory: int | None,
        products: int,
        spectrum: SpectrumResult | None,
        seed: int,
        run: Anytime,
        batch_size: int,
    ) -> None:
        self.objective, self.seed, self.run = objective, seed, run
        self.curvature: NoiseCurvature | None = None
        self.notes: list[str] = [words] if (words := untrained(objective)) else []
        self._batch_size = batch_size
        self._began = now()
        try:
            self._measure(method, memory, True, products, spectrum)
        except CoupledSamplesError as error:
            if method == "per-sample":
                raise ValueError(f"method must be 'two-batch' for this loss, got 'per-sample': {error}") from error
            self.notes.append(f"from gradients of whole batches: {error}")
            self._measure("two-batch", memory, False, products, spectrum)

    def _measure(
        self,
        method: Method | None,
        memory: int | None,
        split: bool,
        products: int,
        spectrum: SpectrumResult | None,
    ) -> None:
        self.found = Deviations()
        size = self._batch_size
        kept = self.run.evaluations
        with SampleGradients(self.objective, method=method, memory=memory, split=split, group=size, evaluations=kept) as source:
            if source.coupled and source.sizes.max() != size:
                self.notes.append(
                    f"batch norm takes the statistics of groups of {spanned(source.sizes.astype(int).tolist())} samples, "
                    f"training of {size}: pass batches of that size, eight at least"
                )
            self.source, run = source, self.run
            began = run.worked()

            def late() -> bool:
                return not run.fits((run.worked() - began) / len(self.found.norms))  # blocks so far

            with run.ends(self._known, errors=self._known):
                source.deviations(self.found, late)
                source.replica.take(self.objective)
                if not late() and (words := departing(source.replica, memory)):
                    self.notes.append(words)
                if len(self.found.sizes) < len(source) or (products and late()):
                    run.reason = "deadline"
                elif products:
                    spread = np.concatenate(self.found.spread).sum(axis=1)
                    self.curvature = curvature_of_noise(
                        source, spread, products, spectrum, self.seed, self.notes, kept, source.beside
                    )

    def _known(self, error: Exception | None = None) -> bool:
        return len(self.found.sizes) >= 3 and not isinstance(error, CoupledSamplesError)

    def result(
        self,
        batch_size: int,
        population: int | None,
        rates: Array,
        notes: tuple[str, ...],
        settings: dict[str, object],
        name: str,
        step: int | None,
    ) -> TemperatureResult:
        """Estimates of what was measured."""
        found, source, objective = self.found, self.source, self.objective
        arithmetic = measured_in(objective, source.dtype)
        spread = np.concatenate(found.spread)  # [units, tensors]
        squares = np.array([float(tensor.double().square().sum()) for tensor in source.mean])
        units = Units(
            spread=spread.sum(axis=1),
            shift=np.concatenate(found.shift),
            along=np.concatenate(found.along),
            mean_square=float(squares.sum()),
            samples=int(sum(found.sizes)),
            population=math.inf if population is None else float(population),
            unit=torch.finfo(source.dtype).eps,
        )
        factor, lost = batch_factor(batch_size, units.population), unknown(len(spread))
        none: tuple[Estimate | None, Estimate | None] = (None, None)
        trace = self.run.analysed(lambda: self._trace(units), lost)
        heat = self.run.analysed(lambda: self._heat(spread, rates, factor, units), none[0])
        heat_h, scale_h = self.run.analysed(lambda: self._curved(rates, factor, units), none)
        return TemperatureResult(
            name=name,
            step=step,
            trace=trace,
            gradient_norm_squared=self.run.analysed(lambda: mean_square(units), lost),
            noise_scale=self.run.analysed(lambda: _published(noise_scale(units)), lost),
            noise_scale_h=scale_h,
            temperature=heat,
            temperature_h=heat_h,
            gibbs=None if heat is None else gibbs_factor(heat.value),
            batch_factor=factor,
            batch_size=batch_size,
            population=units.population,
            rates=rates,
            method=source.method,
            samples=units.samples,
            units=len(spread),
            norms=np.concatenate(found.norms),
            layer_traces=dict(zip(objective.names, (spread.sum(axis=0) / (len(spread) - 1)).tolist(), strict=True)),
            gradient_norm=math.sqrt(float(squares.sum())),
            loss=source.loss,
            meta=objective_meta(objective)
            | arithmetic.meta
            | {
                "seed": self.seed,
                "settings": settings,
                "path": source.path,
                "reason": source.reason,
                "units": len(source),
                "evaluations": source.evaluations,
                "products": 0 if self.curvature is None else self.curvature.products,
                "seconds": now() - self._began,
                "stop_reason": self.run.reason,
            },
            notes=(*arithmetic.notes, *notes, *self.notes, *self.run.evaluations.notes),
        )

    def _trace(self, units: Units) -> Estimate:
        trace = noise_trace(units.spread, units.unsampled)
        return _published(widened(trace, units.rounding(trace.value)))

    def _heat(self, spread: Array, rates: Array, factor: float, units: Units) -> Estimate | None:
        """T, where there are rates."""
        if not len(rates):
            return None
        hot, trace = noise_trace(spread @ rates, units.unsampled), noise_trace(units.spread, units.unsampled)
        share = hot.value / trace.value if trace.value else 0.0
        hot = _published(widened(hot, share * units.rounding(trace.value)))
        return scaled(hot, 1 / (2 * self.objective.size) * factor)

    def _curved(self, rates: Array, factor: float, units: Units) -> tuple[Estimate | None, Estimate | None]:
        """T_H and the Hessian-weighted noise scale."""
        found = self.curvature
        if found is None:
            return None, None
        along, ones = found.gradient_form(units.samples, units.unsampled), np.ones(len(self.objective.names))
        scale = ratio(found.noise_form(ones, units.unsampled), along)
        if not len(rates):
            return None, scale
        return ratio(scaled(found.noise_form(rates, units.unsampled), factor / 2), found.trace), scale


def _published(estimate: Estimate) -> Estimate:
    return useful(estimate, "unit")


def _check_spectrum(objective: Objective, spectrum: SpectrumResult | None) -> None:
    if spectrum is None:
        return
    if not isinstance(spectrum, SpectrumResult):
        raise TypeError(f"spectrum must be a result of fs.spectrum, got {type(spectrum).__name__}")
    if spectrum.size != objective.size:
        raise ValueError(f"spectrum must be of the objective's {objective.size} parameters, got {spectrum.size}")
