"""The points behind a response, and the response from the losses there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Radii = Sequence[float] | Array


def second_difference(losses: Tensor) -> tuple[Array, Array, Array]:
    """Even and odd responses ``[K, n]`` and base losses ``[n]`` from losses ``[n, 1 + 2 K]`` at (0, +radii, -radii)."""
    values = losses.numpy().astype(np.float64)
    scales = (values.shape[1] - 1) // 2
    base, plus, minus = values[:, :1], values[:, 1 : 1 + scales], values[:, 1 + scales :]
    with np.errstate(invalid="ignore", over="ignore"):
        return ((plus - base) + (minus - base)).T, ((plus - minus) / 2).T, base[:, 0]


def signed_radii(radii: Radii) -> list[float]:
    """(0, +radii, -radii): the row of points behind one direction's responses."""
    steps = np.asarray(radii, dtype=np.float64)
    return [0.0, *steps.tolist(), *(-steps).tolist()]


def blocks(count: int, size: int) -> list[Sequence[int]]:
    """Consecutive index ranges of at most ``size`` that cover ``count``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
