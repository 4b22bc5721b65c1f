"""Responses of a block of directions, by halves where memory runs out."""

from __future__ import annotations

import numpy as np

from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.directions import Directions
from fastscape.evaluation.evaluator import Evaluator
from fastscape.evaluation.points import Radii, blocks
from fastscape.runs.memory import free_caches, out_of_memory
from fastscape.runs.units import encode


class Halving:
    """The bytes of blocks; after a lack of memory fewer directions at a time.

    Attributes:
        lanes: directions evaluated at a time since memory ran out; ``None`` where it never did. Then the last bits may be others
            than the plan gives.
    """

    def __init__(self) -> None:
        self.lanes: int | None = None

    def __call__(self, evaluator: Evaluator | DifferenceEvaluator, directions: Directions, indices: range, radii: Radii) -> bytes:
        """Responses of consecutive directions, as :func:`fastscape.runs.units.encode` writes them."""
        size = len(indices) if self.lanes is None else min(self.lanes, len(indices))
        while True:
            try:
                slices = (indices[block[0] : block[-1] + 1] for block in blocks(len(indices), size))
                parts = [evaluator.responses(directions, part, radii) for part in slices]
                even, odd = (np.concatenate([part[index] for part in parts], axis=1) for index in (0, 1))
                return encode(even, odd, parts[0][2][0])
            except Exception as error:
                if size == 1 or not out_of_memory(error):
                    raise
            self.lanes = size = size // 2
            free_caches()  # after the exception, whose frames hold what did not fit
