"""Raw directions with noise of its own in every element of every probed parameter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape.directions.dealt_norms import DealtNorms
from fastscape.directions.normalise import Normaliser
from fastscape.objective.sharding import Sharding
from fastscape.ops import Distribution, Norms, direction

_TOGETHER = 1 << 20  # numbers: more are not kept beside what is made of them


class Noise:
    """Raw directions (seed, index).

    Args:
        ids: of the probed parameters.
        normaliser: of them, whose shapes and pieces count.
        distribution: of the elements.
        device: where to generate.
        sharding: the processes that share the norms; ``None`` for one.

    Attributes:
        ids, distribution: as given.
        elements: numbers of a direction.
    """

    rank = None

    def __init__(
        self,
        ids: Sequence[int],
        normaliser: Normaliser,
        distribution: Distribution,
        device: torch.device,
        sharding: Sharding | None = None,
    ) -> None:
        self.ids, self.distribution, self._normaliser = list(ids), distribution, normaliser
        self._sizes = [shape.numel() for shape in normaliser.shapes]
        self._id_tensor = torch.tensor(self.ids, device=device)
        self.elements = sum(self._sizes)
        settings = (self._id_tensor, self._sizes, normaliser.pieces, distribution)
        self._norms = Norms(*settings) if sharding is None else DealtNorms(*settings, sharding)

    def raw(self, seed: int, index: int, _: torch.dtype) -> list[Tensor]:
        """One direction, flat float32 tensors."""
        return [row[0] for row in direction(self._id_tensor, seed, [index], self._sizes, self.distribution)]

    def squares(self, seed: int, index: int) -> NDArray[np.float64]:
        """Sums of squares of the pieces of a direction: a pass of the generator, except for signs."""
        if self.distribution == "gaussian":
            return self._norms(seed, index)
        pieces = self._normaliser.pieces
        return np.repeat([size / count for size, count in zip(self._sizes, pieces, strict=True)], pieces)

    def factored(self, seed: int, indices: Sequence[int], scales: NDArray[np.float64], dtype: torch.dtype) -> list[Tensor]:
        """K directions, each piece times its number of ``scales`` ``[K, sum(pieces)]``: ``[K, *shape]``."""
        cut = torch.split(torch.from_numpy(scales).to(self._id_tensor.device), self._normaliser.pieces, dim=1)
        return [
            (noise.to(dtype).reshape(*pieces.shape, -1) * pieces.to(dtype)[:, :, None]).reshape(-1, *shape)
            if noise.numel()
            else noise.to(dtype).reshape(-1, *shape)
            for noise, pieces, shape in zip(self._raw_of(seed, list(indices)), cut, self._normaliser.shapes, strict=True)
        ]

    def _raw_of(self, seed: int, indices: list[int]) -> Iterator[Tensor]:
        """Raw directions ``[K, n_t]``, tensor by tensor; those of small ones from one call."""
        if self.elements * len(indices) <= _TOGETHER:
            yield from direction(self._id_tensor, seed, indices, self._sizes, self.distribution)
            return
        for slot, size in enumerate(self._sizes):
            yield from direction(self._id_tensor[slot : slot + 1], seed, indices, [size], self.distribution)
