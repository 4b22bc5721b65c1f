r"""Direction normalisations: how a raw direction z is scaled to the weights, group by group.

========== ====================================================================== ==============================
rule        d                                                                      also known as
========== ====================================================================== ==============================
tensor      z_t ||W_t|| / (||z_t|| + c), one factor per parameter tensor           Goldstein "layer"; Török
filter      the same per slice along dim 0 (output filter, neuron row)             Li et al. 2018
module      the same per set of parameters owned by one module
global      z ||w|| / (||z|| + c)
element     z * abs(w)                                                             Goldstein "weight"; ASAM
none        z
========== ====================================================================== ==============================

c = 1e-12 only guards the division. Norms are Frobenius, accumulated in float64 in the fixed order of
:mod:`fastscape.ops.direction_dot.reference`, so they do not depend on threads, device or kernel. A group of zero norm (biases
at initialisation) gives d = 0, as the formula says.

Every rule but "element" multiplies contiguous *pieces* of a parameter (the whole of it, or its rows) by one number each, which
is what the kernels take: :meth:`Normaliser.factors`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape._checks import one_of, shown
from fastscape.objective.sharding import whole
from fastscape.ops.direction_dot.reference import squares

Rule = Literal["tensor", "filter", "module", "global", "element", "none"]
OneD = Literal["same", "zero"]
ZeroNorm = Literal["skip", "error"]

RULES: tuple[str, ...] = get_args(Rule)
_GUARD = 1e-12


def checked_filters(given: object, base: Mapping[str, Tensor]) -> Mapping[str, int]:
    """Dimensions of filters by parameter name, none for ``None``.

    Raises:
        TypeError: no mapping.
        ValueError: a name that is not probed, or a dimension that its tensor has not.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(
            f"filter_dim must map names of parameters to dimensions, got {shown(given)}; write {{{next(iter(base))!r}: 1}}"
        )
    for name, dim in given.items():
        if name not in base or not (isinstance(dim, int) and -base[name].ndim <= dim < base[name].ndim):
            raise ValueError(f"filter_dim must name a dimension of a probed parameter, got {name!r}: {shown(dim)}")
    return given


def _exact_sum(values: list[float]) -> float:
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


class Normaliser:
    """Factors that turn raw directions into normalised ones, for fixed weights.

    Args:
        base: the weights by name.
        rule: one of :data:`RULES`.
        one_d: ``"same"`` treats biases and norm parameters (ndim <= 1) like any tensor, ``"zero"`` leaves them where
            they are; ``None`` is "zero" for "filter" (Li et al.) and "same" otherwise.
        zero_norm: ``"skip"`` gives d = 0 where the weights' group has zero norm; ``"error"`` refuses.
        filter_dim: dimension of the filters of single tensors, for transposed layouts; default 0.
        dense: raw directions move every element (random ones do), so that the norm of the result is known beforehand.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        rule: Rule = "tensor",
        *,
        one_d: OneD | None = None,
        zero_norm: ZeroNorm = "skip",
        filter_dim: Mapping[str, int] | None = None,
        dense: bool = True,
    ) -> None:
        one_of("normalize", rule, RULES)
        one_of("one_d", one_d, (*get_args(OneD), None))
        one_of("zero_norm", zero_norm, get_args(ZeroNorm))
        filter_dim = checked_filters(filter_dim, base)
        self.rule, self.names = rule, tuple(base)
        self._norm_known = dense and rule not in ("element", "none")
        self.one_d = one_d or ("zero" if rule == "filter" else "same")
        self.shapes = [tensor.shape for tensor in base.values()]
        self.dims = [filter_dim.get(name, 0) % max(tensor.ndim, 1) for name, tensor in base.items()]
        self._moved = [tensor.ndim > 1 or self.one_d == "same" for tensor in base.values()]
        rows = [rule == "filter" and tensor.ndim > 1 for tensor in base.values()]
        self.pieces = [
            max(tensor.shape[dim], 1) if by_row else 1 for tensor, dim, by_row in zip(base.values(), self.dims, rows, strict=True)
        ]
        self.separable = rule != "element" and not any(dim for dim, by_row in zip(self.dims, rows, strict=True) if by_row)
        self._piece_moves = np.repeat(np.array(self._moved), self.pieces)
        self._piece_group = self._groups()
        piece_squares = self.squares(list(base.values()))
        tensor_squares = [_exact_sum(part.tolist()) for part in self._by_tensor(piece_squares)]
        self._group_norms = np.sqrt(self._grouped(piece_squares))
        self._magnitudes = self._moved_magnitudes(base) if rule == "element" else None
        self.weight_norm = math.sqrt(_exact_sum(tensor_squares))
        moved_squares = [square for square, moves in zip(tensor_squares, self._moved, strict=True) if moves]
        self._moved_norm = math.sqrt(_exact_sum(moved_squares))  # that of every direction before step 2, where it is known
        still = self._still_elements(base)
        self.skipped_fraction = sum(still.values()) / sum(tensor.numel() for tensor in base.values())
        if zero_norm == "error":
            moved = (name for name, moves in zip(self.names, self._moved, strict=True) if moves and still[name])
            first = next(moved, None)
            if first is not None:
                raise ValueError(f"zero_norm='error', got zero-norm weights in {first!r}; use zero_norm='skip'")
        if self.skipped_fraction == 1.0:
            raise ValueError(
                f"directions must move something, got zero-norm weights in every group that one_d={self.one_d!r} moves; use "
                "one_d='same' or normalize='none'"
            )

    @property
    def moved(self) -> NDArray[np.float64]:
        """One for every piece that moves, zero for the others."""
        return self._piece_moves.astype(np.float64)

    def _groups(self) -> NDArray[np.int64]:
        """Group of every piece: pieces of one group share a factor."""
        if self.rule == "global":
            return np.zeros(sum(self.pieces), dtype=np.int64)
        if self.rule == "module":
            owners = [name.rpartition(".")[0] for name in self.names]
            return np.unique(owners, return_inverse=True)[1].astype(np.int64)
        return np.arange(sum(self.pieces))

    def _by_tensor(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Values of all pieces, split into those of each tensor."""
        return np.split(values, np.cumsum(self.pieces)[:-1])

    def _moved_magnitudes(self, base: Mapping[str, Tensor]) -> list[Tensor]:
        """Absolute weights, zero where nothing moves."""
        return [t.abs() if moves else torch.zeros_like(t) for t, moves in zip(base.values(), self._moved, strict=True)]

    def _grouped(self, piece_squares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over the pieces that move, by group."""
        return np.bincount(self._piece_group, np.where(self._piece_moves, piece_squares, 0.0)).astype(np.float64)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything beside the weights, as plain JSON data."""
        return {"normalize": self.rule, "one_d": self.one_d, "filter_dims": self.dims}

    def squares(self, tensors: list[Tensor]) -> NDArray[np.float64]:
        """Sums of squares of every piece of tensors shaped or flat, float64 ``[sum(pieces)]``."""
        parts = [
            squares(tensor.reshape(shape).movedim(dim, 0) if count > 1 else tensor, count)
            for tensor, shape, dim, count in zip(
                (whole(tensor.detach()) for tensor in tensors), self.shapes, self.dims, self.pieces, strict=True
            )
        ]
        found: NDArray[np.float64] = torch.cat(parts).cpu().numpy()
        return found

    def factors(self, piece_squares: NDArray[np.float64], scale: str) -> tuple[NDArray[np.float64], float]:
        """Factor of each piece of a raw direction, and the norm of the result (all rules but "element").

        Args:
            piece_squares: sums of squares of the raw direction's pieces.
            scale: ``"unit"`` gives ||d|| = 1, ``"relative"`` ||d|| = ||w||, ``"none"`` leaves the norm as it is.
        """
        if self.rule in ("element", "none"):
            factors = self.moved
        else:
            noise = np.sqrt(self._grouped(piece_squares))
            factors = np.where(self._piece_moves, (self._group_norms / (noise + _GUARD))[self._piece_group], 0.0)
        norm = (
            self._moved_norm
            if self._norm_known
            else math.sqrt(_exact_sum(np.where(self._piece_moves, piece_squares * factors**2, 0.0).tolist()))
        )
        target = self._target(norm, scale)
        return factors if target == norm else factors * (target / norm), target

    def _target(self, norm: float, scale: str) -> float:
        if norm == 0:
            raise ValueError("a direction must not be zero after its normalisation; use another normalize or one_d='same'")
        if scale == "relative" and self.weight_norm == 0:
            raise ValueError("scale='relative' needs weights that are not all zero; use scale='unit'")
        return {"unit": 1.0, "relative": self.weight_norm, "none": norm}[scale]

    def _still_elements(self, base: Mapping[str, Tensor]) -> dict[str, int]:
        """Number of elements with d = 0 in each tensor."""
        still = {}
        zero = self._by_tensor(self._group_norms[self._piece_group] == 0)
        for name, tensor, moved, pieces in zip(base, base.values(), self._moved, zero, strict=True):
            if not moved:
                still[name] = tensor.numel()
            elif self.rule == "element":
                still[name] = int((tensor == 0).sum())
            else:
                still[name] = 0 if self.rule == "none" else int(pieces.sum()) * tensor.numel() // len(pieces)
        return still

    def __call__(
        self, raw: list[Tensor], scale: str, dtype: torch.dtype, piece_squares: NDArray[np.float64] | None = None
    ) -> tuple[list[Tensor], float]:
        """Normalise and scale one raw direction.

        Args:
            raw: one tensor per parameter, flat or shaped; overwritten never.
            scale: see :meth:`factors`.
            dtype: dtype of the result; factors are rounded to it once.
            piece_squares: sums of squares of the raw direction's pieces, where they are known.

        Returns:
            The shaped tensors of d, and ||d||.
        """
        shaped = [tensor.reshape(shape).to(dtype) for tensor, shape in zip(raw, self.shapes, strict=True)]
        if self._magnitudes is not None:
            shaped = [z * size.to(dtype) for z, size in zip(shaped, self._magnitudes, strict=True)]
            piece_squares = self.squares(self._weighted(raw))
        elif piece_squares is None:
            piece_squares = self.squares(raw)
        factors, norm = self.factors(piece_squares, scale)
        direction = []
        for z, part, dim in zip(shaped, self._by_tensor(factors), self.dims, strict=True):
            if len(part) == 1:
                direction.append(z * float(part[0]))
            else:
                shape = [1] * z.ndim
                shape[dim] = -1
                direction.append(z * torch.from_numpy(part).to(z.device, dtype).reshape(shape))
        return direction, norm

    def _weighted(self, raw: list[Tensor]) -> list[Tensor]:
        """Raw direction times the weights' magnitudes, in float64."""
        assert self._magnitudes is not None
        return [
            tensor.reshape(shape).double() * size for tensor, shape, size in zip(raw, self.shapes, self._magnitudes, strict=True)
        ]
