"""Headline numbers of a checkpoint: one bootstrap over its directions, and an interval only where it has been seen to cover.

Which number needs how many directions, and which orders, was measured on populations whose truth is known (``make coverage``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate
from fastscape.probes.multifractal import influence
from fastscape.probes.multifractal.bootstrap import (
    TAILS,
    Replicated,
    hull,
    mean_of,
    multiplicities,
    resampled_quantiles,
    standard_errors,
    strata,
)
from fastscape.probes.multifractal.description import AnalysisSettings, Curve, WindowAnalysis
from fastscape.probes.multifractal.flags import SIGN_MIXING
from fastscape.probes.multifractal.scalars import kappa, m_tau
from fastscape.probes.multifractal.significance import COMMON, TRIVIAL, SplitHalf, mean_p, split_half
from fastscape.probes.multifractal.support import Support, support

LEAST = {"c1": 32, "c2": 64, "spread_ratio": 64, "h_mean": 32, "h_median": 16, "h_std": 64, "h_iqr": 64}  # directions
MIXED_SIGNS = 1024  # directions from which c2, the spread ratio and std h have intervals where signs mix
P_FROM = 32  # directions of the p of c2
BANDS = 256  # directions of the bands of tau, alpha and f, and of the alpha width
WIDTH_FROM = -0.5  # lowest order of the alpha width: r^-1 often has no variance
AT_ZERO = 3  # standard errors within which a norm cannot be told from 0
_SPREADS = ("c2", "spread_ratio", "h_std")  # of |r|, which hardly any direction lets come near zero where signs do not mix
_NOTHING = (math.nan, math.nan)


@dataclass(frozen=True)
class Measure:
    """The directions of one batch.

    Attributes:
        signed: responses ``[K, N]``.
        log_r: gamma ln abs(response) ``[K, N]``.
        banks: directions per bank, summing to N.
        windows: what was found over each window of scales.
    """

    signed: Array
    log_r: Array
    banks: Sequence[int]
    windows: Sequence[WindowAnalysis]

    @property
    def size(self) -> int:
        """Directions."""
        return int(self.signed.shape[1])

    @property
    def parts(self) -> list[Array]:
        """Ln r ``[K, N]`` over each window."""
        return [self.log_r[slice(*window.window)] for window in self.windows]


class Headline:
    """Means over batches and windows, with their intervals.

    Args:
        measures: one per batch.
        x: ln eps ``[K]``.
        settings: of the analysis.
    """

    def __init__(self, measures: Sequence[Measure], x: Array, settings: AnalysisSettings) -> None:
        self.measures, self.x, self.settings = measures, x, settings
        self.q = np.array(settings.q)
        self.grid = self.q[self.q != 0]
        self.directions = min(measure.size for measure in measures)
        parts = [part for measure in measures for part in measure.parts]
        self.broken = _broken(parts)
        self.mixed = "" if self.broken else _mixed(measures)
        self.no_moments = self.mixed and f"{self.mixed}: moments of |r| have no population value"
        self.support: Support = support(parts, self.q, self.broken or self.no_moments, gamma=settings.gamma)
        self.orders = np.array(self.support.orders)
        self.width_from = WIDTH_FROM / max(1.0, settings.gamma)
        self.resampled = self._with_zero(self.orders)

    def mean(self, name: str) -> float:
        """Mean of a scalar over batches and windows."""
        return float(np.mean([window.scalars[name] for measure in self.measures for window in measure.windows]))

    def estimates(self) -> dict[str, Estimate]:
        """Every headline number, with its interval or the reason why it has none."""
        moved = Estimate(self.mean("moved_mass"), math.nan, _NOTHING, self._count, withheld="an effect size, not an estimate")
        return {
            "h_mean": self._plain("h_mean"),
            "h_std": self._plain("h_std", log=True),
            "h_median": self._median(),
            "h_iqr": self._plain("h_iqr"),
            "c1": self._plain("c1"),
            "c2": self._plain("c2"),
            "spread_ratio": self._spread_ratio(),
            "moved_mass": moved,
            "m_tau": self._m_tau(self.grid, self.mean("m_tau")),
            "m_tau_supported": self._m_tau(self.orders if len(self.orders) else self.grid, self._m_tau_supported()),
            "m_tau_pos": self._m_tau(self.grid[self.grid > 0], self.mean("m_tau_pos")),
            "lambda_tau": self._m_tau(self.grid, self.mean("m_tau"), kappa(self.grid)),
            "alpha_width": self._alpha_width(),
        }

    def curve(self, name: str) -> Curve:
        """Tau, alpha or f over all orders, with a band over those that are supported."""
        value = np.mean([getattr(window.spectrum, name) for m in self.measures for window in m.windows], axis=0)
        if self.mixed:
            value = np.full_like(value, np.nan)
        bounds = np.full((2, len(value)), np.nan)
        withheld = self.support.lacking(self.grid) if len(self.orders) < len(self.grid) else ""
        if len(self.orders) and self.directions < BANDS:
            return Curve(value, bounds[0], bounds[1], f"{self.directions} directions; bands need {BANDS}")
        for order in self.resampled:
            at = int(np.flatnonzero(self.q == order)[0])
            low, high = hull(self._replicated[f"{name}({order:g})"])
            bounds[:, at] = np.fmin(low, value[at]), np.fmax(high, value[at])
        return Curve(value, bounds[0], bounds[1], withheld)

    def p_value(self) -> float:
        """Of c2 = 0."""
        few = self.directions < (MIXED_SIGNS if self.mixed else P_FROM)
        if self.broken or few or not self.mean("moved_mass") > COMMON:
            return math.nan
        return mean_p([found["c2"].value for found, _ in self._batches], [psi for _, psi in self._batches])

    def scaling(self) -> str:
        """Whether the measure moves with the scale by 1 % at least."""
        return "common" if self.mean("moved_mass") < TRIVIAL else "multiscale"

    def split_half(self) -> SplitHalf:
        """Whether exponents belong to directions."""
        if self.broken:
            return SplitHalf()
        x = [self.x[slice(*window.window)] for window in self.measures[0].windows]
        rng = np.random.default_rng(self.settings.seed)
        return split_half([measure.parts for measure in self.measures], x, self.settings.permutations, rng)

    # ------------------------------------------------------------------ one bootstrap for all of them

    @cached_property
    def _batches(self) -> list[tuple[dict[str, Replicated], Array]]:
        """Per batch, every statistic resampled, and the influence of c2 ``[N]``."""
        rng = np.random.default_rng(self.settings.seed)  # one stream: measures of different batches are drawn independently
        return [self._resampled(measure, rng) for measure in self.measures]

    @cached_property
    def _replicated(self) -> dict[str, Replicated]:
        found = [batch for batch, _ in self._batches]
        return {name: mean_of([batch[name] for batch in found]) for name in found[0]}

    def _resampled(self, measure: Measure, rng: np.random.Generator) -> tuple[dict[str, Replicated], Array]:
        samples = [
            influence.Sample(part, self.x[slice(*window.window)], self.resampled, self.settings.measure_floor)
            for part, window in zip(measure.parts, measure.windows, strict=True)
        ]
        exponents = [np.sort(sample.h[sample.usable]) for sample in samples]
        ranks = [np.flatnonzero(sample.usable)[np.argsort(sample.h[sample.usable])] for sample in samples]
        statistics = self._statistics()
        values: dict[str, list[Array]] = {name: [] for name in [*statistics, "h_median", "h_iqr"]}
        errors: dict[str, list[Array]] = {name: [] for name in values}
        of_c2 = np.empty(0)
        with np.errstate(all="ignore"):
            for counts in multiplicities(strata(measure.banks), self.settings.bootstrap, rng):
                weighted = [sample.under(counts) for sample in samples]
                for name, statistic in statistics.items():
                    value, psi = _window_mean([statistic(sample) for sample in weighted])
                    values[name].append(value)
                    errors[name].append(standard_errors(weighted[0].weights, psi))
                    if name == "c2" and not len(of_c2):
                        of_c2 = psi[0]
                quartiles = np.mean(
                    [resampled_quantiles(h, counts[:, at], (0.25, 0.5, 0.75)) for h, at in zip(exponents, ranks, strict=True)],
                    axis=0,
                )
                for name, found in (("h_median", quartiles[1]), ("h_iqr", quartiles[2] - quartiles[0])):
                    values[name].append(found)
                    errors[name].append(np.full_like(found, np.nan))
        together = {name: (np.concatenate(values[name]), np.concatenate(errors[name])) for name in values}
        return {name: Replicated(float(v[0]), float(e[0]), v[1:], e[1:]) for name, (v, e) in together.items()}, of_c2

    def _statistics(self) -> Mapping[str, influence.Statistic]:
        found: dict[str, influence.Statistic] = {
            "c1": influence.c1,
            "c2": influence.c2,
            "spread_ratio": influence.log_spread_ratio,
            "h_mean": influence.h_mean,
            "h_std": influence.h_std,
        }
        if not len(self.orders):
            return found
        for orders in (self.orders, self.orders[self.orders > 0]):
            found[_label(orders)] = influence.m_tau_on(np.isin(self.resampled, orders))
        if self.directions < BANDS:
            return found
        for index, order in enumerate(self.resampled):
            found[f"tau({order:g})"] = influence.tau_at(index)
            found[f"alpha({order:g})"] = influence.alpha_at(index)
            found[f"f({order:g})"] = influence.f_at(index)
        first = int(np.argmax(self.resampled >= self.width_from))
        found["alpha_width"] = influence.alpha_between(first, len(self.resampled) - 1)
        return found

    def _with_zero(self, orders: Array) -> Array:
        """Supported orders and, where they lie on both sides of it, q = 0, whose alpha and f are means of ln r."""
        return np.sort(np.append(orders, 0.0)) if len(orders) and orders[0] < 0 else orders

    # ------------------------------------------------------------------ the numbers one by one

    @property
    def _count(self) -> int:
        return sum(measure.size for measure in self.measures)

    def _why_not(self, name: str) -> str:
        """Why a number that is not a moment has no interval."""
        if self.broken:
            return self.broken
        if self.mixed and name in _SPREADS and self.directions < MIXED_SIGNS:
            return f"{self.mixed} and {self.directions} directions; its interval then needs {MIXED_SIGNS}"
        least = LEAST[name]
        return f"{self.directions} directions; its interval needs {least}" if self.directions < least else ""

    def _withheld(self, value: float, why: str) -> Estimate:
        known = value if math.isfinite(value) else math.nan  # the one NaN, so that equal results compare equal
        return Estimate(known, math.nan, _NOTHING, self._count, withheld=why)

    def _published(self, value: float, found: Replicated, how: str, *, log: bool = False) -> Estimate:
        """A hull; the value is that of the spectrum, from which the resampled one differs by rounding."""
        low, high = hull(found, log=log)
        if not math.isfinite(value) or math.isnan(low):
            return self._withheld(value, "not defined, or it hangs on a single direction")
        stderr = found.stderr if math.isfinite(found.stderr) else float(np.nanstd(found.values))
        return Estimate(value, stderr, (min(low, value), max(high, value)), self._count, f"{how}, {self._how}")

    @property
    def _how(self) -> str:
        return f"{self.settings.bootstrap} resamples of the directions"

    def _plain(self, name: str, *, log: bool = False) -> Estimate:
        why = self._why_not(name)
        if why:
            return self._withheld(self.mean(name), why)
        how = "percentile bootstrap" if name == "h_iqr" else _HULL_LOG if log else _HULL
        return self._published(self.mean(name), self._replicated[name], how, log=log)

    def _median(self) -> Estimate:
        """Order statistics for a single measure; several are averaged, which their resamples follow."""
        why = self._why_not("h_median")
        if why:
            return self._withheld(self.mean("h_median"), why)
        found = self._replicated["h_median"]
        if len(self.measures) * len(self.measures[0].windows) > 1:
            return self._published(self.mean("h_median"), found, "percentile bootstrap")
        h = np.sort(self.measures[0].windows[0].holder.h)
        h = h[np.isfinite(h)]
        rank = int(stats.binom.ppf(TAILS[0] / 100, len(h), 0.5))
        if rank < 1:
            return self._withheld(self.mean("h_median"), f"{len(h)} directions have an exponent at every scale")
        interval = float(h[rank - 1]), float(h[len(h) - rank])
        return Estimate(
            self.mean("h_median"), float(np.nanstd(found.values)), interval, self._count, "order statistics, binomial"
        )

    def _spread_ratio(self) -> Estimate:
        scalars = [window.scalars["spread_ratio"] for measure in self.measures for window in measure.windows]
        value = float(np.exp(np.mean(np.log(scalars))))
        why = self._why_not("spread_ratio")
        if why:
            return self._withheld(value, why)
        found = self._published(math.log(value), self._replicated["spread_ratio"], f"{_HULL} of its logarithm")
        low, high = found.interval
        return Estimate(value, value * found.stderr, (math.exp(low), math.exp(high)), found.n, found.method, found.withheld)

    def _m_tau_supported(self) -> float:
        held = np.isin(self.q, self.orders)
        taus = [window.spectrum.tau[held] for measure in self.measures for window in measure.windows]
        return float(np.mean([m_tau(tau, self.orders) for tau in taus]))

    def _m_tau(self, orders: Array, value: float, unit: float = 1.0) -> Estimate:
        """M_tau on some orders, in units of ``unit``."""
        if self.mixed:
            return self._withheld(math.nan, self.no_moments)
        if not self.support.holds(orders):
            return self._withheld(value / unit, self.support.lacking(orders))
        if len(orders) < 3:
            return self._withheld(value / unit, "fewer than three orders")
        found = self._replicated[_label(orders)]
        made = self._published(value, found, f"{_HULL_LOG}, orders {orders[0]:g}..{orders[-1]:g}", log=True)
        low, high = made.interval
        low = 0.0 if value < AT_ZERO * made.stderr else low
        return Estimate(value / unit, made.stderr / unit, (low / unit, high / unit), made.n, made.method, made.withheld)

    def _alpha_width(self) -> Estimate:
        """Between the outermost supported orders from -0.5 on; without them, between those of the grid, and without interval."""
        whole = self.mean("alpha_width")
        if self.mixed:
            return self._withheld(math.nan, self.no_moments)
        ends = self.orders[self.orders >= self.width_from][[0, -1]] if len(self.orders) else self.orders
        if not len(ends):
            return self._withheld(whole, self.support.lacking(self.grid))
        if self.directions < BANDS:
            return self._withheld(whole, f"{self.directions} directions; its interval needs {BANDS}")
        low, high = (int(np.flatnonzero(self.q == end)[0]) for end in ends)
        spectra = [window.spectrum for measure in self.measures for window in measure.windows]
        value = float(np.mean([spectrum.alpha[low] - spectrum.alpha[high] for spectrum in spectra]))
        return self._published(value, self._replicated["alpha_width"], f"{_HULL}, orders {ends[0]:g}..{ends[1]:g}")


_HULL = "hull of percentile and studentised bootstrap"
_HULL_LOG = f"{_HULL} on the log scale"


def _window_mean(parts: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Means over windows of the values ``[b]`` and of the influences ``[b, N]``: windows share their directions."""
    if len(parts) == 1:
        return parts[0]
    return np.mean([value for value, _ in parts], axis=0), np.mean([psi for _, psi in parts], axis=0)


def _label(orders: Array) -> str:
    return f"m_tau on {orders[0]:g}..{orders[-1]:g}"


def _broken(parts: Sequence[Array]) -> str:
    """Why nothing can be resampled."""
    if any(np.isnan(part).any() or np.isposinf(part).any() for part in parts):
        return "the window holds responses that are not finite"
    if any(np.isneginf(part).all(axis=1).any() for part in parts):
        return "a scale of the window has no response but 0"
    return ""


def _mixed(measures: Sequence[Measure]) -> str:
    """Where responses of both signs come arbitrarily near to zero."""
    if max(window.scalars["sign_mixing"] for measure in measures for window in measure.windows) <= SIGN_MIXING:
        return ""
    scales = sorted({k for window in measures[0].windows for k in range(*window.window)})
    negative = np.array([np.mean(measure.signed[scales] < 0, axis=1) for measure in measures])
    rarer = np.max(np.minimum(negative, 1 - negative), axis=0)
    count = int(np.sum(rarer > SIGN_MIXING))
    where = f"{count} scale{'' if count == 1 else 's'}"
    return f"responses of both signs at {where} ({100 * rarer.max():.0f} %)"
