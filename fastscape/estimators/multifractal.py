"""From signed responses to the multifractal description, with uncertainties and flags."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastscape._checks import checked_settings, integer, one_line
from fastscape.estimators import exponents as ex
from fastscape.estimators.flags import analysis_flags
from fastscape.estimators.intervals import (
    Estimate,
    Estimates,
    is_common,
    permutation_p,
    resample,
    resampled_spectrum,
    weighted_spread,
)
from fastscape.estimators.moments import log_magnitude, log_measure, moments
from fastscape.estimators.scalars import AUTHORS_Q, MIN_DIRECTIONS, kappa, m_tau, spectrum_scalars
from fastscape.estimators.scaling import Array, local_slopes, slope
from fastscape.estimators.trust import Trust, Window, authors_trust, checked_windows, longest_window, trust

DEFAULT_Q = tuple(sorted([*AUTHORS_Q.tolist(), 0.0]))
Variant = Literal["even", "odd"]


@dataclass(frozen=True)
class AnalysisSettings:
    """How responses are analysed; nothing here needs a new evaluation.

    Attributes:
        q: orders of the moments, ascending, with 0 and 1 (added where missing); 0 is left out of M_tau.
        windows: half-open index pairs of scales, analysed separately and averaged with equal weights; ``None`` takes the
            longest run of trusted scales.
        variant: r = abs(even) or abs(odd).
        gamma: the measure is that of r ** gamma.
        measure_floor: clip p from below without renormalising (only the preset ``torok2026`` does).
        authors_trust: report Török & Bartha's anisotropy test beside the trust mask.
        bootstrap: replicates.
        permutations: of the scales, for p.
        seed: of both.
    """

    q: tuple[float, ...] = DEFAULT_Q
    windows: tuple[Window, ...] | None = None
    variant: Variant = "even"
    gamma: float = 1.0
    measure_floor: float | None = None
    authors_trust: bool = False
    bootstrap: int = 1000
    permutations: int = 999
    seed: int = 0

    def __post_init__(self) -> None:
        orders = sorted({float(order) for order in self.q} | {0.0, 1.0})
        if not all(map(math.isfinite, orders)) or len([order for order in orders if order]) < 3:
            raise ValueError(f"q must hold at least three finite orders besides 0, got {self.q!r}")
        object.__setattr__(self, "q", tuple(orders))
        if self.windows is not None:
            if not all(isinstance(pair, Sequence) for pair in self.windows):
                raise ValueError(f"windows must be a sequence of (start, stop) pairs, got {self.windows!r}")
            object.__setattr__(self, "windows", tuple(tuple(pair) for pair in self.windows))
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant must be 'even' or 'odd', got {self.variant!r}")
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            raise ValueError(f"gamma must be positive and finite, got {self.gamma!r}")
        if self.measure_floor is not None and not 0 < self.measure_floor < 1:
            raise ValueError(f"measure_floor must be in (0, 1), got {self.measure_floor!r}")
        for name, least in (("bootstrap", 2), ("permutations", 1), ("seed", 0)):
            object.__setattr__(self, name, integer(name, getattr(self, name), least))


@dataclass(frozen=True)
class WindowAnalysis:
    """One measure (a bank, or the pooled banks of a batch) over one window of scales.

    Attributes:
        window: half-open pair of scale indices.
        spectrum: tau, alpha, f, D_q and their fit quality.
        zeta: structure exponents ``[Q]``.
        alpha_ratio, f_ratio: the single-scale ratio variant ``[Q]``; NaN where a radius is 1 or more.
        holder: per-direction exponents.
        cumulants: log-cumulants over the window.
        scalars: M_tau and its companions, c1, c2, the statistics of h, ``neg_frac`` = largest share of negative responses
            over the window, and ``sign_mixing`` = largest share of the rarer sign.
    """

    window: Window
    spectrum: ex.Exponents
    zeta: Array
    alpha_ratio: Array
    f_ratio: Array
    holder: ex.HolderExponents
    cumulants: ex.Cumulants
    scalars: dict[str, float]
    __repr__ = one_line


@dataclass(frozen=True)
class ScaleProfile:
    """One measure at every scale, trusted or not.

    Attributes:
        log_z, n_eff, hill: ``[K, Q]``.
        tau_local: local slopes of ln Z_q ``[K - 1, Q]``.
        C1, C2, participation, neg_frac: ``[K]``.
        h_local: median over directions of the local slopes of ln r ``[K - 1]``.
    """

    log_z: Array
    n_eff: Array
    hill: Array
    tau_local: Array
    C1: Array
    C2: Array
    participation: Array
    neg_frac: Array
    h_local: Array
    __repr__ = one_line


@dataclass(frozen=True)
class Curve:
    """A function of q with its pointwise 95 % bootstrap band, each ``[Q]``; the band holds the value, as an interval does."""

    value: Array
    lower: Array
    upper: Array
    __repr__ = one_line


@dataclass(frozen=True)
class BankStatistics:
    """A scalar over banks (each the mean over its windows): mean, std (n - 1), median and quartiles."""

    mean: float
    std: float
    median: float
    lower_quartile: float
    upper_quartile: float


@dataclass(frozen=True)
class Analysis:
    """The multifractal description of one checkpoint.

    Attributes:
        valid: whether a window could be analysed; if not, ``reason`` says why and there are no numbers.
        reason: in words.
        settings: of the analysis.
        trust: verdict per scale.
        windows: analysed windows.
        estimates: headline numbers of the pooled measure with bootstrap intervals over directions: ``m_tau``, ``m_tau_pos``,
            ``lambda_tau``, ``alpha_width``, ``c1``, ``c2``, ``h_mean``, ``h_std``.
        tau, alpha, f: pooled curves over ``settings.q`` with bands, averaged over batches and windows.
        p_value: significance of M_tau against permuted scales; NaN for a common scaling.
        scaling: ``"common"`` where the measure is the same at all scales, else ``"multiscale"``.
        quadratic: at least 95 % of at least 10 directions have h within 1 % of 2: the quadratic form d'Hd describes the
            response. (A direction whose d'Hd nearly vanishes shows higher orders first, and carries the negative moments.)
        pooled: ``[batches][windows]``; banks: ``[banks][windows]``.
        profiles: one per batch.
        bank_statistics: over banks, by scalar.
        m_tau_of_mean_tau: M_tau of the mean of the banks' tau (less biased upward by noise than the mean of M_tau).
        flags: everything that limits the numbers, in words.
    """

    valid: bool
    reason: str
    settings: AnalysisSettings
    trust: Trust
    windows: tuple[Window, ...] = ()
    estimates: dict[str, Estimate] = field(default_factory=dict)
    tau: Curve | None = None
    alpha: Curve | None = None
    f: Curve | None = None
    p_value: float = float("nan")
    scaling: str = ""
    quadratic: bool = False
    pooled: tuple[tuple[WindowAnalysis, ...], ...] = ()
    banks: tuple[tuple[WindowAnalysis, ...], ...] = ()
    profiles: tuple[ScaleProfile, ...] = ()
    bank_statistics: dict[str, BankStatistics] = field(default_factory=dict)
    m_tau_of_mean_tau: float = float("nan")
    flags: tuple[str, ...] = ()
    __repr__ = one_line

    def __post_init__(self) -> None:
        object.__setattr__(self, "estimates", Estimates(self.estimates, self.reason))


def analyse(
    response: Sequence[Array],
    eps: Array,
    *,
    batches: Sequence[int] | None = None,
    above_noise: NDArray[np.bool_] | None = None,
    settings: AnalysisSettings | None = None,
) -> Analysis:
    """Multifractal analysis of signed responses.

    Args:
        response: one array ``[K scales, N_b directions]`` per bank.
        eps: radii ``[K]``, ascending.
        batches: the batch of each bank; banks of one batch are pooled into one measure, different batches never.
        above_noise: the noise gate's verdict per scale ``[K]``; default all true.
        settings: see :class:`AnalysisSettings`.

    Returns:
        An :class:`Analysis`; NaN and inf responses make scales untrusted, never an exception.

    Raises:
        ValueError: shapes that do not match, or bad windows.

    Cost: dominated by the bootstrap, about 0.4 s for 1000 replicates of 1024 directions, 12 scales and 15 orders.
    """
    chosen = checked_settings("settings", settings, AnalysisSettings)
    _check_scales(eps)
    if not len(response):
        raise ValueError("response must hold at least one bank, got none")
    for index, bank in enumerate(response):
        if bank.ndim != 2 or bank.shape[0] != len(eps) or not bank.shape[1]:
            raise ValueError(f"response[{index}] must have shape [{len(eps)} scales, directions], got {bank.shape}")
    owner = list(batches) if batches is not None else [0] * len(response)
    if len(owner) != len(response):
        raise ValueError(f"batches must name the batch of each of the {len(response)} banks, got {len(owner)} entries")
    gate = np.ones(len(eps), dtype=np.bool_) if above_noise is None else np.asarray(above_noise, dtype=np.bool_)
    if gate.shape != (len(eps),):
        raise ValueError(f"above_noise must hold one verdict per scale, [{len(eps)}], got shape {gate.shape}")
    together = np.concatenate(response, axis=1)
    verdict = trust(together, gate)
    if chosen.windows is not None:
        windows: tuple[Window, ...] = checked_windows(chosen.windows, len(eps))
    else:
        window, reason = longest_window(verdict.mask, eps)
        if window is None:
            flags = analysis_flags(verdict, eps, (), (), together.shape[1])
            return Analysis(False, reason, chosen, verdict, flags=flags)
        windows = (window,)
    return _Measures(response, eps, owner, verdict, windows, chosen).analysis()


def _check_scales(eps: Array) -> None:
    if eps.ndim != 1 or not len(eps) or not (np.isfinite(eps).all() and (eps > 0).all() and (np.diff(eps) > 0).all()):
        raise ValueError(f"eps must be positive, finite and strictly ascending, got {eps!r}")


class _Measures:
    """The measures of one checkpoint: a log response per bank, and pooled per batch."""

    def __init__(
        self,
        response: Sequence[Array],
        eps: Array,
        owner: Sequence[int],
        verdict: Trust,
        windows: tuple[Window, ...],
        settings: AnalysisSettings,
    ) -> None:
        self.response, self.eps, self.x, self.verdict = response, eps, np.log(eps), verdict
        self.windows, self.settings, self.q = windows, settings, np.array(settings.q)
        self.grid = self.q != 0
        self.groups = [[b for b, batch in enumerate(owner) if batch == wanted] for wanted in sorted(set(owner))]

    def analysis(self) -> Analysis:
        pooled_response = [np.concatenate([self.response[b] for b in group], axis=1) for group in self.groups]
        pooled = tuple(tuple(self._window(signed, w) for w in self.windows) for signed in pooled_response)
        banks = tuple(tuple(self._window(signed, w) for w in self.windows) for signed in self.response)
        profiles = tuple(self._profile(signed) for signed in pooled_response)
        estimates, curves = self._bootstrap(pooled_response, pooled)
        scales = np.array(sorted({k for a, b in self.windows for k in range(a, b)}))
        tables = [profile.log_z[scales][:, self.grid] for profile in profiles]
        p_value = permutation_p(
            tables,
            self.x[scales],
            self.q[self.grid],
            [np.flatnonzero((scales >= a) & (scales < b)) for a, b in self.windows],
            permutations_=self.settings.permutations,
            seed=self.settings.seed,
        )
        common = all(map(is_common, tables))
        h = np.concatenate([window.holder.h for group in pooled for window in group])
        mean_tau = np.mean([window.spectrum.tau for bank in banks for window in bank], axis=0)
        return Analysis(
            valid=True,
            reason="",
            settings=self.settings,
            trust=self.verdict,
            windows=self.windows,
            estimates=estimates,
            tau=curves[0],
            alpha=curves[1],
            f=curves[2],
            p_value=p_value,
            scaling="common" if common else "multiscale",
            quadratic=self.settings.variant == "even"
            and len(h) >= MIN_DIRECTIONS
            and bool(np.mean(np.abs(h / self.settings.gamma - 2) < 0.02) >= 0.95),
            pooled=pooled,
            banks=banks,
            profiles=profiles,
            bank_statistics=_bank_statistics(banks),
            m_tau_of_mean_tau=float(m_tau(mean_tau[self.grid], self.q[self.grid])),
            flags=analysis_flags(
                self.verdict,
                self.eps,
                self.windows,
                [window for group in pooled for window in group],
                min(signed.shape[1] for signed in pooled_response),
                authors=self._authors_verdict(),
            ),
        )

    def _log_r(self, signed: Array) -> Array:
        return self.settings.gamma * log_magnitude(signed)

    def _window(self, signed: Array, window: Window) -> WindowAnalysis:
        part = slice(*window)
        log_r, x, eps = self._log_r(signed)[part], self.x[part], self.eps[part]
        log_p = log_measure(log_r, self.settings.measure_floor)
        measured = moments(log_p, self.q)
        spectrum = ex.exponents(measured, x, self.q)
        nothing = np.full(len(self.q), np.nan)
        ratio = ex.ratio_spectrum(log_p, eps, self.q) if np.all(eps < 1) else (nothing, nothing)
        holder = ex.holder_exponents(log_r, x, seed=self.settings.seed)
        cumulants = ex.cumulants(log_r, x)
        negative = np.mean(signed[part] < 0, axis=1)
        scalars = spectrum_scalars(spectrum, local_slopes(x, measured.log_z)) | {
            "f_width_ratio": float(np.ptp(ratio[1])),
            "c1": cumulants.c1,
            "c2": cumulants.c2,
            "h_mean": holder.mean,
            "h_std": holder.std,
            "h_median": holder.median,
            "h_iqr": holder.iqr,
            "h_span": holder.span,
            "persistence": holder.persistence,
            "neg_frac": float(np.max(negative)),
            "sign_mixing": float(np.max(np.minimum(negative, np.mean(signed[part] >= 0, axis=1)))),
        }
        zeta = ex.structure_exponents(log_r, x, self.q)
        return WindowAnalysis(window, spectrum, zeta, ratio[0], ratio[1], holder, cumulants, scalars)

    def _profile(self, signed: Array) -> ScaleProfile:
        log_r = self._log_r(signed)
        measured = moments(log_measure(log_r, self.settings.measure_floor), self.q)
        cumulants = ex.cumulants(log_r, self.x)
        with np.errstate(invalid="ignore"):
            steps = local_slopes(self.x, log_r)
        return ScaleProfile(
            log_z=measured.log_z,
            n_eff=measured.n_eff,
            hill=ex.hill_numbers(measured, self.q),
            tau_local=local_slopes(self.x, measured.log_z),
            C1=cumulants.C1,
            C2=cumulants.C2,
            participation=ex.participation_ratio(log_r),
            neg_frac=np.mean(signed < 0, axis=1),
            h_local=np.array([np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in steps]),
        )

    def _bootstrap(
        self, pooled_response: list[Array], pooled: Sequence[Sequence[WindowAnalysis]]
    ) -> tuple[dict[str, Estimate], tuple[Curve, Curve, Curve]]:
        """Headline estimates and curves: means over batches and windows, with percentile intervals over replicates."""
        settings, q = self.settings, self.q
        replicates: dict[str, list[Array]] = {}
        curves: list[list[Array]] = [[], [], []]
        rng = np.random.default_rng(settings.seed)  # one stream: measures of different batches are drawn independently
        for group, signed, analyses in zip(self.groups, pooled_response, pooled, strict=True):
            sizes = [self.response[b].shape[1] for b in group]
            draws = resample(self._log_r(signed), q, sizes, replicates=settings.bootstrap, seed=rng, floor=settings.measure_floor)
            for analysis in analyses:
                part = slice(*analysis.window)
                tau, alpha, f = resampled_spectrum(draws, self.x, q, part)
                for stack, values in zip(curves, (tau, alpha, f), strict=True):
                    stack.append(values)
                for name, values in _replicate_scalars(tau, alpha, q).items():
                    replicates.setdefault(name, []).append(values)
                replicates.setdefault("c1", []).append(slope(self.x[part], draws.first[:, part].T))
                replicates.setdefault("c2", []).append(slope(self.x[part], draws.second[:, part].T))
                mean, std = weighted_spread(draws.counts, analysis.holder.h)
                replicates.setdefault("h_mean", []).append(mean)
                replicates.setdefault("h_std", []).append(std)
        windows = [analysis for group in pooled for analysis in group]
        count = sum(signed.shape[1] for signed in pooled_response)
        estimates = {
            name: Estimate.from_replicates(float(np.mean([window.scalars[name] for window in windows])), _mean(values), count)
            for name, values in replicates.items()
        }
        bands = [
            _curve(np.mean([getattr(window.spectrum, name) for window in windows], axis=0), _mean(stack))
            for name, stack in zip(("tau", "alpha", "f"), curves, strict=True)
        ]
        return estimates, (bands[0], bands[1], bands[2])

    def _authors_verdict(self) -> NDArray[np.bool_] | None:
        return authors_trust(np.concatenate(self.response, axis=1)) if self.settings.authors_trust else None


def _replicate_scalars(tau: Array, alpha: Array, q: Array) -> dict[str, Array]:
    grid, positive = q != 0, q > 0
    value = m_tau(tau[:, grid], q[grid])
    return {
        "m_tau": value,
        "m_tau_pos": m_tau(tau[:, positive], q[positive]),
        "lambda_tau": value / kappa(q[grid]),
        "alpha_width": alpha[:, np.argmin(q)] - alpha[:, np.argmax(q)],
    }


def _mean(replicates: list[Array]) -> Array:
    """Mean over batches and windows; infinite replicates of opposite sign give NaN."""
    with np.errstate(invalid="ignore"):
        result: Array = np.mean(replicates, axis=0)
    return result


def _curve(value: Array, replicates: Array) -> Curve:
    bounds = np.full((2, len(value)), np.nan)
    defined = np.isfinite(replicates).all(axis=0)
    if defined.any():
        bounds[:, defined] = np.percentile(replicates[:, defined], [2.5, 97.5], axis=0)
        bounds[:, defined] = np.fmin(bounds[0], value)[defined], np.fmax(bounds[1], value)[defined]
    return Curve(value, bounds[0], bounds[1])


def _bank_statistics(banks: Sequence[Sequence[WindowAnalysis]]) -> dict[str, BankStatistics]:
    statistics = {}
    for name in banks[0][0].scalars:
        values = np.array([np.mean([window.scalars[name] for window in bank]) for bank in banks])
        quartiles = np.percentile(values, [50, 25, 75])
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        statistics[name] = BankStatistics(float(np.mean(values)), spread, *map(float, quartiles))
    return statistics
