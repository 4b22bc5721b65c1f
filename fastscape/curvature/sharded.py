"""Products with the Hessian of a sharded model (FSDP2): differences of gradients, on the user's own module."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fastscape._clock import now
from fastscape._state import exact_arithmetic
from fastscape.curvature.choice import ProductChoice
from fastscape.curvature.flat import Layout
from fastscape.curvature.gradient_difference import DifferencePath
from fastscape.curvature.operator import SymmetricOperator
from fastscape.curvature.program import Parts
from fastscape.evaluation.points import Array
from fastscape.objective.objective import Objective
from fastscape.objective.sharded_replica import ShardedReplica
from fastscape.objective.sharding import ShardedModelError, needs_whole

_NAME = DifferencePath.name


class ShardedHessian(SymmetricOperator):
    """The Hessian of a sharded model at its present weights; all processes multiply together, the same vectors.

    FSDP2 has no second derivatives, so products are central differences of two gradients
    (:class:`fastscape.curvature.gradient_difference.DifferencePath`): equal to rounding and to ``choice.error``, not to the bit,
    since gradients are summed over the processes in their order. Vectors are whole in every process.

    Args:
        objective: of the sharded model.
        path: ``"gradient difference"`` or ``None``.

    Attributes:
        batch_weights: one entry: the batches are dealt to the processes and not told apart.
        products, nan_products: vectors multiplied so far, and those of them with NaN or inf in the product.

    Raises:
        ShardedModelError: another path, or settings of FSDP2 by which gradients are others.

    Cost: two gradients a product, 6 to 24 on the first; memory of three copies of the local shards, and of the vectors.
    """

    def __init__(self, objective: Objective, path: str | None = None) -> None:
        if path not in (None, _NAME):
            raise ShardedModelError(f"method must be {_NAME!r} or None for a sharded model, got {path!r}: it has no other")
        if objective.dtype not in (torch.float32, torch.float64):
            raise needs_whole(f"curvature in {objective.dtype}")
        self.objective = objective
        self.layout = Layout(objective.names, [tensor.shape for tensor in objective.base.values()])
        self.dtype, self.device = objective.dtype, objective.device
        self.batch_weights, self.notes = (objective.samples,), ()
        self.products = self.nan_products = 0
        self._seconds = math.nan
        with self.session():
            self._loss = _Differentiated(ShardedReplica(objective, self.dtype))
            self._path = DifferencePath(self._loss, self._loss.length)

    @contextmanager
    def session(self) -> Iterator[None]:
        """See :class:`SymmetricOperator`."""
        with exact_arithmetic(self.dtype), self.objective.held():
            yield

    def rows(self, rows: Tensor) -> Tensor:
        """See :class:`SymmetricOperator`."""
        rows = rows.contiguous()
        out = torch.empty_like(rows)
        with self.session():
            product = self._path.build(0)
            for row, target in zip(rows, out, strict=True):
                target.copy_(self._loss.gathered(product(self._loss.own(row, self.layout)), self.layout))
        self.products += len(rows)
        self.nan_products += int((~out.sum(1).isfinite()).sum())
        return out

    def forms(self, block: Tensor) -> tuple[Tensor, Array]:
        """H V of ``[D, K]``, and v'Hv ``[1, K]``."""
        images = self.matmat(block)
        found: Array = (block.double() * images.double()).sum(0, keepdim=True).cpu().numpy()
        return images, found

    @property
    def choice(self) -> ProductChoice:
        """How products are computed."""
        return ProductChoice(
            name=_NAME,
            chunk=1,
            gradients=2.0,
            gradient_seconds=self._loss.seconds,
            seconds={},
            peak=0,
            refused={},
            error=self._path.error or 0.0,
            asymmetry=math.nan,
            reason="a sharded model has no second derivatives",
        )


class _Differentiated:
    """The loss as :class:`DifferencePath` takes it: parts are what this process holds, ``[*shape]`` of its shards."""

    narrow: tuple[torch.dtype, str] | None = None

    def __init__(self, replica: ShardedReplica) -> None:
        self._replica = replica
        self.seconds = math.nan  # of a gradient

    @property
    def leaves(self) -> Parts:
        """The local shards."""
        return self._replica.scratch

    def gradient(self, _batch: int) -> Parts:
        """The gradient over all batches."""
        start = now()
        self._replica.sharding.reshard()
        found = self._replica.gradient()
        self.seconds = min(now() - start, self.seconds if self.seconds == self.seconds else math.inf)
        return found

    def length(self, parts: Parts) -> float:
        """Norm over the processes, the same number in all."""
        sharding, held = self._replica.sharding, self._replica.parts
        mine = [part for part, where in zip(parts, held, strict=True) if self._counts(where.replicated)]
        squares = torch.zeros(sharding.count, dtype=torch.float64, device=self._replica.objective.device)
        squares[sharding.index] = sum(part.double().square().sum() for part in mine)
        return math.sqrt(sum(sharding.sum(squares).tolist()))

    def _counts(self, replicated: bool) -> bool:
        """Whether this process speaks for a part: of those that all hold, the first does."""
        return not replicated or self._replica.sharding.index == 0

    def own(self, row: Tensor, layout: Layout) -> list[Tensor]:
        """What this process holds of a vector ``[D]``: ``[1, *shape]`` each."""
        cut = zip(layout.slices, self._replica.parts, strict=True)
        return [row[at][part.first : part.first + part.local.numel()].view(1, *part.local.shape) for at, part in cut]

    def gathered(self, parts: Sequence[Tensor], layout: Layout) -> Tensor:
        """The vector ``[D]`` of what the processes hold; a sum in which each element comes from one alone."""
        whole = parts[0].new_zeros(layout.size)
        for at, part, where in zip(layout.slices, parts, self._replica.parts, strict=True):
            if self._counts(where.replicated):
                whole[at][where.first : where.first + part.numel()] = part.reshape(-1)
        return self._replica.sharding.sum(whole)
