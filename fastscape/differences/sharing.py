r"""Small radii of a smooth network: its divided differences are even analytic functions of the radius.

.. math:: D(e) = D(0) + c\,e^2 + O(e^4)

Where the second term is below a thousandth of the first, the third is below a millionth, and D at the largest such radius and at
zero give D at all radii between. Networks with kinks have no such expansion and are not shared.
"""

from __future__ import annotations

import numpy as np

from fastscape.evaluation.points import Array

BEND = 3e-4  # largest D(e) - D(0), relative to D: what is left out is of the order of its square
MARGIN = 0.2  # of it, when the radius is chosen from few directions: others bend more
AGREE = 2e-6  # between what was computed and what is interpolated, where both are known
LEAST = 3  # radii that are worth sharing: they cost two


def _size(values: Array) -> Array:
    """A magnitude for every direction, ``[K, 2, 1]``: its own at radius zero, or a part of the typical one."""
    own = np.abs(values[:, :, :1])
    with np.errstate(invalid="ignore"):
        typical: Array = np.sqrt(np.mean(own**2, axis=0, keepdims=True))
    return np.maximum(own, 0.1 * typical)


def interpolated(zero: Array, last: Array, radii: Array) -> Array:
    """D at radii up to the last one, ``[K, 2, count]``, from D at zero and at the last radius, ``[K, 2, 1]``."""
    result: Array = zero + (last - zero) * (radii / radii[-1]) ** 2
    return result


def shareable(values: Array, radii: Array) -> int:
    """Number of the smallest radii that can be shared, from D at zero and at all of them, ``[K, 2, 1 + S]``; 0 if too few."""
    if not np.isfinite(values).all():
        return 0
    size = _size(values)
    for count in range(len(radii), LEAST - 1, -1):
        if bends(values[:, :, : 1 + count], MARGIN, size):
            continue
        guess = interpolated(values[:, :, :1], values[:, :, count : count + 1], radii[:count])
        if (np.abs(guess - values[:, :, 1 : 1 + count]) <= AGREE * size).all():
            return count
    return 0


def bends(values: Array, share: float = 1.0, size: Array | None = None) -> bool:
    """Whether D at the last radius of ``[K, 2, ...]`` is too far from D at the first, or not finite."""
    gap = np.abs(values[:, :, -1:] - values[:, :, :1])
    return not bool((gap <= share * BEND * (_size(values) if size is None else size)).all())
