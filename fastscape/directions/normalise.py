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

c = 1e-12 only guards the division. Norms are Frobenius, accumulated in float64 over fixed blocks, so they do not depend
on the number of threads. A group of zero norm (biases at initialisation) gives d = 0, as the formula says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

Rule = Literal["tensor", "filter", "module", "global", "element", "none"]
OneD = Literal["same", "zero"]
ZeroNorm = Literal["skip", "error"]

RULES: tuple[str, ...] = get_args(Rule)
_GUARD = 1e-12
_BLOCK = 1 << 14  # below torch's grain size: one thread sums a block, in one order


def sum_of_squares(tensor: Tensor) -> float:
    """Sum of squares in float64, the same bits for any number of threads (blocks of 16384, then an exact sum)."""
    flat = tensor.detach().reshape(-1)
    whole = flat.numel() // _BLOCK * _BLOCK
    sums: list[float] = []
    for rows in torch.split(flat[:whole].reshape(-1, _BLOCK), 64):
        sums += rows.double().square().sum(1).tolist()
    if whole < flat.numel():
        sums.append(float(flat[whole:].double().square().sum()))
    return _exact_sum(sums)


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
        if rule not in RULES:
            raise ValueError(f"normalize must be one of {', '.join(RULES)}, got {rule!r}")
        if one_d not in (None, *get_args(OneD)):
            raise ValueError(f"one_d must be 'same', 'zero' or None, got {one_d!r}")
        if zero_norm not in get_args(ZeroNorm):
            raise ValueError(f"zero_norm must be 'skip' or 'error', got {zero_norm!r}")
        for name, dim in (filter_dim or {}).items():
            if name not in base or not -base[name].ndim <= dim < base[name].ndim:
                raise ValueError(f"filter_dim must name a dimension of a probed parameter, got {name!r}: {dim}")
        self.rule, self.names = rule, tuple(base)
        self._norm_known = dense and rule not in ("element", "none")
        self.one_d = one_d or ("zero" if rule == "filter" else "same")
        self.shapes = [tensor.shape for tensor in base.values()]
        self._dims = [(filter_dim or {}).get(name, 0) for name in base]
        self._moved = [tensor.ndim > 1 or self.one_d == "same" for tensor in base.values()]
        self._squares = [sum_of_squares(tensor) for tensor in base.values()]
        self._group = [self._group_of(name, tensor.ndim) for name, tensor in base.items()]
        self._group_squares = self._grouped(self._squares)
        self._rows = [
            _row_norms(tensor, dim) if group == "rows" else None
            for tensor, dim, group in zip(base.values(), self._dims, self._group, strict=True)
        ]
        self._magnitudes = [tensor.abs() for tensor in base.values()] if rule == "element" else None
        self.weight_norm = math.sqrt(_exact_sum(self._squares))
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

    def _group_of(self, name: str, ndim: int) -> str:
        """Name of the group whose norm scales a tensor; "rows" for one factor per filter."""
        if self.rule == "filter" and ndim > 1:
            return "rows"
        if self.rule == "module":
            return name.rpartition(".")[0]
        return "" if self.rule == "global" else name

    def _grouped(self, squares: list[float]) -> dict[str, float]:
        members: dict[str, list[float]] = {}
        for group, square, moved in zip(self._group, squares, self._moved, strict=True):
            if moved:
                members.setdefault(group, []).append(square)
        return {group: _exact_sum(values) for group, values in members.items()}

    def _still_elements(self, base: Mapping[str, Tensor]) -> dict[str, int]:
        """Number of elements with d = 0 in each tensor."""
        still = {}
        for index, (name, tensor) in enumerate(base.items()):
            rows = self._rows[index]
            if not self._moved[index]:
                still[name] = tensor.numel()
            elif self.rule == "element":
                still[name] = int((tensor == 0).sum())
            elif rows is not None:
                still[name] = int((rows == 0).sum()) * tensor.numel() // rows.numel()
            else:
                skipped = self.rule != "none" and self._group_squares[self._group[index]] == 0
                still[name] = tensor.numel() if skipped else 0
        return still

    def __call__(self, raw: list[Tensor], scale: str, dtype: torch.dtype) -> tuple[list[Tensor], float]:
        """Normalise and scale one raw direction.

        Args:
            raw: one tensor per parameter, flat or shaped; overwritten never.
            scale: ``"unit"`` gives ||d|| = 1, ``"relative"`` ||d|| = ||w||, ``"none"`` leaves the norm as it is.
            dtype: dtype of the result; factors are rounded to it once.

        Returns:
            The shaped tensors of d, and ||d||.
        """
        factors = self._factors(raw)
        norm = self._norm(raw, factors)
        if norm == 0:
            raise ValueError("a direction must not be zero after its normalisation; use another normalize or one_d='same'")
        if scale == "relative" and self.weight_norm == 0:
            raise ValueError("scale='relative' needs weights that are not all zero; use scale='unit'")
        target = {"unit": 1.0, "relative": self.weight_norm, "none": norm}[scale]
        ratio = 1.0 if target == norm else target / norm
        direction = []
        for index, (tensor, factor) in enumerate(zip(raw, factors, strict=True)):
            shaped = tensor.reshape(self.shapes[index]).to(dtype)
            if self._magnitudes is not None and self._moved[index]:
                shaped = shaped * self._magnitudes[index].to(dtype)
            scaled = factor * ratio
            direction.append(shaped * (scaled.to(dtype) if isinstance(scaled, Tensor) else scaled))
        return direction, target

    def _factors(self, raw: list[Tensor]) -> list[float | Tensor]:
        if self.rule in ("element", "none"):
            return [1.0 if moved else 0.0 for moved in self._moved]
        needs_rows = self.rule == "filter"
        squares = [
            0.0 if (needs_rows and rows is not None) or not moved else sum_of_squares(tensor)
            for tensor, rows, moved in zip(raw, self._rows, self._moved, strict=True)
        ]
        groups = self._grouped(squares)
        factors: list[float | Tensor] = []
        for index, group in enumerate(self._group):
            rows = self._rows[index]
            if not self._moved[index]:
                factors.append(0.0)
            elif rows is not None:
                noise = _row_norms(raw[index].reshape(self.shapes[index]), self._dims[index])
                shape = [1] * len(self.shapes[index])
                shape[self._dims[index]] = -1
                factors.append((rows / (noise + _GUARD)).reshape(shape))
            else:
                factors.append(math.sqrt(self._group_squares[group]) / (math.sqrt(groups[group]) + _GUARD))
        return factors

    def _norm(self, raw: list[Tensor], factors: list[float | Tensor]) -> float:
        """||d|| before step 2: the norm of the weights that move where that is known, else measured."""
        if self._norm_known:
            moved = [square for square, moves in zip(self._squares, self._moved, strict=True) if moves]
            return math.sqrt(_exact_sum(moved))
        squares = []
        for index, (tensor, factor) in enumerate(zip(raw, factors, strict=True)):
            if self._moved[index]:
                shaped = tensor.reshape(self.shapes[index]).double() * factor
                squares.append(sum_of_squares(shaped if self._magnitudes is None else shaped * self._magnitudes[index]))
        return math.sqrt(_exact_sum(squares))


def _row_norms(tensor: Tensor, dim: int) -> Tensor:
    """Norm of every slice along ``dim``, float64 ``[slices]``."""
    return tensor.detach().movedim(dim, 0).flatten(1).double().square().sum(1).sqrt()
