"""Directions in parameter space: random ones rebuilt from (seed, index), and given ones."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape._checks import integer, one_of
from fastscape.directions.dealt_norms import DealtNorms
from fastscape.directions.normalise import Normaliser, OneD, Rule, ZeroNorm
from fastscape.objective.arguments import matched_state
from fastscape.objective.batches import fingerprint
from fastscape.objective.objective import Objective, checked_objective
from fastscape.objective.sharding import needs_whole
from fastscape.ops import Distribution, Norms, direction, tensor_ids

Scale = Literal["unit", "relative", "none"]
_KEPT = 1 << 14  # norms of directions that are kept: 128 KiB


class Directions:
    r"""Normalised directions :math:`d_0, \dots, d_{n-1}` in the space of an objective's parameters.

    Direction i is drawn from a counter-based generator keyed by (seed, i, parameter name, element), so its raw bits do
    not depend on the number of directions, the order they are asked for, or which other parameters are probed, and
    nothing is stored. It is then normalised to the weights as they are *now* (:mod:`fastscape.directions.normalise`) and
    scaled: :math:`\|d\| = 1` for ``scale="unit"`` (radii are absolute distances), :math:`\|d\| = \|w\|` for
    ``"relative"`` (radii are relative to the weights).

    Args:
        objective: whose parameters the directions move.
        count: how many; the first n of m directions are the same for every m.
        seed: 64-bit key of the generator.
        distribution: ``"gaussian"`` or ``"rademacher"``.
        normalize: ``"tensor"``, ``"filter"``, ``"module"``, ``"global"``, ``"element"`` or ``"none"``.
        scale: ``"unit"``, ``"relative"`` or ``"none"`` (keep the norm that the normalisation gives).
        one_d, zero_norm, filter_dim: see :class:`fastscape.directions.normalise.Normaliser`.

    Raises:
        ValueError: naming the argument, its value and the allowed ones.

    Cost: two generations per direction asked for, one for the norms (the first 16384 are kept) and one for the values: 1 to 3 ns
    per normal with the native library, about 40 without; memory of one direction. The evaluation engine stores none: see
    :meth:`scales`.

    Example:
        >>> import torch, fastscape as fs
        >>> model = torch.nn.Linear(4, 3)
        >>> objective = fs.Objective(model, [(torch.ones(2, 4), torch.tensor([0, 2]))],
        ...                          criterion=torch.nn.functional.cross_entropy)
        >>> directions = fs.Directions(objective, count=8, seed=1)
        >>> {name: tuple(tensor.shape) for name, tensor in directions[7].items()}
        {'weight': (3, 4), 'bias': (3,)}
    """

    def __init__(
        self,
        objective: Objective,
        count: int = 64,
        *,
        seed: int = 0,
        distribution: Distribution = "gaussian",
        normalize: Rule = "tensor",
        scale: Scale = "relative",
        one_d: OneD | None = None,
        zero_norm: ZeroNorm = "skip",
        filter_dim: Mapping[str, int] | None = None,
    ) -> None:
        checked_objective(objective, sharded=True)
        one_of("distribution", distribution, get_args(Distribution))
        count, seed = integer("count", count, 1, 2**32 + 1), integer("seed", seed, 0, 2**64)
        known = tensor_ids(name for name, _ in objective.model.named_parameters())
        self.ids: list[int] = [known[name] for name in objective.names]
        self._id_tensor = torch.tensor(self.ids, device=objective.device)
        self._given: list[list[Tensor]] | None = None
        self.seed: int | None = seed
        self.distribution: str = distribution
        self._finish(
            objective,
            count,
            Normaliser(objective.base, normalize, one_d=one_d, zero_norm=zero_norm, filter_dim=filter_dim),
            scale,
        )
        if objective.sharding is None:
            self._norms: Norms | DealtNorms = Norms(self._id_tensor, self._sizes, self.normaliser.pieces, distribution)
            return
        if not self.normaliser.separable:
            raise needs_whole("normalize='element' and filters along other dimensions than 0")
        self._norms = DealtNorms(self._id_tensor, self._sizes, self.normaliser.pieces, distribution, objective.sharding)

    def _finish(self, objective: Objective, count: int, normaliser: Normaliser, scale: Scale) -> None:
        one_of("scale", scale, get_args(Scale))
        self.count, self.scale, self.names = count, scale, objective.names
        self.dtype = objective.dtype
        self.normalize: str = normaliser.rule
        self.normaliser = normaliser
        self._sizes = [shape.numel() for shape in normaliser.shapes]
        self._squares: dict[int, NDArray[np.float64]] = {}  # of the raw directions' pieces, by index

    def with_seed(self, seed: int) -> Directions:
        """The same kind of random directions with another seed; the weights are not read again."""
        if self.seed is None:
            raise ValueError("with_seed needs random directions, got given ones")
        other = copy.copy(self)
        other.seed, other._squares = seed, {}
        return other

    @classmethod
    def given(
        cls,
        objective: Objective,
        tensors: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
        *,
        normalize: Rule = "none",
        scale: Scale = "unit",
    ) -> Directions:
        """Directions from tensors by parameter name: eigenvectors, optimiser moments, a plane of interest.

        Args:
            objective: whose parameters they move.
            tensors: one mapping name -> tensor per direction (or a single mapping); names that are absent do not move.
            normalize, scale: as for random directions; by default only the length is set to 1.

        Raises:
            ValueError: unknown names, wrong shapes, or a direction that is zero or not finite.
        """
        if checked_objective(objective, sharded=True).sharding is not None:
            raise needs_whole("given directions")
        stored = _stored(objective, tensors)
        self = object.__new__(cls)
        self._given, self.ids = stored, []
        self.seed, self.distribution = None, "given"
        self._finish(objective, len(stored), Normaliser(objective.base, normalize, dense=False), scale)
        return self

    @classmethod
    def difference(
        cls, objective: Objective, start: Mapping[str, Tensor], end: Mapping[str, Tensor], *, scale: Scale = "unit"
    ) -> Directions:
        """The direction from one state dict to another: ``end - start`` over the probed parameters, in float64."""
        first, second = (matched_state(objective.model, state) for state in (start, end))
        steps = {name: (second[name].double() - first[name].double()).to(objective.device) for name in objective.names}
        return cls.given(objective, steps, scale=scale)

    @classmethod
    def gradient(cls, objective: Objective, *, scale: Scale = "unit") -> Directions:
        """The gradient of the objective's loss, in its dtype. Cost: one forward and backward per batch."""
        return cls.given(objective, objective.gradient(), scale=scale)

    def check(self, objective: Objective) -> None:
        """Raise a ValueError unless these directions move this objective's parameters."""
        shapes = [tensor.shape for tensor in objective.base.values()]
        if self.names != objective.names or shapes != self.normaliser.shapes:
            raise ValueError(
                f"directions must be made for this objective, got ones that move {', '.join(self.names[:3])} ... "
                f"({len(self.names)} tensors); make fs.Directions(objective, ...)"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that they depend on beside the weights, as plain JSON data; given ones by a fingerprint."""
        given = None if self._given is None else fingerprint((str(index), row) for index, row in enumerate(self._given))
        names = ("seed", "count", "distribution", "normalize", "scale")
        return {name: getattr(self, name) for name in names} | self.normaliser.settings | {"given": given}

    @property
    def skipped_fraction(self) -> float:
        """Share of the parameters that no direction moves (zero-norm groups, biases under ``one_d="zero"``)."""
        return self.normaliser.skipped_fraction

    @property
    def weight_norm(self) -> float:
        """||w|| at the time the directions were made, in float64."""
        return self.normaliser.weight_norm

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Direction ``index`` as name -> tensor, in the objective's dtype."""
        try:
            position = operator.index(index)
        except TypeError as error:
            raise TypeError(f"a direction is taken by its index, an integer, got {index!r}") from error
        if not -self.count <= position < self.count:
            raise IndexError(f"direction {position} is out of range for {self.count} directions")
        return dict(zip(self.names, self.tensors(position % self.count)[0], strict=True))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[index] for index in range(self.count))

    def tensors(self, index: int, dtype: torch.dtype | None = None) -> tuple[list[Tensor], float]:
        """Direction ``index`` as tensors in the order of ``names``, in ``dtype``, and its norm."""
        with torch.no_grad():
            known = self._piece_squares(index) if self.separable else None
            return self.normaliser(self._raw(index), self.scale, dtype or self.dtype, known)

    def block(self, indices: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
        """Several directions at once: ``[len(indices), *shape]`` in the order of ``names``, in ``dtype``."""
        with torch.no_grad():
            if not self.separable:
                rows = [self.tensors(index, dtype)[0] for index in indices]
                return [torch.stack(column) for column in zip(*rows, strict=True)]
            assert self.seed is not None
            raw = direction(self._id_tensor, self.seed, list(indices), self._sizes, self._kind)
            scales = torch.from_numpy(np.stack([self.scales(index) for index in indices])).to(raw[0].device)
            cut = torch.split(scales, self.normaliser.pieces, dim=1)
            return [
                (noise.to(dtype).reshape(*pieces.shape, -1) * pieces.to(dtype)[:, :, None]).reshape(-1, *shape)
                if noise.numel()
                else noise.to(dtype).reshape(-1, *shape)
                for noise, pieces, shape in zip(raw, cut, self.normaliser.shapes, strict=True)
            ]

    @property
    def separable(self) -> bool:
        """Whether a direction is its raw noise times one number per piece of a parameter, which is what the kernels take."""
        return self._given is None and self.normaliser.separable

    def scales(self, index: int, piece_squares: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Factor of each piece of raw direction ``index``, ``[sum(normaliser.pieces)]``; for separable directions.

        Args:
            index: of the direction.
            piece_squares: sums of squares of its pieces, where the caller has them.
        """
        known = self._piece_squares(index) if piece_squares is None else piece_squares
        return self.normaliser.factors(known, self.scale)[0]

    def length(self, index: int) -> float:
        """||d|| of direction ``index``."""
        if self.separable:
            return self.normaliser.factors(self._piece_squares(index), self.scale)[1]
        return self.tensors(index)[1]

    def _raw(self, index: int) -> list[Tensor]:
        if self._given is not None:
            return self._given[index]
        assert self.seed is not None
        return [row[0] for row in direction(self._id_tensor, self.seed, [index], self._sizes, self._kind)]

    def _piece_squares(self, index: int) -> NDArray[np.float64]:
        """Sums of squares of the raw direction's pieces, kept: a pass of the generator each, except for signs."""
        if self.distribution == "rademacher":
            return self._piece_sizes
        found = self._squares.get(index)
        if found is None:
            assert self.seed is not None
            found = self._norms(self.seed, index)
            if len(self._squares) * len(found) < _KEPT:
                self._squares[index] = found
        return found

    @property
    def _piece_sizes(self) -> NDArray[np.float64]:
        pieces = self.normaliser.pieces
        return np.repeat([size / count for size, count in zip(self._sizes, pieces, strict=True)], pieces)

    @property
    def _kind(self) -> Distribution:
        return cast(Distribution, self.distribution)


def _stored(objective: Objective, tensors: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]) -> list[list[Tensor]]:
    """Given directions as tensors in the order of the objective's parameters, in float64; zeros where they do not move."""
    checked_objective(objective)
    rows = [tensors] if isinstance(tensors, Mapping) else list(tensors)
    if not rows:
        raise ValueError("tensors must hold at least one direction, got none")
    base = objective.base
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(
                f"tensors[{index}] must map parameter names to tensors, got {type(row).__name__}; write such as "
                f"dict(zip(objective.names, parts))"
            )
        for name, tensor in row.items():
            if name not in base:
                raise ValueError(f"tensors[{index}] names {name!r}, which is not a probed parameter of the objective")
            if tensor.shape != base[name].shape:
                raise ValueError(
                    f"tensors[{index}][{name!r}] must have shape {tuple(base[name].shape)}, got {tuple(tensor.shape)}"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"tensors[{index}][{name!r}] must be finite, got NaN or inf")
        if not any(bool(tensor.any()) for tensor in row.values()):
            raise ValueError(f"tensors[{index}] must not be zero")
    return [
        [
            row[name].detach().to(w.device, torch.float64) if name in row else torch.zeros_like(w).double()
            for name, w in base.items()
        ]
        for row in rows
    ]


def checked_directions(value: object) -> Directions:
    """``value`` as directions, or a TypeError that says how to make some."""
    if not isinstance(value, Directions):
        raise TypeError(
            f"directions must be fastscape.Directions, got {type(value).__name__}; make them of the objective: "
            "fs.Directions(objective, count=8)"
        )
    return value
