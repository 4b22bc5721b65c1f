r"""Prediction of a final outcome by an early quantity over training runs: rank correlation with interval and exact p-value.

Runs of several architectures are compared within each architecture: a quantity that merely tells a convolution from a
transformer predicts nothing. With ranks :math:`x_{gi}, y_{gi}` of run i within its group g, divided by :math:`n_g + 1` and
centred by group,

.. math:: \rho = \frac{\sum_g \sum_i x_{gi}\, y_{gi}}{\sqrt{\sum x_{gi}^2 \sum y_{gi}^2}}, \qquad
          \tau_b = \frac{\sum_g (C_g - D_g)}{\sqrt{\sum_g (C_g + D_g + X_g) \sum_g (C_g + D_g + Y_g)}}

with the concordant, discordant and one-sidedly tied pairs within groups. One group gives Spearman's and Kendall's coefficients;
without ties rho is the mean of those of the groups, weighted by :math:`n_g (n_g - 1) / (n_g + 1)`.

Source: van Elteren, "On the combination of independent two-sample tests of Wilcoxon" (1960), for the weights; Bonett & Wright,
"Sample size requirements for estimating Pearson, Kendall and Spearman correlations" (2000), for the standard error.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fastscape._checks import amount, counted, integer, listed, shown
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate

MIN_RUNS = 4  # three runs are ordered alike by chance once in six times, which no interval can tell
_ENUMERATED = 2_000_000  # relabellings that are enumerated instead of sampled: 5! ** 3 = 1,728,000 for three groups of five
_LARGEST = 9  # members of a group whose orders are enumerated, 9! = 362,880
_SAMPLED = 9_999
_Z = float(stats.norm.ppf(0.975))
Groups = list[NDArray[np.int64]]  # members of each group


@dataclass(frozen=True)
class Association:
    """Rank correlation of two quantities over runs.

    Attributes:
        early, outcome: names of the two.
        rho: Spearman's coefficient, within groups where there are several; NaN where there is none.
        stderr: standard deviation of its bootstrap over runs.
        interval: 95 % interval: bootstrap percentiles, widened to that of Fisher's z with the standard error of Bonett & Wright.
            Percentiles alone cover 77 % where six runs of rho = 0.94 are likely to be in order.
        p: of the two-sided permutation test of no association; exact where at most two million relabellings exist.
        n: runs used.
        tau: Kendall's tau-b.
        tau_interval: 95 % interval, bootstrap percentiles.
        stratified: whether ranks were taken within groups.
        groups: number of groups with two runs or more.
        dropped: runs left out because a number was NaN, or alone in their group.
        reason: why there is no number, or what to beware of; empty otherwise.
    """

    early: str
    outcome: str
    rho: float
    stderr: float
    interval: tuple[float, float]
    p: float
    n: int
    tau: float
    tau_interval: tuple[float, float]
    stratified: bool
    groups: int
    dropped: int = 0
    reason: str = ""

    @property
    def estimate(self) -> Estimate:
        """Coefficient rho as an :class:`Estimate`."""
        return Estimate(self.rho, self.stderr, self.interval, self.n)

    def __str__(self) -> str:
        what = f"{self.early} and {self.outcome} over {counted(self.n, 'run')}"
        if math.isnan(self.rho):
            return f"{what}: no rank correlation ({self.reason})"
        within = f" within {counted(self.groups, 'group')}" if self.stratified else ""
        low, high = self.interval
        note = f"; {self.reason}" if self.reason else ""
        return f"{what}{within}: rho = {self.rho:.2f} [{low:.2f}, {high:.2f}], p = {self.p:.2g}, tau = {self.tau:.2f}{note}"


def association(
    early: ArrayLike,
    outcome: ArrayLike,
    groups: Sequence[object] | None = None,
    *,
    names: tuple[str, str] = ("early quantity", "final outcome"),
    replicates: int = 2000,
    seed: int = 0,
) -> Association:
    r"""Rank correlation of an early quantity and a final outcome over runs (formulas at the top of this module).

    Args:
        early, outcome: one number per run ``[n]``, in any units. Infinite ones (runs that diverged) rank last or first; NaN is
            left out and counted.
        groups: label of each run ``[n]``, e.g. its architecture: ranks, bootstrap and permutations stay within groups, and
            labels with a single run are left out. ``None`` for one group.
        names: of the two, for tables.
        replicates: of the bootstrap.
        seed: of bootstrap and sampled permutations.

    Returns:
        An :class:`Association`; NaN with ``reason`` where fewer than four runs are left or one of the two does not vary.

    Raises:
        ValueError: lengths that differ, arrays that are not one-dimensional, or fewer than 100 replicates.

    Cost: ``replicates`` x n log n; at most two million sums for the exact p.

    Example:
        >>> found = association([3.1, 0.4, 2.0, 5.6, 1.2], [0.9, 0.1, 0.5, 1.4, 0.3])
        >>> round(found.rho, 6), round(found.p, 6)
        (1.0, 0.016667)
    """
    x, y, labels = _checked(early, outcome, None if groups is None else listed("groups", groups, "labels"))
    amount("replicates", replicates, 100)
    integer("seed", seed, 0, 2**64)
    names = listed("names", names, "two names")
    if len(names) != 2 or not all(isinstance(each, str) for each in names):
        raise ValueError(f"names must be two, of the early quantity and of the outcome, got {shown(names)}")
    known = ~(np.isnan(x) | np.isnan(y))
    members = _groups(labels, known)
    used = np.concatenate(members) if members else np.empty(0, dtype=np.int64)
    members = list(np.split(np.arange(len(used)), np.cumsum([len(group) for group in members])[:-1])) if members else []
    empty = Association(
        early=names[0],
        outcome=names[1],
        rho=math.nan,
        stderr=math.nan,
        interval=(math.nan, math.nan),
        p=math.nan,
        n=len(used),
        tau=math.nan,
        tau_interval=(math.nan, math.nan),
        stratified=groups is not None,
        groups=len(members),
        dropped=len(x) - len(used),
    )
    reason = _degenerate(x[used], y[used], members, empty)
    if reason:
        return dataclasses.replace(empty, reason=reason)
    return _associated(empty, x[used], y[used], members, replicates, np.random.default_rng(seed))


def _checked(early: ArrayLike, outcome: ArrayLike, groups: Sequence[object] | None) -> tuple[Array, Array, NDArray[np.int64]]:
    try:
        x, y = (np.asarray(values, dtype=np.float64) for values in (early, outcome))
    except (TypeError, ValueError) as error:
        raise ValueError(f"early and outcome must hold one number per run, got {early!r:.60} and {outcome!r:.60}") from error
    if x.ndim != 1 or y.ndim != 1:
        raise ValueError(f"early and outcome must hold one number per run, got shapes {x.shape} and {y.shape}")
    if len(x) != len(y) or (groups is not None and len(groups) != len(x)):
        sizes = f"{len(x)} and {len(y)}" + ("" if groups is None else f" with {len(groups)} groups")
        raise ValueError(f"early, outcome and groups must have one entry per run, got {sizes}")
    distinct: dict[object, int] = {}
    labels = [0] * len(x) if groups is None else [distinct.setdefault(label, len(distinct)) for label in groups]
    return x, y, np.array(labels, dtype=np.int64)


def _groups(labels: NDArray[np.int64], known: NDArray[np.bool_]) -> Groups:
    """Members of every group with at least two known runs."""
    found = [np.flatnonzero((labels == label) & known) for label in np.unique(labels)]
    return [group for group in found if len(group) > 1]


def _degenerate(x: Array, y: Array, members: Groups, empty: Association) -> str:
    """Reason why there is no correlation, or nothing."""
    left = f"; {empty.dropped} left out (NaN, or alone in a group)" if empty.dropped else ""
    if len(x) < MIN_RUNS:
        return f"at least {MIN_RUNS} runs are needed, got {len(x)}{left}"
    for name, values in ((empty.early, x), (empty.outcome, y)):
        if not any(len(np.unique(values[group])) > 1 for group in members):
            where = " within any group" if empty.stratified else ""
            return f"{name} is the same in all runs{where}{left}"
    return ""


def _associated(
    empty: Association, x: Array, y: Array, members: Groups, replicates: int, rng: np.random.Generator
) -> Association:
    ranks = _ranks(x, members), _ranks(y, members)
    rho = float(_cosine(*ranks))
    tau = float(_tau(x, y, members))
    rhos, taus = _bootstrap(x, y, members, replicates, rng)
    found = Estimate.from_replicates(rho, rhos, len(x))
    low, high = _fisher(rho, len(x), len(members))
    interval = float(np.fmin(low, found.interval[0])), float(np.fmax(high, found.interval[1]))
    p, exact = _permutation_p(*ranks, members, rng)
    notes = [] if exact else [f"p from {_SAMPLED} sampled relabellings"]
    ties = sum(len(group) - len(np.unique(values[group])) for group in members for values in (x, y))
    if ties:
        notes.append("tied values have their mean rank")
    if empty.dropped:
        notes.append(f"{counted(empty.dropped, 'run')} left out (NaN, or alone in a group)")
    return dataclasses.replace(
        empty,
        rho=rho,
        stderr=found.stderr,
        interval=interval,
        p=p,
        tau=tau,
        tau_interval=Estimate.from_replicates(tau, taus, len(x)).interval,
        reason="; ".join(notes),
    )


def _ranks(values: Array, members: Groups) -> Array:
    """Ranks within groups ``[..., n]``, divided by the group's size + 1 and centred."""
    ranks = np.empty(values.shape)
    for group in members:
        ranks[..., group] = stats.rankdata(values[..., group], axis=-1) / (len(group) + 1) - 0.5
    return ranks


def _cosine(a: Array, b: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine: Array = (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    return np.clip(cosine, -1, 1)


def _tau(x: Array, y: Array, members: Groups) -> Array:
    """Kendall's tau-b ``[...]`` from the pairs within groups of ``[..., n]``."""
    pairs = [np.triu_indices(len(group), 1) for group in members]
    first = np.concatenate([group[i] for group, (i, _) in zip(members, pairs, strict=True)])
    second = np.concatenate([group[j] for group, (_, j) in zip(members, pairs, strict=True)])
    a, b = (_order(values[..., first], values[..., second]) for values in (x, y))
    return _cosine(a, b)


def _order(first: Array, second: Array) -> Array:
    """Sign of ``first - second``, 0 for equal infinities."""
    return (first > second).astype(np.float64) - (first < second)


def _bootstrap(x: Array, y: Array, members: Groups, replicates: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Replicates of rho and tau, runs drawn with replacement within their groups; NaN where nothing varies."""
    drawn = np.concatenate([group[rng.integers(0, len(group), (replicates, len(group)))] for group in members], axis=1)
    a, b = x[drawn], y[drawn]
    return _cosine(_ranks(a, members), _ranks(b, members)), _tau(a, b, members)


def _fisher(rho: float, n: int, groups: int) -> tuple[float, float]:
    """Interval of Fisher's z; each group beyond the first costs a degree of freedom.

    The value is held half of the smallest step away from a perfect order, whose z is infinite.
    """
    freedom = n - groups - 2
    if freedom < 1:
        return -1.0, 1.0
    most = 1 - 6 / (n * (n * n - 1))
    clipped = min(max(rho, -most), most)
    z, half = math.atanh(clipped), _Z * math.sqrt((1 + clipped**2 / 2) / freedom)
    return math.tanh(z - half), math.tanh(z + half)


def _permutation_p(a: Array, b: Array, members: Groups, rng: np.random.Generator) -> tuple[float, bool]:
    """Share of relabellings within groups whose abs(rho) is at least the observed one, and whether all were enumerated."""
    observed = abs(float(a @ b)) * (1 - 1e-12)
    sizes = [len(group) for group in members]
    if max(sizes) <= _LARGEST and math.prod(map(math.factorial, sizes)) <= _ENUMERATED:
        sums = np.zeros(1)
        for group in members:
            orders = np.array(list(permutations(range(len(group)))))
            sums = (sums[:, None] + b[group][orders] @ a[group]).ravel()
        return float(np.mean(np.abs(sums) >= observed)), True
    sums = np.zeros(_SAMPLED)
    for group in members:
        sums += rng.permuted(np.tile(b[group], (_SAMPLED, 1)), axis=1) @ a[group]
    return (1 + int(np.count_nonzero(np.abs(sums) >= observed))) / (1 + _SAMPLED), False
