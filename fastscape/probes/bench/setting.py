"""What the units of a benchmark share: the objective made ready once, and what a unit is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastscape._clock import now
from fastscape._state import entered, exact_arithmetic, plain_arithmetic
from fastscape.directions import Directions
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.rounding import rounding_model
from fastscape.numerics.arrays import Array
from fastscape.objective.objective import Objective

RADII = np.geomspace(1e-3, 1e-1, 4)  # relative to ||w||
CLOSE = 1e-2  # relative deviation of forms and responses from the reference; float32 and its rounding leave 1e-5
_SOON = 0.5  # seconds of the responses of all directions beyond which one direction has to do


@dataclass
class Ready:
    """A unit that can be timed.

    Attributes:
        run: does ``items`` of them.
        context: what a run happens in, outside the clock.
        items: units in a call.
        loss: L(w) as the unit computed it, NaN where it computes none.
        values: numbers to hold against the reference of the unit's kind, ``[...]``.
        expected: of them, where they have a reference of their own.
        tolerance: of them, relative to their RMS.
        absolute: of them, in their own units.
        remark: path and why.
        moved: bytes read and written by one.
        peak: bytes alive in a call where that is known without counting.
        dtype: the arithmetic, for the rounding of ``loss``.
    """

    run: Callable[[], object]
    context: Callable[[], AbstractContextManager[None]]
    items: int = 1
    loss: float = math.nan
    values: Array | None = None
    expected: Array | None = None
    tolerance: float = CLOSE
    absolute: float = 0.0
    remark: str = ""
    moved: int = 0
    peak: int | None = None
    dtype: torch.dtype = torch.float64


@dataclass(frozen=True)
class Unit:
    """A unit before it is made ready.

    Attributes:
        name, meaning: of it.
        kind: whose values are compared with one another; the first that works is the reference.
        forwards: expected cost of making it ready and of one run, in forwards.
        make: makes it ready; whatever it raises is why it has no timings.
        rank: in the order of making ready: what a short budget can do without comes last.
    """

    name: str
    meaning: str
    kind: str
    forwards: float
    make: Callable[[], Ready]
    rank: int = 0


class Setting:
    """An objective as all units evaluate it; what they hold lives until ``stack`` is closed.

    Args:
        objective: the function.
        count: directions of a block of responses, vectors of a block of products.
        memory: bytes for each way to evaluate.
        seed: of directions.
        stack: to enter contexts in.

    Attributes:
        loss: L(w) in the objective's dtype.
        forward_seconds: of one, as the determinism gate took.
        few: directions of a call of responses: one where a forward is slow.
    """

    def __init__(self, objective: Objective, count: int, memory: int | None, seed: int, stack: ExitStack) -> None:
        self.objective, self.count, self.memory, self.stack = objective, count, memory, stack
        self.dtype = objective.dtype
        entered(stack, exact_arithmetic(self.dtype))
        self.replica = objective.replica(self.dtype)
        start = now()
        self.loss = unperturbed_loss(self.replica)
        self.forward_seconds = (now() - start) / self.replica.gate
        self.replica.reset()
        self._rounding = rounding_model(self.replica)
        self.directions = Directions(objective, count, seed=seed)
        self._seeds = itertools.count(seed + 1)
        points = 2 * len(RADII) + 1
        self.few = count if points * count * self.forward_seconds < _SOON else 1

    def noise(self, dtype: torch.dtype) -> float:
        """Rounding noise of a loss in a dtype, or in the model's own where that is wider spaced."""
        return self._rounding * max(1.0, torch.finfo(dtype).eps / torch.finfo(self.dtype).eps)

    def plain(self) -> AbstractContextManager[None]:
        """The model's own arithmetic."""
        return plain_arithmetic(self.dtype)

    def within(self, make: Callable[[], Ready]) -> Callable[[], Ready]:
        """``make`` in :meth:`plain` arithmetic, whatever evaluators are open."""

        def made() -> Ready:
            with self.plain():
                return make()

        return made

    def fresh(self) -> Directions:
        """Directions of a seed that no call has had."""
        return self.directions.with_seed(next(self._seeds))

    def rows(self, count: int, dtype: torch.dtype) -> Tensor:
        """Directions as rows ``[count, D]``."""
        return torch.cat([part.reshape(count, -1) for part in self.directions.block(range(count), dtype)], 1).contiguous()
