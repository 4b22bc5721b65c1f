"""The multifractal description of a checkpoint, and the settings that it was made with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from fastscape._checks import amount, flag, integer, one_line, one_of, positive, real, reals
from fastscape.numerics.arrays import Array, Shapes
from fastscape.numerics.estimate import Estimate, Estimates
from fastscape.probes.multifractal import exponents as ex
from fastscape.probes.multifractal.scalars import AUTHORS_Q
from fastscape.probes.multifractal.significance import SplitHalf
from fastscape.probes.multifractal.trust import Trust, Window

DEFAULT_Q = tuple(sorted([*AUTHORS_Q.tolist(), 0.0]))
CORE_Q = tuple(order for order in DEFAULT_Q if -1 <= order <= 2)
MOST_ORDERS = 1000  # the memory of an analysis grows with their number
OUTDATED = "analysed by version 0.1, whose intervals of M_tau and alpha cover too seldom: .reanalyse() makes them anew"
Variant = Literal["even", "odd"]


@dataclass(frozen=True)
class AnalysisSettings:
    """How responses are analysed; nothing here needs a new evaluation.

    Attributes:
        q: orders of the moments, ascending, with 0 and 1 (added where missing); 0 is left out of M_tau. ``"core"`` is the default
            grid from -1 to 2: fixed orders that few directions support, to compare M_tau of several runs on.
        windows: half-open index pairs of scales, analysed separately and averaged with equal weights; ``None`` takes the
            longest run of trusted scales.
        variant: r = abs(even) or abs(odd).
        gamma: the measure is that of r ** gamma.
        measure_floor: clip p from below without renormalising (only the preset ``torok2026`` does).
        authors_trust: report Török & Bartha's anisotropy test beside the trust mask.
        bootstrap: replicates.
        permutations: of the directions, for the split-half p.
        seed: of both.
    """

    q: tuple[float, ...] | Literal["core"] = DEFAULT_Q
    windows: tuple[Window, ...] | None = None
    variant: Variant = "even"
    gamma: float = 1.0
    measure_floor: float | None = None
    authors_trust: bool = False
    bootstrap: int = 1000
    permutations: int = 999
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.q, str):
            if self.q != "core":
                raise ValueError(f"q must be 'core' or orders, got {self.q!r}")
            object.__setattr__(self, "q", CORE_Q)
        orders = sorted({*reals("q", self.q), 0.0, 1.0})
        if len(orders) > MOST_ORDERS:
            raise ValueError(f"q must hold at most {MOST_ORDERS} orders, got {len(orders)}")
        if not all(map(math.isfinite, orders)) or len([order for order in orders if order]) < 3:
            raise ValueError(f"q must hold at least three finite orders besides 0, got {self.q!r}")
        object.__setattr__(self, "q", tuple(orders))
        if self.windows is not None:
            if not isinstance(self.windows, Sequence) or not all(isinstance(pair, Sequence) for pair in self.windows):
                raise ValueError(f"windows must be a sequence of (start, stop) pairs, got {self.windows!r}")
            object.__setattr__(self, "windows", tuple(tuple(pair) for pair in self.windows))
        one_of("variant", self.variant, get_args(Variant))
        positive("gamma", self.gamma)
        flag("authors_trust", self.authors_trust)
        if self.measure_floor is not None and not (real(self.measure_floor) and 0 < self.measure_floor < 1):
            raise ValueError(f"measure_floor must be in (0, 1), got {self.measure_floor!r}")
        for name, least in (("bootstrap", 2), ("permutations", 1)):
            object.__setattr__(self, name, amount(name, getattr(self, name), least))
        object.__setattr__(self, "seed", integer("seed", self.seed, 0))


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
        scalars: M_tau and its companions, c1, c2, ``spread_ratio``, ``moved_mass``, the statistics of h, ``neg_frac`` = largest
            share of negative responses over the window, and ``sign_mixing`` = largest share of the rarer sign.
    """

    shapes: ClassVar[Shapes] = {"zeta": "Q", "alpha_ratio": "Q", "f_ratio": "Q"}
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

    shapes: ClassVar[Shapes] = {
        "log_z": "K Q",
        "n_eff": "K Q",
        "hill": "K Q",
        "tau_local": "K-1 Q",
        "C1": "K",
        "C2": "K",
        "participation": "K",
        "neg_frac": "K",
        "h_local": "K-1",
    }
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
    """A function of q with its pointwise 95 % band.

    Attributes:
        value: ``[Q]``; NaN where responses of both signs leave no moments.
        lower, upper: ``[Q]``, holding the value, as an interval does; NaN at orders without a band.
        withheld: why there is no band at some orders; empty where there is one at all of them.
    """

    shapes: ClassVar[Shapes] = {"value": "Q", "lower": "Q", "upper": "Q"}
    value: Array
    lower: Array
    upper: Array
    withheld: str = ""
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
        estimates: headline numbers of the pooled measure with intervals over directions, or the reason why there is none:
            ``c1`` and ``c2``, ``spread_ratio`` = fine over coarse standard deviation of ln r, ``moved_mass`` = share of the
            measure that changes direction over the window; ``h_mean``, ``h_std``, ``h_median``, ``h_iqr`` of the exponents;
            ``m_tau`` on ``settings.q``, ``m_tau_supported`` on the orders that the directions support, ``m_tau_pos``,
            ``lambda_tau``; and ``alpha_width``, between the outermost supported orders from -0.5 on where it has an interval,
            else between those of ``settings.q``. Compare M_tau of two checkpoints only on orders that both support.
        tau, alpha, f: pooled curves over ``settings.q``, averaged over batches and windows, with bands at supported orders.
        p_value: of c2 = 0, two-sided, Student's t over directions; NaN where the measure does not move at all, and where the
            conditions of the interval of c2 do not hold.
        scaling: ``"common"`` where less than 1 % of the measure moves between the ends of the window, whatever p is, else
            ``"multiscale"``.
        quadratic: at least 95 % of at least 10 directions have h within 1 % of 2: the quadratic form d'Hd describes the
            response. (A direction whose d'Hd nearly vanishes shows higher orders first, and carries the negative moments.)
        pooled: ``[batches][windows]``; banks: ``[banks][windows]``.
        profiles: one per batch.
        bank_statistics: over banks, by scalar.
        m_tau_of_mean_tau: M_tau of the mean of the banks' tau (less biased upward by noise than the mean of M_tau).
        flags: everything that limits the numbers, in words.
        supported: orders whose moments the directions determine (see :mod:`fastscape.probes.multifractal.support`).
        load: of every order of ``settings.q``; above 1/3 it is not supported.
        moved_mass: as in ``estimates``.
        split_half: whether exponents belong to directions.
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
    supported: tuple[float, ...] = ()
    load: tuple[float, ...] = ()
    moved_mass: float = float("nan")
    split_half: SplitHalf = SplitHalf()  # noqa: RUF009  # frozen
    __repr__ = one_line

    def __post_init__(self) -> None:
        object.__setattr__(self, "estimates", Estimates(self.estimates, self.reason))
        if "c2" in self.estimates and not (self.estimates["c2"].method or self.estimates["c2"].withheld):
            object.__setattr__(self, "p_value", float("nan"))  # a permutation of scales, which rejects too often
            object.__setattr__(self, "flags", (*(flag for flag in self.flags if flag != OUTDATED), OUTDATED))
