"""A share of the time of a training run, earned while it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastscape._checks import real, shown
from fastscape._clock import now


class Allowance:
    r"""Account of the time that measurements may take: ``share`` times the time spent training.

    The time between two visits is training, the time within them is not.

    Args:
        share: positive, such as 0.05.
        clock: monotonic seconds; tests pass a simulated one.

    Attributes:
        training, spent: seconds so far.
        visits: of the training loop.

    Raises:
        ValueError: a share that is not positive and finite.
    """

    def __init__(self, share: float, clock: Callable[[], float] = now) -> None:
        if not (real(share) and 0 < share < math.inf):
            raise ValueError(
                f"share must be a positive fraction of the training time, such as 0.05, got {share!r}; math.inf is not one"
            )
        if not callable(clock):
            raise TypeError(f"clock must be a function that gives seconds, got {shown(clock)}")
        self.share, self.clock = float(share), clock
        self.training = self.spent = 0.0
        self.visits = 0
        self._left: float | None = None
        self._mark = 0.0

    @property
    def earned(self) -> float:
        """Seconds that have been earned."""
        return self.share * self.training

    @property
    def balance(self) -> float:
        """Seconds earned and not spent, those of the running visit included; negative where a measurement took longer."""
        return self.earned - self.spent

    @property
    def step_seconds(self) -> float:
        """Training time per visit; 0 before the second."""
        return self.training / (self.visits - 1) if self.visits > 1 else 0.0

    @contextmanager
    def visit(self) -> Iterator[None]:
        """A visit of the training loop; what came since the last one was training."""
        self._mark = self.clock()
        if self._left is not None:
            self.training += self._mark - self._left
        self.visits += 1
        try:
            yield
        finally:
            self.settle()
            self._left = self._mark

    def settle(self) -> None:
        """Book the time of the running visit so far."""
        moment = self.clock()
        self.spent += moment - self._mark
        self._mark = moment

    def waited(self) -> None:
        """Book the time since the visit began, or was last settled, as training: it was waited for work of the training."""
        moment = self.clock()
        self.training += moment - self._mark
        self._mark = moment

    def restore(self, training: float, spent: float) -> None:
        """Continue the account of an earlier process."""
        self.training, self.spent = self.training + training, self.spent + spent
