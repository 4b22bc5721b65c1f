"""Populations of directions whose multifractal description is known.

Exponents of moments are closed forms where there are any; everything else is that of a million directions, whose own error is 3 %
of the sampling error of a thousand. Networks are populations of 20,000 directions, sampled with replacement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma, gammaln

from fastscape.probes.multifractal.lines import slope_weights

LEVELS = np.arange(10, 0, -1)  # of cascades: radii 2^-10 .. 2^-1
OCTAVES = -np.log(2.0) * LEVELS
DECADES = np.log(np.logspace(-3, -1, 9))
LARGE = 1_000_000

Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Population:
    """Signed responses of random directions.

    Attributes:
        name: in words.
        x: ln eps ``[K]``.
        draw: a sample of n directions ``[K, n]``.
        log_moments: ln E[r^q] and its derivative by q, each ``[Q, K]``, up to the same constant at all scales, NaN where the
            moment does not exist; ``None`` where a large sample stands for them.
        large: directions that stand for the population.
    """

    name: str
    x: np.ndarray
    draw: Draw
    log_moments: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    large: int = LARGE

    def truth(self, q: np.ndarray) -> dict[str, np.ndarray]:
        """Population values of every headline number; ``tau``, ``alpha`` and ``f`` at the orders ``[Q]``."""
        signed = self.draw(np.random.default_rng(12345), self.large)
        log_r = np.log(np.abs(signed))
        a, one = slope_weights(self.x), int(np.flatnonzero(q == 1)[0])
        log_m, mean_log = self.log_moments(q) if self.log_moments else _large_moments(log_r, q)
        zeta = log_m @ a
        tau, alpha = zeta - q * zeta[one], mean_log @ a - zeta[one]
        h, variance = a @ log_r, log_r.var(axis=1)
        low, median, high = np.percentile(h, [25, 50, 75])
        return {
            "tau": tau,
            "alpha": alpha,
            "f": q * alpha - tau,
            "c1": a @ log_r.mean(axis=1),
            "c2": a @ variance,
            "spread_ratio": np.exp(-(a @ np.log(variance)) / 2 * (self.x[-1] - self.x[0])),
            "h_mean": h.mean(),
            "h_std": h.std(),
            "h_median": median,
            "h_iqr": high - low,
        }


def _large_moments(log_r: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centred = log_r - log_r.max(axis=1, keepdims=True)
    log_m, mean_log = np.empty((2, len(q), len(log_r)))
    for j, order in enumerate(q):
        power = np.exp(order * centred - (order * centred).max(axis=1, keepdims=True))
        log_m[j] = np.log(power.mean(axis=1)) + (order * log_r).max(axis=1)
        mean_log[j] = np.mean(power * log_r, axis=1) / power.mean(axis=1)
    return log_m, mean_log


def _walk(name: str, steps: Draw, log_moment: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Population:
    """Ln r at radius 2^-k is the sum of k independent steps, whose ln E[e^(q step)] and derivative are known."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        return np.exp(np.cumsum(steps(rng, n), axis=0)[::-1])

    def log_moments(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, derivative = log_moment(q)
        return np.outer(value, LEVELS), np.outer(derivative, LEVELS)

    return Population(name, OCTAVES, draw, log_moments)


def lognormal(sigma: float) -> Population:
    """Normal steps."""
    return _walk(
        f"log-normal walk, sigma {sigma:g}",
        lambda rng, n: rng.normal(0, sigma, (10, n)),
        lambda q: (sigma**2 / 2 * q**2, sigma**2 * q),
    )


def gamma_cascade(shape: float) -> Population:
    """Products of gamma variables of mean 1."""

    def log_moment(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        known = np.where(q > -shape, q, np.nan)
        return gammaln(shape + known) - gammaln(shape) - known * np.log(shape), digamma(shape + known) - np.log(shape)

    return _walk(f"gamma cascade, shape {shape:g}", lambda rng, n: np.log(rng.gamma(shape, 1 / shape, (10, n))), log_moment)


def laplace(scale: float) -> Population:
    """Laplace steps."""

    def log_moment(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u = np.where(np.abs(q * scale) < 1, q * scale, np.nan)
        return -np.log1p(-(u**2)), 2 * scale * u / (1 - u**2)

    return _walk(f"Laplace walk, scale {scale:g}", lambda rng, n: rng.laplace(0, scale, (10, n)), log_moment)


def bimodal(share: float = 0.2, h: tuple[float, float] = (1.6, 2.0), amplitude: float = 0.3) -> Population:
    """Two kinds of directions with one exponent each, of log-normal amplitudes."""
    x = DECADES - DECADES.mean()

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        return np.exp(np.outer(x, np.where(rng.random(n) < share, *h)) + amplitude * rng.normal(size=n))

    def log_moments(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        terms = np.log([share, 1 - share])[:, None, None] + q[:, None] * np.multiply.outer(np.array(h), x)[:, None, :]
        total = np.logaddexp(*terms)
        weight = np.exp(terms[0] - total)
        return total, (weight * h[0] + (1 - weight) * h[1]) * x

    return Population("two exponents", DECADES, draw, log_moments)


def weibull(shape: float = 0.7) -> Population:
    """R = W^e of a Weibull variable W, its exponent e growing with the scale."""
    e = 1 + 0.3 * (DECADES - DECADES.mean()) / np.ptp(DECADES)

    def log_moments(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = 1 + np.outer(q, e) / shape
        at = np.where(at > 0, at, np.nan)
        return gammaln(at), digamma(at) * e / shape

    return Population(f"Weibull, shape {shape:g}", DECADES, lambda rng, n: rng.weibull(shape, n) ** e[:, None], log_moments)


def quadratic(name: str, eigenvalues: np.ndarray, drift: np.ndarray) -> Population:
    """Quadratic forms of normal directions, whose eigenvalues change by a power of the radius."""
    weights = eigenvalues * np.exp(np.outer(DECADES - DECADES.mean(), drift))

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        return weights @ rng.normal(size=(len(eigenvalues), n)) ** 2

    return Population(name, DECADES, draw)


def sampled(name: str, x: np.ndarray, responses: np.ndarray) -> Population:
    """Directions of a network."""
    size = responses.shape[1]

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        return responses if n == size else responses[:, rng.integers(0, size, n)]

    return Population(name, x, draw, large=size)


def populations() -> Iterator[Callable[[], Population]]:
    """Every analytic population."""
    for sigma in (0.05, 0.1, 0.2):
        yield lambda sigma=sigma: lognormal(sigma)
    for shape in (25.0, 100.0):
        yield lambda shape=shape: gamma_cascade(shape)
    yield lambda: laplace(0.1)
    yield bimodal
    yield weibull
    yield lambda: quadratic("chi-square, 1 of 3 dominates", np.array([1, 0.02, 0.02]), np.array([0, 0.15, 0.15]))
    yield lambda: quadratic("chi-square, 4 eigenvalues", np.array([4.0, 3, 2, 1]), np.array([0, 0.1, 0.2, 0.3]))
    yield lambda: quadratic("chi-square, 20 eigenvalues", np.linspace(1, 0.3, 20), np.linspace(0, 0.4, 20))
    yield lambda: quadratic("indefinite, 20 eigenvalues", np.linspace(-1, 1.2, 20), np.linspace(0, 0.4, 20))
