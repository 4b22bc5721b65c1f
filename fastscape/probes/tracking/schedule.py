"""Schedules of measurements along a training run."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastscape._checks import amount, integer, listed, reals


@dataclass(frozen=True)
class Schedule:
    """Training steps at which something is due: a list of them, or every so many.

    Attributes:
        steps: ascending; ``None`` with ``every``.
        every: steps between two that are due, from 0 on; ``None`` with ``steps``.
        total: planned steps of the run; ``None`` where they are not known.
    """

    steps: tuple[int, ...] | None = None
    every: int | None = None
    total: int | None = None

    def between(self, after: int, step: int) -> tuple[int, ...]:
        """The steps that are due in (after, step]."""
        if self.every is not None:
            first = (after // self.every + 1) * self.every if after >= 0 else 0
            return tuple(range(first, step + 1, self.every))
        assert self.steps is not None
        return self.steps[bisect.bisect_right(self.steps, after) : bisect.bisect_right(self.steps, step)]

    @property
    def count(self) -> int | None:
        """Number of steps that are due in all; ``None`` where the end is not known."""
        if self.steps is not None:
            return len(self.steps)
        return None if self.total is None or self.every is None else self.total // self.every + 1

    def fraction(self, step: int) -> float | None:
        """The share of the planned steps that is over at ``step``."""
        return None if self.total is None else step / self.total

    def words(self) -> str:
        """For a table."""
        if self.every is not None:
            return f"every {self.every} steps"
        assert self.steps is not None
        listed = ", ".join(map(str, self.steps[:12]))
        return f"steps {listed}{' ...' if len(self.steps) > 12 else ''}"


def log_spaced(total_steps: int, count: int) -> Schedule:
    r"""Step 0 and ``count - 1`` steps in geometric progression from 1 to ``total_steps``; those that round together count once.

    Raises:
        ValueError: no step, or fewer than two points.
    """
    total, points = integer("total_steps", total_steps, 1), amount("count", count, 2)
    spaced = np.unique(np.rint(np.geomspace(1, total, points - 1)).astype(int)) if points > 2 else np.array([total])
    return Schedule((0, *spaced.tolist()), total=total)


def fractions(total_steps: int, shares: Sequence[float] = (0.0, 0.001, 0.003, 0.01, 0.03, 0.06, 0.1, 0.3, 1.0)) -> Schedule:
    """Steps at fractions of the planned training; the default is dense in the first tenth, where an early signature is read.

    Args:
        total_steps: planned.
        shares: in [0, 1]; steps are rounded up, and those that round together count once.

    Raises:
        ValueError: no step, or a fraction outside [0, 1].
    """
    total = integer("total_steps", total_steps, 1)
    shares = reals("shares", shares)
    if not shares:
        raise ValueError("shares must hold at least one fraction of training, got none")
    for index, share in enumerate(shares):
        if not 0 <= share <= 1:
            raise ValueError(f"shares must lie in [0, 1], got shares[{index}] = {share!r}")
    return Schedule(tuple(sorted({math.ceil(share * total - 1e-9) for share in shares})), total=total)


def checked_schedule(when: Schedule | Sequence[int] | None, every: int | None) -> Schedule:
    """A schedule of one of the two arguments of a tracker.

    Raises:
        ValueError: both, none, or steps that are no ascending integers.
    """
    if (when is None) == (every is None):
        raise ValueError("pass either when=, such as fs.log_spaced(total_steps, 20), or every=, a number of steps")
    if every is not None:
        return Schedule(every=integer("every", every, 1))
    if isinstance(when, Schedule):
        return when
    steps = tuple(integer(f"when[{index}]", step, 0) for index, step in enumerate(listed("when", when, "steps")))
    if not steps or any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"when must be ascending steps, at least one, got {list(steps[:8])}")
    return Schedule(steps)
