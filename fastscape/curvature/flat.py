"""Flat vectors over the probed parameters, and their named views."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor


class Layout:
    """Where each parameter's elements lie in a flat vector of length D.

    A block of K vectors is ``[D, K]`` to the user and rows ``[K, D]`` inside: the transpose of one is the other, without
    a copy. The view of a parameter in rows is ``[K, *shape]``.

    Attributes:
        names: of the parameters.
        shapes: of the parameters.
        slices: their ranges in the flat vector.
        size: D.
    """

    def __init__(self, names: Sequence[str], shapes: Sequence[torch.Size]) -> None:
        self.names, self.shapes = tuple(names), tuple(shapes)
        stops = list(accumulate(shape.numel() for shape in shapes))
        self.slices = tuple(slice(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True))
        self.size = stops[-1]

    @property
    def layers(self) -> dict[str, slice]:
        """Range of each parameter in the flat vector, by name."""
        return dict(zip(self.names, self.slices, strict=True))

    def views(self, rows: Tensor) -> list[Tensor]:
        """The parameters' parts ``[K, *shape]`` of rows ``[K, D]``, without a copy where rows are contiguous."""
        return [rows[:, part].reshape(len(rows), *shape) for part, shape in zip(self.slices, self.shapes, strict=True)]

    def gather(self, rows: Tensor, parts: Sequence[Tensor], weight: float, *, first: bool) -> None:
        """Write ``weight`` times parts ``[K, *shape]`` to rows ``[K, D]``, or add it where it is not the first."""
        flat = [part.reshape(len(rows), -1) for part in parts]
        if first:
            torch.cat(flat, 1, out=rows)
            if weight != 1.0:
                rows.mul_(weight)
        else:
            for where, part in zip(self.slices, flat, strict=True):
                rows[:, where].add_(part, alpha=weight)

    def flat(self, parts: Sequence[Tensor]) -> Tensor:
        """One vector ``[D]`` of parts of the parameters' shapes, a copy."""
        return torch.cat([part.reshape(-1) for part in parts])

    def rows_of(self, vectors: object, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, bool]:
        """Rows ``[K, D]`` of ``[D]``, ``[D, K]``, or a list or mapping of tensors ``[*shape]`` or ``[*shape, K]``.

        Returns:
            the rows, which of a tensor are a view, and whether there was a dimension K.

        Raises:
            TypeError, ValueError: naming what does not fit.
        """
        if isinstance(vectors, Tensor):
            return self._rows_of_tensor(vectors, dtype, device)
        parts = [_plain(part) for part in self._named(vectors)]
        extra = {part.ndim - len(shape) for part, shape in zip(parts, self.shapes, strict=True)}
        for name, part, shape in zip(self.names, parts, self.shapes, strict=True):
            if part.shape[: len(shape)] != shape or extra not in ({0}, {1}):
                raise ValueError(
                    f"vector must have the shape {tuple(shape)} or {(*shape, 'K')} at {name!r}, got {tuple(part.shape)}"
                )
        columns = torch.cat(
            [part.to(device, dtype).reshape(shape.numel(), -1) for part, shape in zip(parts, self.shapes, strict=True)]
        )
        return columns.T.contiguous(), extra == {1}

    def _rows_of_tensor(self, vectors: Tensor, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, bool]:
        if vectors.ndim not in (1, 2) or vectors.shape[0] != self.size:
            raise ValueError(f"vector must have the shape [{self.size}] or [{self.size}, K], got {tuple(vectors.shape)}")
        block = _plain(vectors).to(device, dtype)
        return (block.T, True) if block.ndim == 2 else (block.reshape(1, -1), False)

    def _named(self, vectors: object) -> list[Tensor]:
        if isinstance(vectors, Mapping):
            if set(vectors) != set(self.names):
                missing, extra = set(self.names) - set(vectors), set(vectors) - set(self.names)
                raise ValueError(
                    f"vector must name every probed parameter, got missing {sorted(missing)}, unknown {sorted(extra)}"
                )
            parts = [vectors[name] for name in self.names]
        elif isinstance(vectors, (list, tuple)):
            parts = list(vectors)
        else:
            remedy = "; convert it with torch.from_numpy, or use to_scipy()" if type(vectors).__module__ == "numpy" else ""
            raise TypeError(f"vector must be a tensor, or a list or dict of tensors, got {type(vectors).__name__}{remedy}")
        if len(parts) != len(self.names) or not all(isinstance(part, Tensor) for part in parts):
            raise ValueError(f"vector must hold one tensor for each of {len(self.names)} parameters, got {len(parts)} entries")
        return [part.detach() for part in parts]

    def like(self, rows: Tensor, vectors: object, several: bool) -> object:
        """Rows ``[K, D]`` in the form of ``vectors``."""
        if isinstance(vectors, Tensor):
            return rows.T if several else rows[0]
        parts = [view.movedim(0, -1) if several else view[0] for view in self.views(rows)]
        return dict(zip(self.names, parts, strict=True)) if isinstance(vectors, Mapping) else parts


def _plain(vector: Tensor) -> Tensor:
    """A real tensor without history, also of one made in inference mode."""
    if vector.is_complex():
        raise ValueError(f"vector must be real, got {vector.dtype}; multiply the real and the imaginary part")
    return vector.clone() if vector.is_inference() else vector.detach()


def square(parts: Iterable[Tensor]) -> float:
    """Squared Euclidean norm over tensors, in float64."""
    return math.fsum(float(part.double().square().sum()) for part in parts)


def norm(parts: Iterable[Tensor]) -> float:
    """Euclidean norm over tensors, in float64."""
    return math.sqrt(square(parts))


def dot(first: Iterable[Tensor], second: Iterable[Tensor]) -> float:
    """Inner product over tensors, in float64."""
    return math.fsum(float((a.double() * b.double()).sum()) for a, b in zip(first, second, strict=True))
