"""Coverage of the multifractal headline numbers and bands, and false alarms and power of the tests beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

import fastscape as fs
from fastscape.probes.multifractal.scalars import m_tau

from .cells import NOMINAL, Cell, Job, run
from .networks import ACTIVATIONS, network
from .populations import DECADES, LEVELS, OCTAVES, Population, populations

PLAIN = ("c2", "h_std", "spread_ratio", "c1", "h_mean", "h_median", "h_iqr")
SIZES = (16, 32, 64, 256, 1024)
REPLICATES = 399
ENDS = (-1.0, 0.5, 2.0)  # orders whose bands are counted
LEVEL = 0.05
NULL_SIZES = (32, 64, 128, 512)
CORRELATIONS = (0.0, 0.5, 0.8, 0.95)
SCALES = np.log(np.logspace(-4, -1, 12))


def cells(repetitions: int, seed: int) -> Iterator[Cell]:
    """Every cell of this study."""
    return run(jobs(repetitions, seed))


def jobs(repetitions: int, seed: int) -> Iterator[Job]:
    """One job per size of the sample and population, then the tests."""
    every = [make() for make in (*(partial(network, kind) for kind in ACTIVATIONS), *populations())]
    truths: list[dict[str, np.ndarray]] = [{} for _ in every]
    for n in SIZES:
        for place, (population, truth) in enumerate(zip(every, truths, strict=True)):
            yield f"{population.name}, n = {n}", partial(coverage, population, truth, n, repetitions, [seed, place, n])
    for name, null in nulls():
        for n in NULL_SIZES:
            yield f"no change: {name}, n = {n}", partial(rejections, name, null, n, 3 * repetitions, [seed, n])
    for name, change in changes():
        yield f"change: {name}", partial(rejections, f"change: {name}", change, 128, repetitions, [seed, 128])


def coverage(population: Population, truth: dict[str, np.ndarray], n: int, repetitions: int, seed: list[int]) -> list[Cell]:
    """Analyse samples of n directions; ``truth`` is filled in once for all sizes."""
    settings = fs.AnalysisSettings(bootstrap=REPLICATES, permutations=1)
    q = np.array(settings.q)
    if not truth:
        truth.update(population.truth(q))
    rng = np.random.default_rng(seed)
    counts: dict[str, list[int]] = {}
    for _ in range(repetitions):
        found = fs.analyse([population.draw(rng, n)], np.exp(population.x), settings=settings)
        for name, reported, covered in _outcomes(found, truth, q):
            entry = counts.setdefault(name, [0, 0])
            entry[0] += reported
            entry[1] += covered
    return [Cell(name, population.name, n, NOMINAL, repetitions, *entry) for name, entry in counts.items()]


def _outcomes(found: fs.Analysis, truth: dict[str, np.ndarray], q: np.ndarray) -> Iterator[tuple[str, bool, bool]]:
    """Whether each number has an interval, and whether it holds the truth."""
    orders = np.array(found.supported)
    wide = orders[orders >= -0.5]
    at = {order: int(np.flatnonzero(q == order)[0]) for order in q}
    targets = {name: float(truth[name]) for name in PLAIN}
    if len(orders):
        targets["m_tau_supported"] = float(m_tau(truth["tau"][np.isin(q, orders)], orders))
        targets["alpha_width"] = float(truth["alpha"][at[wide[0]]] - truth["alpha"][at[wide[-1]]])
    for name in (*PLAIN, "m_tau_supported", "alpha_width"):
        yield name, *_held(found.estimates[name].interval, targets.get(name, np.nan))
    for name in ("tau", "alpha", "f"):
        curve = getattr(found, name)
        for order in ENDS:
            k = at[order]
            yield f"{name}({order:g})", *_held((curve.lower[k], curve.upper[k]), truth[name][k])


def _held(interval: tuple[float, float], target: float) -> tuple[bool, bool]:
    low, high = interval
    reported = bool(np.isfinite(low) and np.isfinite(high))
    slack = 1e-9 * max(1.0, abs(target))  # two directions of equal exponents differ by rounding
    return reported, reported and bool(low - slack <= target <= high + slack)


# ---------------------------------------------------------------------- tests

Null = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def nulls() -> Iterator[tuple[str, Null]]:
    """Responses of the same distribution at every scale."""
    for rho in CORRELATIONS:
        yield f"normal ln r, scales correlated {rho:g}", partial(autoregressive, rho)
    for rho in (0.0, 0.95):
        yield f"chi-square 3, scales correlated {rho:g}", partial(chi_squares, rho)


def autoregressive(rho: float, rng: np.random.Generator, n: int, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Ln r of a stationary process along the scales."""
    return SCALES, spread * _stationary(rho, rng, n) + 2 * SCALES[:, None]


def chi_squares(rho: float, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Ln of sums of three squares, each a stationary process along the scales."""
    return SCALES, np.log(sum(_stationary(rho, rng, n) ** 2 for _ in range(3))) + 2 * SCALES[:, None]


def _stationary(rho: float, rng: np.random.Generator, n: int) -> np.ndarray:
    z = rng.normal(size=(len(SCALES), n))
    for k in range(1, len(SCALES)):
        z[k] = rho * z[k - 1] + np.sqrt(1 - rho**2) * z[k]
    return z


def changes() -> Iterator[tuple[str, Null]]:
    """Measures that change with the scale, in the spread of ln r or in its order of directions."""

    def walk(sigma: float, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        return OCTAVES, np.cumsum(rng.normal(0, sigma, (len(LEVELS), n)), axis=0)[::-1]

    def own_exponents(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        x = DECADES - DECADES.mean()
        return DECADES, np.outer(x, 2 + 0.03 * rng.normal(size=n)) + rng.normal(size=n)

    for sigma in (0.01, 0.02):
        yield f"log-normal walk, sigma {sigma:g}", partial(walk, sigma)
    yield "exponents of their own, sd 0.03", own_exponents


def rejections(name: str, null: Null, n: int, repetitions: int, seed: list[int]) -> list[Cell]:
    """How often the p of c2 and of the split halves is at most 5 %."""
    rng = np.random.default_rng(seed)
    p = np.empty((repetitions, 2))
    for index in range(repetitions):
        x, log_r = null(rng, n)
        settings = fs.AnalysisSettings(q=(0.5, 2), bootstrap=2, permutations=199, windows=((0, len(x)),), seed=index)
        found = fs.analyse([np.exp(log_r)], np.exp(x), settings=settings)
        p[index] = found.p_value, found.split_half.p
    known, rejected = np.isfinite(p).sum(axis=0), np.sum(p <= LEVEL, axis=0)
    return [
        Cell(test, name, n, LEVEL, repetitions, int(known[column]), int(rejected[column]))
        for column, test in enumerate(("p of c2 = 0", "split-half p"))
    ]
