"""Lanes of a loss: what its propagated differences are, over all batches, and what they could not follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fastscape._deadline import check_deadline
from fastscape._heap import fit
from fastscape._state import RoundedProducts
from fastscape.differences.propagation import Propagation
from fastscape.differences.subclass import Dispatched
from fastscape.differences.triple import Frame, Moved, Products
from fastscape.directions import Directions
from fastscape.evaluation.points import Array, Radii, blocks
from fastscape.objective.objective import Objective


@dataclass(frozen=True)
class Handling:
    """Operations that difference propagation could not follow by its rules.

    Attributes:
        fallbacks: operations evaluated locally in float64: name -> calls.
        frozen: decisions of the forward that depend on the weights and were taken at w: name -> calls.
    """

    fallbacks: dict[str, int] = field(default_factory=dict)
    frozen: dict[str, int] = field(default_factory=dict)


class Lanes:
    """Propagates blocks of directions through the loss of an objective.

    Args:
        objective: the function.
        dtype: of the differences.
        products: what the operands of their matrix products are rounded to.

    Attributes:
        propagations: of every batch.
        parts: radii at a time.
        handling: what the rules could not follow.
        operations, seen: counts of what was computed.
    """

    def __init__(self, objective: Objective, dtype: torch.dtype, products: Products) -> None:
        self.objective, self.dtype, self.products = objective, dtype, products
        self.propagations: list[Propagation | Dispatched] = []
        self.parts = 1
        self.handling = Handling()
        self.operations = 0
        self.seen: Counter[Any] = Counter()

    def block(self, directions: Directions, indices: Sequence[int], dtype: torch.dtype | None = None) -> Moved:
        """A block of directions, ``[K, *shape]`` by input name, in the dtype of the lanes or another."""
        block = directions.factored(indices, dtype or self.dtype)
        return {input_name(name): tensor for name, tensor in zip(self.objective.names, block, strict=True)}

    def everywhere(self, moved: Moved, radii: Radii) -> Array:
        """Lanes of the loss, ``[K, 2, S]``, as many radii at a time as fit in memory."""
        return np.concatenate([self.at(moved, [radii[i] for i in part]) for part in blocks(len(radii), self.parts)], axis=2)

    def at(self, moved: Moved, radii: Radii, products: Products | None = None) -> Array:
        """Lanes of the loss over all batches, ``[K, 2, S]``."""
        return self._summed(moved, radii, len(next(iter(moved.values()))), 2, products=products)

    def curvature(self, moved: Moved, count: int) -> float:
        """Mean of the second derivatives at w along ``count`` directions, carried as one."""
        return float(self._summed(moved, [0.0], count + 1, 1, collapsed=True)[-1, 0, 0])

    def _summed(
        self,
        moved: Moved,
        radii: Radii,
        rows: int,
        parts: int,
        *,
        collapsed: bool = False,
        products: Products | None = None,
    ) -> Array:
        objective, rounding = self.objective, products or self.products
        steps = torch.tensor(radii, dtype=torch.float64, device=objective.device)
        total = torch.zeros(rows, parts, len(radii), dtype=torch.float64, device=objective.device)
        frame = Frame(steps, next(iter(moved.values())).dtype, rounding, collapsed)
        with rounded_products(rounding):
            for propagation, weight in zip(self.propagations, objective.batch_weights, strict=True):
                check_deadline()
                fit()
                lanes = propagation.lanes(frame, moved)
                if lanes is not None:
                    total[:, : lanes.shape[1]] += weight * lanes.double()
        self.operations += frame.operations
        self.seen.update(frame.seen)
        for mine, found in ((self.handling.fallbacks, frame.fallbacks), (self.handling.frozen, frame.frozen)):
            for name, calls in found.items():
                mine[name] = mine.get(name, 0) + calls
        return (total / objective.samples).cpu().numpy()


def input_name(name: str) -> str:
    """The input of a program that a parameter is."""
    return f"parameter:model.{name}"


def rounded_products(products: Products) -> AbstractContextManager[None]:
    """Matrix products of float32 operands in bfloat16 with float32 sums, where the device has them, inside the block."""
    return nullcontext() if products == "float32" else RoundedProducts()
