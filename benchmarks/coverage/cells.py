"""One entry of the coverage table, and how a study of intervals yields them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

NOMINAL = 0.95


@dataclass(frozen=True)
class Cell:
    """How often an interval held the truth.

    Attributes:
        quantity: what was estimated.
        problem: the population.
        n: size of one sample.
        nominal: probability that the interval claims; of a test, its level.
        repetitions: samples drawn.
        reported: samples for which a result with an interval was published.
        covered: of these, how many held the truth; of a test, how many rejected.
    """

    quantity: str
    problem: str
    n: int
    nominal: float
    repetitions: int
    reported: int
    covered: int

    @property
    def share(self) -> float:
        """Covered over reported; NaN where nothing was."""
        return self.covered / self.reported if self.reported else math.nan

    @property
    def error(self) -> float:
        """Binomial standard error of the share, Agresti and Coull's: not 0 where every sample is covered."""
        trials = self.reported + 4
        centre = (self.covered + 2) / trials
        return math.sqrt(centre * (1 - centre) / trials)

    @property
    def wrong(self) -> float:
        """Intervals that miss the truth, over all samples."""
        return (self.reported - self.covered) / self.repetitions

    @property
    def withheld(self) -> float:
        """Share of the samples for which no interval was published."""
        return 1 - self.reported / self.repetitions


Job: TypeAlias = tuple[str, Callable[[], list[Cell]]]
"""Name and computation of a few cells: the unit in which an interrupted study is taken up again."""


def run(jobs: Iterator[Job]) -> Iterator[Cell]:
    """Cells of all jobs, one job after the other."""
    for _, compute in jobs:
        yield from compute()
