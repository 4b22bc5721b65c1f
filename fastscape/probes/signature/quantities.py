"""Quantities of a signature: the result that each comes from, and its meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastscape.numerics.estimate import Estimate
from fastscape.numerics.positive import BY_MODEL
from fastscape.numerics.spectra import Stability
from fastscape.probes.slices.roughness import Trend
from fastscape.reports.numbers import interval, number, with_error

LOSS, CURVATURE = "loss", "loss / parameter^2"


@dataclass(frozen=True)
class Quantity:
    """A field of a signature.

    Attributes:
        label: in tables.
        formula: its definition, in words.
        unit: of its value; empty for pure numbers.
        source: kind of the result that has it.
    """

    label: str
    formula: str
    unit: str
    source: str


QUANTITIES: dict[str, Quantity] = {
    "lambda_max": Quantity(
        "lambda_max", "largest eigenvalue of the Hessian H, ± residual ||Hv - lambda v||", CURVATURE, "spectrum"
    ),
    "lambda_min": Quantity("lambda_min", "smallest eigenvalue of H, ± residual", CURVATURE, "spectrum"),
    "spectral_norm": Quantity("||H||_2", "largest absolute eigenvalue of H", CURVATURE, "spectrum"),
    "trace": Quantity("tr(H)", "sum of the eigenvalues of H, interval over random probes", CURVATURE, "spectrum"),
    "mean_curvature": Quantity("tr(H) / D", "mean eigenvalue of H over D parameters (curvature mass)", CURVATURE, "spectrum"),
    "effective_rank": Quantity("r_eff", "participation ratio tr(H)^2 / tr(H^2), jackknife interval", "", "spectrum"),
    "directional_variance": Quantity(
        "Var v'Hv", "variance of the curvature v'Hv over random signs v, 2 (tr(H^2) - sum H_ii^2)", "curvature^2", "spectrum"
    ),
    "preconditioned_sharpness": Quantity(
        "sharpness, optimizer",
        "largest eigenvalue of P^(-1/2) (H + wd) P^(-1/2), P the optimizer's preconditioner (1 for SGD), wd its coupled decay",
        "loss / step^2",
        "spectrum",
    ),
    "stability_ratio": Quantity(
        "stability ratio",
        "sharpness as the optimizer sees it over its critical value; 1 is the edge of stability",
        "",
        "spectrum",
    ),
    "lambda_c": Quantity(
        "lambda_c",
        "critical sharpness 2 / eta_c, eta_c the smallest step along the update at which the loss exceeds L(w), interval over "
        "samples",
        "1 / learning rate",
        "critical_sharpness",
    ),
    "eta_c": Quantity(
        "eta_c", "rate at which the optimizer's step, or the gradient's, raises the loss", "learning rate", "critical_sharpness"
    ),
    "roughness": Quantity(
        "R", "Var_alpha L(w + alpha v), mean over directions v; a bowl's own variance is in it", "loss^2", "slice"
    ),
    "roughness_worst": Quantity(
        "R, worst slice", "largest Var_alpha L over the directions: a lower bound of the maximum", "loss^2", "slice"
    ),
    "roughness_detrended": Quantity(
        "R, detrended", "Var_alpha of L minus its best quadratic in alpha, mean over directions", "loss^2", "slice"
    ),
    "roughness_noise": Quantity(
        "R, noise floor", "variance of L by rounding, below which roughness is arithmetic", "loss^2", "slice"
    ),
    "normalized_sharpness": Quantity(
        "NS_eps",
        "max of L(w + eps u_l |w_l|) - L(w) over ||u_l|| <= 1 per tensor: the best rise found is a lower bound; the upper end is "
        "a bound of the quadratic model only, not of the loss, and left out where the rise exceeds it",
        LOSS,
        "sharpness",
    ),
    "barrier": Quantity("B_lin", "max_a [L(w(a)) - (1 - a) L_A - a L_B] on the line between two solutions", LOSS, "barrier"),
    "barrier_end": Quantity("B_end", "max_a L(w(a)) - max(L_A, L_B)", LOSS, "barrier"),
    "barrier_max": Quantity("B_max", "max_a L(w(a)), which includes the loss of the ends", LOSS, "barrier"),
    "temperature": Quantity(
        "T", "effective temperature (eta / 2) tr(Sigma_B) / D of minibatch noise, momentum eta / (1 - mu)", LOSS, "temperature"
    ),
    "temperature_h": Quantity("T_H", "curvature-weighted temperature (eta / 2) tr(H Sigma_B) / tr(H)", LOSS, "temperature"),
    "noise_scale": Quantity(
        "noise scale", "tr(Sigma_1) / ||g||^2: the batch size at which noise and gradient are equal", "samples", "temperature"
    ),
    "difficulty": Quantity(
        "O(w0)",
        "sum over steps of eta ||g_t||^2 ||H_t||_2, the optimisation difficulty, ± |O_k - O_2k|",
        "loss * curvature",
        "difficulty",
    ),
    "difficulty_dimensionless": Quantity(
        "O, dimensionless",
        "sum of eta^2 ||g_t||^2 ||H_t||_2 / 2 over the descent L_0 - L_T; comparable between architectures",
        "",
        "difficulty",
    ),
    "m_tau": Quantity(
        "M_tau",
        "RMS deviation of the mass exponent tau(q) from a line (Török & Bartha) on the orders q that the directions support; "
        "compares on the same orders alone",
        "",
        "multifractal",
    ),
    "h_mean": Quantity(
        "mean h", "exponent of |L(w + e d) - 2 L(w) + L(w - e d)| in the radius e; 2 = smooth bowl", "", "multifractal"
    ),
    "h_std": Quantity("std h", "spread of h over directions", "", "multifractal"),
    "c2": Quantity(
        "c2",
        "slope of the variance of ln |response| over directions against ln e; < 0: they differ more at small radii",
        "",
        "multifractal",
    ),
}
_FIRST = ("lambda_max", "stability_ratio", "h_mean", "h_std", "c2", "m_tau")  # what is read first
QUANTITIES = {name: QUANTITIES[name] for name in (*_FIRST, *(name for name in QUANTITIES if name not in _FIRST))}

Fields = dict[str, Estimate | None]


@dataclass
class Contribution:
    """Fields that a result has, reasons for those that it should have and has not, and plain numbers beside them."""

    fields: Fields = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    plain: dict[str, float] = field(default_factory=dict)

    def put(self, name: str, found: Estimate | float | None, reason: str) -> None:
        """Add a field, or the reason why there is none: ``None`` or NaN."""
        estimate = exactly(found) if isinstance(found, (int, float)) else found
        if estimate is None or math.isnan(estimate.value):
            self.missing[name] = reason
        else:
            self.fields[name] = estimate


def exactly(value: float) -> Estimate:
    """A number that is known without error of estimation."""
    return Estimate(float(value), 0.0, (float(value), float(value)), 1)


def unbounded(value: float, n: int) -> Estimate:
    """A number whose error is not known."""
    return Estimate(float(value), math.nan, (math.nan, math.nan), n)


def shown(estimate: Estimate | None) -> str:
    """A quantity for people: with its residual where that bounds it, or its interval."""
    if estimate is None:
        return "n/a"
    value, (low, high) = estimate.value, estimate.interval
    if low == high:
        return number(value, 4)
    if math.isnan(estimate.stderr) and not (estimate.method or estimate.withheld) and math.isfinite(high - low):
        return with_error(value, (high - low) / 2)
    orders = estimate.method.partition(", orders ")[2].split(",")[0]
    return f"{interval(estimate, 4)}{f' on q {orders}' if orders else ''}"


def kind_of(result: object) -> str:
    """Kind of a result as in its files, or the name of its class where it has none."""
    return str(getattr(result, "kind", type(result).__name__))


def _spectrum(result: Any) -> Contribution:
    found = Contribution()
    found.plain = {"loss": result.loss} | ({} if result.accuracy is None else {"accuracy": result.accuracy})
    if result.operator != "hessian":
        words = f"the spectrum is that of the {result.operator.upper()}, not of the Hessian"
        found.missing = {name: words for name, quantity in QUANTITIES.items() if quantity.source == "spectrum"}
        return found
    largest, smallest = (
        _ritz(result.eigenvalues, result.residuals),
        _ritz(result.smallest, result.smallest_residuals),
    )
    reason = f"the spectrum ended before it was known ({result.meta.get('stop_reason', 'unknown')})"
    found.put("lambda_max", largest, reason)
    found.put("lambda_min", smallest, reason)
    found.put("spectral_norm", None if largest is None or smallest is None else _larger(largest, smallest), reason)
    for name in ("trace", "mean_curvature", "effective_rank", "directional_variance"):
        found.put(name, getattr(result, name), reason)
    _stability(result.stability, found)
    return found


def _ritz(values: Any, residuals: Any) -> Estimate | None:
    """The first Ritz value; its interval is the residual's bound."""
    if not len(values):
        return None
    value, error = float(values[0]), float(residuals[0])
    return Estimate(value, math.nan, (value - error, value + error), 1)


def _larger(a: Estimate, b: Estimate) -> Estimate:
    """The larger of two absolute values, each within its interval."""
    sizes = [_absolute(estimate) for estimate in (a, b)]
    value = max(abs(a.value), abs(b.value))
    return Estimate(value, math.nan, (max(low for low, _ in sizes), max(high for _, high in sizes)), 1)


def _absolute(estimate: Estimate) -> tuple[float, float]:
    low, high = estimate.interval
    ends = sorted((abs(low), abs(high)))
    return (0.0, ends[1]) if low <= 0 <= high else (ends[0], ends[1])


def _stability(stability: Stability | None, found: Contribution) -> None:
    if stability is None:
        for name in ("preconditioned_sharpness", "stability_ratio"):
            found.missing[name] = "no optimizer was given, or its stability did not fit the budget"
        return
    found.plain["critical_sharpness"] = stability.critical
    value, error = stability.ratio * stability.critical, stability.residual
    reason = stability.reason or "; ".join(stability.notes) or "the optimizer's state does not determine it"
    judged = Estimate(value, math.nan, (value - error, value + error), 1)
    found.put("preconditioned_sharpness", judged, reason)
    low, high = ((value + sign * error) / stability.critical for sign in (-1, 1))
    found.put("stability_ratio", Estimate(stability.ratio, math.nan, (low, high), 1), reason)


def _slice(result: Any) -> Contribution:
    found = Contribution()
    reason = "no slice has finite losses"
    found.put("roughness", result.roughness, reason)
    found.put("roughness_detrended", result.detrended, reason)
    found.put("roughness_noise", float(result.noise_floor), "the rounding noise was not measured")
    worst = _worst(result)
    found.put("roughness_worst", None if worst is None else unbounded(worst, len(result.losses)), reason)
    return found


def _worst(result: Any) -> float | None:
    """Largest variance over the directions whose losses are all finite."""
    losses = np.asarray(result.losses, dtype=np.float64)
    losses = losses[np.isfinite(losses).all(axis=1)]
    if not len(losses):
        return None
    return float(Trend([np.asarray(result.alphas, dtype=np.float64)], 0).variance(losses).max())


def _sharpness(result: Any) -> Contribution:
    found = Contribution()
    if result.variant != "normalized":
        found.missing["normalized_sharpness"] = f"the sharpness is of the variant {result.variant!r}, not 'normalized'"
        return found
    bound = result.quadratic_bound
    high = bound if bound >= result.worst else math.inf  # beyond it the loss is no quadratic, and the bound not one of the loss
    count = max(1, int(np.isfinite(result.restarts).sum()))
    worst = Estimate(result.worst, math.nan, (result.worst, high), count, BY_MODEL)
    found.put("normalized_sharpness", worst, "the loss is NaN")
    found.plain = {"loss": result.loss}
    return found


def _critical(result: Any) -> Contribution:
    found = Contribution()
    for name in ("lambda_c", "eta_c"):
        found.put(name, getattr(result, name), result.verdict())
    found.plain = {"loss": result.loss}
    return found


def _barrier(result: Any) -> Contribution:
    found = Contribution()
    for name, attribute in (("barrier", "linear"), ("barrier_end", "end"), ("barrier_max", "max")):
        found.put(name, getattr(result, attribute), "the path has no finite loss")
    return found


def _temperature(result: Any) -> Contribution:
    found = Contribution()
    notes = "; ".join(result.notes) or "it was not measured"
    for name in ("temperature", "temperature_h", "noise_scale"):
        found.put(name, getattr(result, name), notes)
    return found


def _difficulty(result: Any) -> Contribution:
    """Intervals are of the discretisation: half the spectral norms give O within as much again."""
    found = Contribution()
    error = abs(result.discretisation)
    for name, value, reason in (
        ("difficulty", result.value, "a gradient or a spectral norm is not finite"),
        ("difficulty_dimensionless", result.dimensionless, "the loss did not fall"),
    ):
        half = error * abs(value / result.value) if result.value else error
        found.put(name, Estimate(value, math.nan, (value - half, value + half), len(result.nodes)), reason)
    return found


def _multifractal(result: Any) -> Contribution:
    found = Contribution()
    found.plain = {"loss": result.loss} | ({} if result.accuracy is None else {"accuracy": result.accuracy})
    for name, key in (("h_mean", "h_mean"), ("h_std", "h_std"), ("c2", "c2"), ("m_tau", "m_tau_supported")):
        estimate = result.analysis.estimates.get(key)
        why = result.analysis.reason or (estimate.withheld if estimate else "") or "the analysis has no number"
        found.put(name, estimate, why)
    return found


PARTS: Mapping[str, Callable[[Any], Contribution]] = {
    "spectrum": _spectrum,
    "slice": _slice,
    "sharpness": _sharpness,
    "critical_sharpness": _critical,
    "barrier": _barrier,
    "temperature": _temperature,
    "difficulty": _difficulty,
    "multifractal": _multifractal,
}
