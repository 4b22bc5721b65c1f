r"""Random directions of low rank: for a matrix W of m rows, :math:`z = U^\top V / \sqrt r` with r rows of noise in U and in V.

A tensor of more than one dimension is the matrix ``[shape[0], rest]``; one that is a vector in truth (a bias, a matrix of one row
or column) has noise of its own, the bits of a direction without rank. U ``[r, m]`` and V ``[r, n]`` are raw directions
(:mod:`fastscape.ops.direction`) of ids of their own, so that the first rows of both are the same for every rank. Elements
are uncorrelated and of variance one, so that E[z z'] = I, but not independent: forms z'Hz scatter more, and have heavier tails,
than along noise of every element.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape.directions.normalise import Normaliser
from fastscape.ops import Distribution, direction, tensor_ids
from fastscape.ops.direction_dot.reference import dots, squares

_USUAL = 16  # a rank that every model takes, also one of smaller matrices
_SIDES = ("left", "right")


@dataclass(frozen=True)
class Factors:
    r"""K directions of one parameter, :math:`d_k = U_k^\top V_k`, never multiplied out unless asked for.

    Attributes:
        left: U, ``[K, r, shape[0]]``.
        right: V, ``[K, r, rest]``.
        shape: of the parameter.
    """

    left: Tensor
    right: Tensor
    shape: torch.Size

    def __len__(self) -> int:
        return len(self.left)

    @property
    def dtype(self) -> torch.dtype:
        """Of both factors."""
        return self.left.dtype

    @property
    def rank(self) -> int:
        """Rows of each factor, r."""
        return self.left.shape[1]

    @property
    def transposed(self) -> Factors:
        """Those of the transposed matrix."""
        assert len(self.shape) == 2
        return Factors(self.right, self.left, torch.Size(reversed(self.shape)))

    def dense(self) -> Tensor:
        """The directions as tensors, ``[K, *shape]``: products added in the order of the ranks, the same bits everywhere."""
        out = self.left[:, 0, :, None] * self.right[:, 0, None, :]
        for place in range(1, self.rank):
            out += self.left[:, place, :, None] * self.right[:, place, None, :]
        return out.reshape(len(self), *self.shape)


class LowRank:
    """Raw directions of rank r of a model's parameters.

    Args:
        names: of all parameters of the model.
        normaliser: of the probed ones, whose names and shapes count.
        rank: r.
        distribution: of the elements of U and V.
        device: where to generate.
    """

    def __init__(
        self, names: Iterable[str], normaliser: Normaliser, rank: int, distribution: Distribution, device: torch.device
    ) -> None:
        names = list(names)
        known = tensor_ids([*names, *(f"{name}\0{side}" for name in names for side in _SIDES)])
        self.rank, self._distribution, self._normaliser = rank, distribution, normaliser
        self._matrices = [is_matrix(shape) for shape in normaliser.shapes]
        sides = (min(_sides(shape)) for shape, matrix in zip(normaliser.shapes, self._matrices, strict=True) if matrix)
        most = max((_USUAL, *sides))
        if rank > most:
            raise ValueError(
                f"rank must be at most {most}, the smaller side of the largest matrix, got {rank}; pass rank=None for noise in "
                "every element"
            )
        ids: list[int] = []
        self._sizes: list[int] = []
        for name, shape, matrix in zip(normaliser.names, normaliser.shapes, self._matrices, strict=True):
            ids += [known[f"{name}\0{side}"] for side in _SIDES] if matrix else [known[name]]
            self._sizes += [rank * shape[0], rank * (shape.numel() // shape[0])] if matrix else [shape.numel()]
        self.elements = sum(self._sizes)  # numbers that stand for one direction
        self._ids = torch.tensor(ids, dtype=torch.int64, device=device)

    def drawn(self, seed: int, indices: Sequence[int]) -> list[Tensor | Factors]:
        r"""K raw directions in float32, in the order of the parameters: vectors ``[K, n]``, factors of :math:`\sqrt r\, z`."""
        flat = iter(direction(self._ids, seed, list(indices), self._sizes, self._distribution))
        found: list[Tensor | Factors] = []
        for shape, matrix in zip(self._normaliser.shapes, self._matrices, strict=True):
            if not matrix:
                found.append(next(flat))
                continue
            left, right = (next(flat).reshape(len(indices), self.rank, -1) for _ in _SIDES)
            found.append(Factors(left, right, shape))
        return found

    def raw(self, seed: int, index: int, dtype: torch.dtype) -> list[Tensor]:
        """One raw direction as tensors, rounded once from float64."""
        return [part[0] if isinstance(part, Tensor) else self._dense(part)[0].to(dtype) for part in self.drawn(seed, [index])]

    def factored(
        self, seed: int, indices: Sequence[int], scales: NDArray[np.float64], dtype: torch.dtype
    ) -> list[Tensor | Factors]:
        """K directions, by factors where these are fewer numbers.

        Args:
            seed, indices: of the directions.
            scales: of their pieces, ``[K, sum(pieces)]``.
            dtype: of the result.
        """
        drawn = self.drawn(seed, indices)
        cut = torch.split(torch.from_numpy(scales).to(self._ids.device), self._normaliser.pieces, dim=1)
        found: list[Tensor | Factors] = []
        for part, factor, dim in zip(drawn, cut, self._normaliser.dims, strict=True):
            if isinstance(part, Tensor):
                shape = self._normaliser.shapes[len(found)]
                found.append((part.to(dtype) * factor.to(dtype)).reshape(-1, *shape))
            elif part.rank * sum(_sides(part.shape)) < part.shape.numel() and (factor.shape[1] == 1 or not dim):
                left = part.left.to(dtype) * (factor / math.sqrt(self.rank)).to(dtype)[:, None]
                found.append(Factors(left, part.right.to(dtype), part.shape))
            else:
                along = [1] * (len(part.shape) + 1)
                along[0], along[dim + 1] = factor.shape
                found.append(self._dense(part).to(dtype) * factor.to(dtype).reshape(along))
        return found

    def squares(self, seed: int, index: int) -> NDArray[np.float64]:
        r"""Sums of squares of the pieces of a raw direction, from the Gram matrices of its factors.

        .. math:: \|U^\top V\|^2 = \sum_{c c'} (U U^\top)_{c c'} (V V^\top)_{c c'}, \qquad
                  \|u_o^\top V\|^2 = u_o^\top V V^\top u_o

        In the order of additions of :mod:`fastscape.ops.direction_dot.reference`, so that the bits are the same everywhere.
        """
        parts = []
        rules = zip(self._normaliser.pieces, self._normaliser.dims, strict=True)
        for part, (pieces, dim) in zip(self.drawn(seed, [index]), rules, strict=True):
            if isinstance(part, Tensor):
                parts.append(squares(part[0]))
                continue
            if pieces > 1 and dim:
                parts.append(squares(self._dense(part)[0].movedim(dim, 0), pieces))
                continue
            right = self._gram(part.right[0])
            if pieces == 1:
                terms = (self._gram(part.left[0]) * right).flatten().tolist()
                parts.append(torch.tensor([max(math.fsum(terms), 0.0) / self.rank], dtype=torch.float64))
                continue
            rows = torch.zeros(pieces, dtype=torch.float64, device=self._ids.device)
            for one, line in zip(part.left[0].double(), right, strict=True):
                for other, number in zip(part.left[0].double(), line.tolist(), strict=True):
                    rows += one * other * number
            parts.append(rows.clamp_min(0.0) / self.rank)
        found: NDArray[np.float64] = torch.cat([part.cpu() for part in parts]).numpy()
        return found

    def _gram(self, rows: Tensor) -> Tensor:
        """Inner products of the rows of a factor, float64 ``[r, r]`` on the CPU."""
        if self._distribution == "rademacher":  # whole numbers: exact in any order
            wide = rows.double()
            return (wide @ wide.T).cpu()
        return torch.stack([dots(row[None], rows, 1)[:, 0] for row in rows]).cpu()

    def _dense(self, part: Factors) -> Tensor:
        """Raw directions in float64, ``[K, *shape]``."""
        if self._distribution == "rademacher":  # whole numbers: exact in any order
            return (part.left.double().mT @ part.right.double()).reshape(-1, *part.shape) / math.sqrt(self.rank)
        return Factors(part.left.double(), part.right.double(), part.shape).dense() / math.sqrt(self.rank)


def is_matrix(shape: torch.Size) -> bool:
    """Whether directions of a tensor of this shape have a rank."""
    return len(shape) > 1 and min(_sides(shape)) > 1


def _sides(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of the matrix that a tensor of more than one dimension is."""
    return shape[0], shape[1:].numel()
