"""Which scales can be believed, and which window of them is analysed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fastscape._checks import counted, integer
from fastscape.numerics.arrays import Array, Shapes

MIN_SCALES = 4
MIN_DECADES = 1.0
POSITIVE_SHARE = 0.99

Window = tuple[int, int]


@dataclass(frozen=True)
class Trust:
    """Verdict per scale, arrays ``[K]`` bool: a scale is trusted when all three hold.

    Attributes:
        finite: every loss is finite.
        above_noise: the responses stand clear of rounding.
        positive: at least 99 % of the responses are non-zero.
    """

    shapes: ClassVar[Shapes] = {"finite": "K", "above_noise": "K", "positive": "K"}
    finite: NDArray[np.bool_]
    above_noise: NDArray[np.bool_]
    positive: NDArray[np.bool_]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """All three."""
        return np.asarray(self.finite & self.above_noise & self.positive)


def trust(response: Array, above_noise: NDArray[np.bool_]) -> Trust:
    """Trust mask of signed responses ``[K, N]``, given the noise gate's verdict ``[K]``."""
    return Trust(
        finite=np.asarray(np.isfinite(response).all(axis=1)),
        above_noise=above_noise,
        positive=np.asarray(np.mean(response != 0, axis=1) >= POSITIVE_SHARE),
    )


def authors_trust(response: Array) -> NDArray[np.bool_]:
    """Török & Bartha's own test: mean/std of r over directions >= 0.35, and at least 20 % of r above 1e-20.

    It measures anisotropy, not rounding noise; only the preset ``torok2026`` uses it, and only to report.
    """
    r = np.abs(response)
    with np.errstate(invalid="ignore", divide="ignore"):
        accepted = (r.mean(axis=1) / r.std(axis=1) >= 0.35) & (np.mean(r > 1e-20, axis=1) >= 0.2)
    return np.asarray(accepted)


def longest_window(mask: NDArray[np.bool_], eps: Array) -> tuple[Window | None, str]:
    """Longest run of trusted scales with at least 4 scales and one decade, and the reason when there is none."""
    runs: list[Window] = []
    start: int | None = None
    for index, trusted in enumerate([*mask.tolist(), False]):
        if trusted and start is None:
            start = index
        elif not trusted and start is not None:
            runs.append((start, index))
            start = None
    usable = [(a, b) for a, b in runs if b - a >= MIN_SCALES and np.log10(eps[b - 1] / eps[a]) >= MIN_DECADES * (1 - 1e-9)]
    if usable:
        return max(usable, key=lambda run: run[1] - run[0]), ""
    longest = max(runs, key=lambda run: run[1] - run[0], default=None)
    found = "no scale is trusted"
    if longest is not None:
        a, b = longest
        found = (
            f"the longest run of trusted scales has {counted(b - a, 'scale')} over {np.log10(eps[b - 1] / eps[a]):.1f} decades"
        )
    return None, f"{found}; {MIN_SCALES} scales over {MIN_DECADES:g} decade are needed"


def checked_windows(windows: Sequence[Sequence[int]], scales: int) -> tuple[Window, ...]:
    """User windows as half-open index pairs, or a ValueError naming the first bad one."""
    checked = []
    for index, pair in enumerate(windows):
        if len(pair) != 2:
            raise ValueError(f"windows[{index}] must be a pair (start, stop), got {tuple(pair)}")
        start, stop = (integer(f"windows[{index}]", end, -(2**31)) for end in pair)
        if not (start >= 0 and stop <= scales and stop - start >= MIN_SCALES):
            raise ValueError(
                f"windows[{index}] must hold at least {MIN_SCALES} of the {scales} scales (half-open), got ({start}, {stop})"
            )
        checked.append((start, stop))
    if not checked:
        raise ValueError("windows must hold at least one (start, stop) pair, got none; use windows=None to choose one")
    return tuple(checked)
