"""Responses whose multifractal description is known."""

from collections.abc import Callable

import numpy as np
import pytest

Responses = tuple[np.ndarray, np.ndarray]  # radii [K] ascending, responses [K, N]


@pytest.fixture(scope="session")
def f2() -> Responses:
    """Fixture F2 of the specification: r = (1 + i) eps^(1 + i/7) + (8 - i) eps^2."""
    i, eps = np.arange(8), 2.0 ** np.arange(-6, 0)
    return eps, (1 + i) * eps[:, None] ** (1 + i / 7) + (8 - i) * eps[:, None] ** 2


@pytest.fixture(scope="session")
def random_powers() -> Responses:
    """Responses with random exponents, amplitudes, noise and signs: nothing cancels by symmetry."""
    rng = np.random.default_rng(11)
    eps = np.sort(10 ** rng.uniform(-4, -1, 9))
    log_r = rng.normal(0, 1, 40) + np.log(eps)[:, None] * rng.normal(1.5, 0.3, 40) + rng.normal(0, 0.2, (9, 40))
    return eps, np.exp(log_r) * rng.choice([-1.0, 1.0], (9, 40))


@pytest.fixture(scope="session")
def lognormal_walk() -> Callable[..., Responses]:
    """ln r[k, i] = h0 ln eps_k + sum of k steps sigma xi, eps = 2^-k, k = 1..K."""

    def draw(seed: int, directions: int, sigma: float = 0.1, scales: int = 8, h0: float = 1.0) -> Responses:
        level = np.arange(1, scales + 1)
        steps = sigma * np.random.default_rng(seed).standard_normal((scales, directions))
        log_r = -h0 * np.log(2) * level[:, None] + np.cumsum(steps, axis=0)
        return 2.0 ** -level[::-1], np.exp(log_r[::-1])

    return draw


@pytest.fixture(scope="session")
def gaussian_null() -> Callable[..., Responses]:
    """Responses without any scaling beyond eps^2: r = |g| eps^2 with g drawn afresh for each scale and direction."""

    def draw(seed: int, directions: int, scales: int = 12, decades: float = 3.0) -> Responses:
        eps = np.logspace(-decades, 0, scales) / 2
        return eps, np.abs(np.random.default_rng(seed).standard_normal((scales, directions))) * eps[:, None] ** 2

    return draw
