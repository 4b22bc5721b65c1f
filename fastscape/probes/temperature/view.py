"""Tables, figures and pages of gradient noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fastscape._checks import counted
from fastscape.numerics.positive import shown_ends
from fastscape.probes.temperature.result import TemperatureResult
from fastscape.reports.axes import BLUE, GREY, ORANGE, nothing, single, titled
from fastscape.reports.numbers import interval, number
from fastscape.reports.sections import Figure, Quantity, Section, section_of
from fastscape.runs.provenance import remarks_and_notes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEAVY = 0.5  # share of the noise in the noisiest hundredth of the units
_FEW = 8  # units below which an interval of the noise says little
_BINS = 40


@section_of.register
def temperature_section(result: TemperatureResult) -> Section:
    """Gradient, noise, and the temperature they amount to."""
    unit = "sample" if result.method == "per-sample" else "group"
    noise = Figure(
        "Gradient and noise",
        lambda ax: noise_bars(result, ax),
        "Squared norm of the gradient (unbiased), and traces of the noise covariance of one sample and of a minibatch, with 95 % "
        "intervals over samples. Noise scale: their ratio.",
    )
    return Section(
        f"Gradient noise: {result.name}",
        _verdict(result),
        tuple(_quantities(result)),
        (
            Figure(
                f"Gradient norms per {unit}",
                lambda ax: histogram(result, ax),
                f"Norms of the gradient of every {unit}'s own mean loss, with their root mean square, and the norm of the "
                "mean gradient of the data. A sample is an entry of the leading dimension of a batch, or of its labels.",
            ),
            noise,
        ),
        flags=(*remarks_and_notes(result.meta, result.notes), *_raised(result)),
        cover=noise,
    )


def _quantities(result: TemperatureResult) -> list[Quantity]:
    count = counted(result.units, "sample" if result.method == "per-sample" else "group")
    limited = "" if math.isinf(result.population) else f" (1 - {result.batch_size}/{result.population:g})"
    eta = ""
    if len(result.rates):
        low, high = float(np.min(result.rates)), float(np.max(result.rates))
        eta = f"; eta / (1 - momentum) = {number(low)}" + (f" .. {number(high)}" if high > low else "")
    return [
        Quantity("loss", number(result.loss, 5), "L(w)"),
        Quantity("tr Sigma_1", interval(result.trace, 4), f"covariance trace of one sample's gradient, over {count}"),
        Quantity("||g||^2", interval(result.gradient_norm_squared, 4), "of the mean gradient, without the bias of its noise"),
        Quantity(
            "noise scale", interval(result.noise_scale, 4), "tr Sigma_1 / ||g||^2, samples: batch where noise equals gradient"
        ),
        Quantity("noise scale (H)", interval(result.noise_scale_h, 4), "tr(H Sigma_1) / g'Hg, samples"),
        Quantity(
            "temperature T",
            interval(result.temperature, 4),
            f"(eta/2) tr Sigma_B / D, Sigma_B = Sigma_1 / {result.batch_size}{limited}{eta}",
        ),
        Quantity("temperature T_H", interval(result.temperature_h, 4), "(eta/2) tr(H Sigma_B) / tr H"),
        Quantity("Gibbs factor", number(result.gibbs), "1 / (2 T) in exp(-(w - w*)'H(w - w*) / (2 T))"),
    ]


def _verdict(result: TemperatureResult) -> str:
    scale, size = result.noise_scale.value, result.batch_size
    if math.isnan(result.trace.value):
        return "No gradient noise: the gradients are NaN."
    low, high = result.noise_scale.interval
    if math.isinf(high) and math.isfinite(low) and low > 0:
        text = f"Noise scale of at least {number(low)} samples: the gradient does not stand above the noise of these samples"
    elif math.isinf(scale):
        text = "The gradient does not stand above the noise of these samples"
    else:
        dominates = "noise" if size < scale else "the gradient"
        text = f"Noise scale {number(scale)} samples: at batch size {size} {dominates} dominates a step"
    if result.temperature is not None:
        text += f"; temperature T = {number(result.temperature.value)}"
    return text + "."


def _raised(result: TemperatureResult) -> list[str]:
    flags = []
    bad = int((~np.isfinite(result.norms)).sum())
    if bad:
        flags.append(f"{counted(bad, 'gradient')} with NaN or inf")
    if result.units < _FEW:
        flags.append(f"only {counted(result.units, 'unit')}: the intervals say little")
    squares = np.sort(result.norms[np.isfinite(result.norms)] ** 2)[::-1]
    top = max(1, len(squares) // 100)
    if len(squares) >= 100 and squares[:top].sum() > _HEAVY * squares.sum():
        flags.append("half of the squared norms comes from a hundredth of the samples: heavy tails, intervals may be short")
    if result.gradient_norm_squared.interval[1] < 0:
        flags.append("||g||^2 comes out negative: the samples are more balanced than independent draws, which is what is assumed")
    if result.gradient_norm_squared.interval[0] <= 0 < result.gradient_norm_squared.interval[1]:
        flags.append("||g||^2 may be zero: the noise scale has no upper bound")
    if result.noise_scale_h is not None and result.noise_scale_h.value < 0:
        flags.append("tr(H Sigma) or g'Hg is negative: the Hessian-weighted noise scale is no batch size")
    if result.temperature_h is not None and not all(map(math.isfinite, result.temperature_h.interval)):
        flags.append("tr H may be zero: T_H is not determined")
    reason = result.meta.get("stop_reason")
    if reason in ("deadline", "interrupted"):
        total = result.meta.get("units", result.units)
        seen = f"the first {result.units} of {total} units in the order of the data"
        lacking = "without Hessian-weighted numbers" if result.noise_scale_h is None else "everything was measured"
        flags.append(f"ended early ({reason}): {seen if result.units < total else lacking}")
    return flags


def histogram(result: TemperatureResult, ax: Axes | None = None) -> Axes:
    """Gradient norms of samples or groups."""
    ax = single(ax)
    unit = "sample" if result.method == "per-sample" else "group"
    title = f"Gradient norms of {counted(result.units, unit)}"
    norms = result.norms[np.isfinite(result.norms)]
    positive = norms[norms > 0]
    if not len(positive):
        return nothing(ax, title, "no gradient norm is positive and finite")
    wide = float(positive.max()) > 30 * float(positive.min())
    low, high = float(positive.min()), float(positive.max())
    bins = np.geomspace(low, high * 1.001, _BINS) if wide else np.linspace(0, high * 1.001, _BINS)
    ax.hist(positive, bins=bins.tolist(), color=BLUE, alpha=0.7)
    ax.axvline(float(np.sqrt(np.mean(norms**2))), color="k", lw=1.2, label="root mean square")
    if result.gradient_norm > 0:
        ax.axvline(result.gradient_norm, color=ORANGE, lw=1.4, label="norm of the mean gradient")
    if wide:
        ax.set_xscale("log")
    ax.legend(fontsize=7)
    return titled(ax, title, r"$\|g_i\|$", f"{unit}s")


def noise_bars(result: TemperatureResult, ax: Axes | None = None) -> Axes:
    """Squared gradient and noise of a sample and of a minibatch, on a logarithmic axis."""
    ax = single(ax)
    title = f"Gradient and noise, batch size {result.batch_size}"
    low, high = shown_ends(result.trace)
    factor = result.batch_factor
    rows = [
        (r"$\mathrm{tr}\,\Sigma_1$, one sample", result.trace.value, (low, high), GREY),
        (r"$\mathrm{tr}\,\Sigma_B$, a minibatch", factor * result.trace.value, (factor * low, factor * high), BLUE),
        (r"$\|g\|^2$", result.gradient_norm_squared.value, result.gradient_norm_squared.interval, ORANGE),
    ]
    positive = [value for _, value, _, _ in rows if math.isfinite(value) and value > 0]
    if not positive:
        return nothing(ax, title, "no value is positive and finite")
    floor = min(positive) / 10
    for place, (_, value, (lower, upper), colour) in enumerate(rows):
        if not (math.isfinite(value) and value > 0):
            ax.annotate(f"{number(value)} (no bar)", (floor, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
            continue
        ax.barh(place, value - floor, left=floor, color=colour, alpha=0.85, height=0.6)
        if math.isfinite(lower) and math.isfinite(upper):
            ax.plot([max(lower, floor), upper], [place, place], color="k", lw=1.4)
    ax.set(xscale="log", xlim=(floor, 4 * max(positive)), xlabel="squared gradient")
    ax.set_yticks(range(len(rows)), [label for label, *_ in rows], fontsize=8)
    return titled(ax, title)
