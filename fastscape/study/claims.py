"""Claims of "Loss Landscape Geometry & Optimization Dynamics" (Venkatasubramanian 2025) against the measurements of a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fastscape._checks import counted
from fastscape.numerics.arrays import Array
from fastscape.reports.numbers import number

Outcome = Literal["seen", "not seen", "inconclusive", "not measured"]
Values = Mapping[str, Mapping[str, Array]]  # quantity -> architecture -> one number per seed


@dataclass(frozen=True)
class Claim:
    """One statement of the source and what became of it.

    Attributes:
        claim: in the source's sense.
        where: section or table of the source.
        outcome: ``"seen"``, ``"not seen"``, ``"inconclusive"`` (the interval holds both) or ``"not measured"``.
        evidence: the numbers behind it.
    """

    claim: str
    where: str
    outcome: Outcome
    evidence: str


def larger(values: Mapping[str, Array], first: str, second: str) -> tuple[Outcome, str]:
    """Whether a quantity of ``first`` exceeds that of ``second``: Welch's interval of the difference over seeds.

    Of positive quantities the logarithms are compared, so that it is about their ratio.
    """
    if first not in values or second not in values:
        return "not measured", f"{first if first not in values else second} was not studied"
    a, b = (np.asarray(values[name], dtype=np.float64) for name in (first, second))
    words = f"{first} {_mean(a)}, {second} {_mean(b)} (means over seeds)"
    dropped = int((~np.isfinite(a)).sum() + (~np.isfinite(b)).sum())
    words += f"; {counted(dropped, 'run')} without a finite number left out" if dropped else ""
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    if len(a) < 2 or len(b) < 2:
        return "not measured", f"{words}; two seeds of each are needed"
    positive = bool((a > 0).all() and (b > 0).all())
    if positive:
        a, b = np.log(a), np.log(b)
    if not (np.ptp(a) or np.ptp(b)):
        return ("seen" if a[0] > b[0] else "not seen"), words
    found = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    low, high = (math.exp(min(edge, 700.0)) if positive else edge for edge in (found.low, found.high))
    what = "ratio" if positive else "difference"
    neutral = 1.0 if positive else 0.0
    outcome: Outcome = "seen" if low > neutral else "not seen" if high < neutral else "inconclusive"
    return outcome, f"{words}; {what} in [{number(low)}, {number(high)}]"


def _mean(values: Array) -> str:
    return number(float(np.nanmean(values))) if np.isfinite(values).any() else "n/a"


def count_of(
    values: Mapping[str, Array], holds: Callable[[Array], NDArray[np.bool_]], words: str, noun: str = "run"
) -> tuple[Outcome, str]:
    """Whether something holds in every run, or what else ``noun`` says, of every architecture."""
    held = {name: holds(np.asarray(row)[np.isfinite(row)]) for name, row in values.items()}
    total, true = sum(len(row) for row in held.values()), sum(int(row.sum()) for row in held.values())
    if not total:
        return "not measured", f"no {noun} has the number"
    outcome: Outcome = "seen" if true == total else "not seen" if true == 0 else "inconclusive"
    return outcome, f"{words} in {true} of {counted(total, noun)}"


def _tiny(found: Array | None, bound: Array | None, limit: float) -> tuple[Outcome, str]:
    """Whether every run's maximum is at most ``limit``: the largest rise found may deny it, only an upper bound can grant it.

    Here it is one of the quadratic model, where no rise exceeds it.
    """
    if found is None or bound is None or not np.isfinite(found).any():
        return "not measured", "no run has the number"
    ends = number(float(np.nanmin(found))), number(float(np.nanmax(bound)))
    words = f"rises of at least {ends[0]} were found, bounded by {ends[1]} in the quadratic model"
    outcome: Outcome = "not seen" if np.nanmax(found) > limit else "seen" if (bound <= limit).all() else "inconclusive"
    return outcome, words


MLP, RESNET, TRANSFORMER = "MLP", "ResNet-18", "Tiny Transformer"


def claims(values: Values, sharpness_radius: float, running: Values | None = None) -> tuple[Claim, ...]:
    """The source's claims that a study of its three architectures can check.

    Args:
        values: ``trace``, ``lambda_max``, ``resolved`` (1 where lambda_1 - lambda_2 exceeds its error), ``roughness``,
            ``roughness_detrended``, ``roughness_worst`` (largest over directions), ``barrier``, ``barrier_max``,
            ``normalized_sharpness`` and ``normalized_sharpness_bound`` above it, ``difficulty`` (dimensionless), by architecture.
        sharpness_radius: at which the normalised sharpness was taken; the source does not say its own.
        running: quantities of networks with batch norm by its running statistics, which decide nothing: the evidence says what
            they would have decided.
    """

    def ordered(quantity: str, first: str, second: str) -> tuple[Outcome, str]:
        outcome, evidence = larger(of(quantity), first, second)
        beside = (running or {}).get(quantity, {})
        if not beside.keys() & {first, second}:
            return outcome, evidence
        other, words = larger({**of(quantity), **beside}, first, second)
        return outcome, f"{evidence}; by running statistics {other}: {words}"

    def of(name: str) -> Mapping[str, Array]:
        return values.get(name, {})

    checked: Sequence[tuple[str, str, tuple[Outcome, str]]] = (
        (
            "The largest eigenvalues of the Hessian coincide (4.055 three times; 30.556, 30.554, 30.549)",
            "4.1, 4.2",
            count_of(of("resolved"), lambda row: row == 0, "lambda_1 and lambda_2 are closer than their residuals"),
        ),
        ("The trace of ResNet-18 far exceeds that of the MLP", "table 1", ordered("trace", RESNET, MLP)),
        ("The top curvature of ResNet-18 exceeds that of the MLP", "table 1", ordered("lambda_max", RESNET, MLP)),
        ("The Transformer is flat on average: its trace is below the MLP's", "table 1", ordered("trace", MLP, TRANSFORMER)),
        (
            "The Transformer is locally rugged: its detrended roughness exceeds the MLP's",
            "4.3, table 1",
            ordered("roughness_detrended", TRANSFORMER, MLP),
        ),
        ("Barriers of ResNet-18 exceed the MLP's", "4.2", larger(of("barrier_max"), RESNET, MLP)),
        (
            "Solutions of different seeds are separated by a barrier",
            "4.1-4.3",
            count_of(of("barrier"), lambda row: row > 0, "B_lin > 0", "pair"),
        ),
        (
            f"The MLP's normalised sharpness is at most 1e-4 (here at eps = {sharpness_radius:g})",
            "4.1",
            _tiny(of("normalized_sharpness").get(MLP), of("normalized_sharpness_bound").get(MLP), 1e-4),
        ),
        (
            "Skip connections lower the worst slice variance below the MLP's",
            "6.3",
            ordered("roughness_worst", MLP, RESNET),
        ),
        ("The Transformer is harder to optimise than the MLP", "6.2", larger(of("difficulty"), TRANSFORMER, MLP)),
    )
    return tuple(Claim(words, where, outcome, evidence) for words, where, (outcome, evidence) in checked)
