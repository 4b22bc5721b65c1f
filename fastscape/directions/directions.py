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
from fastscape.directions.low_rank import Factors, LowRank
from fastscape.directions.noise import Noise
from fastscape.directions.normalise import Normaliser, OneD, Rule, ZeroNorm
from fastscape.objective.arguments import matched_state
from fastscape.objective.batches import fingerprint
from fastscape.objective.objective import Objective, checked_objective
from fastscape.objective.sharding import needs_whole
from fastscape.ops import Distribution, tensor_ids

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
        rank: r of directions :math:`U^\top V / \sqrt r` of every matrix, with noise in U and V (convolutions and embeddings as
            ``[out, rest]``; :mod:`fastscape.directions.low_rank`); ``None`` for noise in every element. E[dd'] is the same, d'Hd
            scatters more (of signs 1 to 1.3 times at rank 16, 2 to 4 at rank 1): another law, comparable with itself alone.
        normalize: ``"tensor"``, ``"filter"``, ``"module"``, ``"global"``, ``"element"`` (of no rank) or ``"none"``.
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
        rank: int | None = None,
        normalize: Rule = "tensor",
        scale: Scale = "relative",
        one_d: OneD | None = None,
        zero_norm: ZeroNorm = "skip",
        filter_dim: Mapping[str, int] | None = None,
    ) -> None:
        checked_objective(objective, sharded=True)
        one_of("distribution", distribution, get_args(Distribution))
        count, seed = integer("count", count, 1, 2**32 + 1), integer("seed", seed, 0, 2**64)
        rank = checked_rank(rank, normalize)
        normaliser = Normaliser(
            objective.base, normalize, one_d=one_d, zero_norm=zero_norm, filter_dim=filter_dim, dense=rank is None
        )
        if objective.sharding is not None and (rank is not None or not normaliser.separable):
            raise needs_whole("normalize='element', rank= and filters along other dimensions than 0")
        known = tensor_ids(name for name, _ in objective.model.named_parameters())
        self.ids: list[int] = [known[name] for name in objective.names]
        self._given: list[list[Tensor]] = []
        self.seed: int | None = seed
        self.distribution: str = distribution
        self._noise: Noise | LowRank | None = (
            Noise(self.ids, normaliser, distribution, objective.device, objective.sharding)
            if rank is None
            else LowRank(known, normaliser, rank, distribution, objective.device)
        )
        self._finish(objective, count, normaliser, scale)

    def _finish(self, objective: Objective, count: int, normaliser: Normaliser, scale: Scale) -> None:
        one_of("scale", scale, get_args(Scale))
        self.count, self.scale, self.names = count, scale, objective.names
        self.dtype = objective.dtype
        self.normalize: str = normaliser.rule
        self.normaliser = normaliser
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
        self._given, self.ids, self._noise = stored, [], None
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
        given = None if self._noise is not None else fingerprint((str(index), row) for index, row in enumerate(self._given))
        names = ("seed", "count", "distribution", "normalize", "scale", *(() if self.rank is None else ("rank",)))
        return {name: getattr(self, name) for name in names} | self.normaliser.settings | {"given": given}

    @property
    def rank(self) -> int | None:
        """Of the matrices in every direction; ``None`` for directions of any rank."""
        return None if self._noise is None else self._noise.rank

    @property
    def law(self) -> str:
        """What they are drawn from, in words; numbers that depend on its tails compare within one law alone."""
        return law(self.distribution, self.rank)

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
        wanted = dtype or self.dtype
        with torch.no_grad():
            known = self._piece_squares(index) if self._by_pieces else None
            raw = self._given[index] if self._noise is None else self._noise.raw(self.seed or 0, index, wanted)
            return self.normaliser(raw, self.scale, wanted, known)

    def block(self, indices: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
        """Several directions at once: ``[len(indices), *shape]`` in the order of ``names``, in ``dtype``."""
        if self.separable:
            return cast("list[Tensor]", self.factored(indices, dtype))
        rows = [self.tensors(index, dtype)[0] for index in indices]
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def factored(self, indices: Sequence[int], dtype: torch.dtype) -> Sequence[Tensor | Factors]:
        """:meth:`block`, with matrices of low rank as their factors wherever these are fewer numbers."""
        if self._noise is None or not self._by_pieces:
            return self.block(indices, dtype)
        with torch.no_grad():
            scales = np.stack([self.scales(index) for index in indices])
            return self._noise.factored(self.seed or 0, indices, scales, dtype)

    @property
    def elements(self) -> int:
        """Numbers that stand for one direction in :meth:`factored`."""
        return sum(shape.numel() for shape in self.normaliser.shapes) if self._noise is None else self._noise.elements

    @property
    def separable(self) -> bool:
        """Whether a direction is noise of every element times one number per piece of a parameter, which the kernels take."""
        return self._by_pieces and self.rank is None

    @property
    def _by_pieces(self) -> bool:
        """Whether a direction is its raw noise times one number per piece of a parameter."""
        return self._noise is not None and (self.rank is not None or self.normaliser.separable)

    def scales(self, index: int, piece_squares: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Factor of each piece of raw direction ``index``, ``[sum(normaliser.pieces)]``; where there are any.

        Args:
            index: of the direction.
            piece_squares: sums of squares of its pieces, where the caller has them.
        """
        if self.normalize == self.scale == "none":  # whatever the norm
            return self.normaliser.moved
        known = self._piece_squares(index) if piece_squares is None else piece_squares
        return self.normaliser.factors(known, self.scale)[0]

    def length(self, index: int) -> float:
        """||d|| of direction ``index``."""
        if self._by_pieces:
            return self.normaliser.factors(self._piece_squares(index), self.scale)[1]
        return self.tensors(index)[1]

    def _piece_squares(self, index: int) -> NDArray[np.float64]:
        """Sums of squares of the raw direction's pieces, kept."""
        found = self._squares.get(index)
        if found is None:
            assert self._noise is not None
            found = self._noise.squares(self.seed or 0, index)
            if len(self._squares) * len(found) < _KEPT:
                self._squares[index] = found
        return found


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


def checked_rank(rank: object, normalize: object) -> int | None:
    """``rank`` of directions with a normalisation that keeps it."""
    if rank is None:
        return None
    number = integer("rank", rank, 1)
    if normalize == "element":
        raise ValueError(
            f"rank must be None with normalize='element', whose factors are of single elements, got {number}; use 'tensor'"
        )
    return number


def law(distribution: str, rank: int | None) -> str:
    """What directions are drawn from, in words."""
    return distribution if rank is None else f"{distribution} of rank {rank}"


def checked_directions(value: object) -> Directions:
    """``value`` as directions, or a TypeError that says how to make some."""
    if not isinstance(value, Directions):
        raise TypeError(
            f"directions must be fastscape.Directions, got {type(value).__name__}; make them of the objective: "
            "fs.Directions(objective, count=8)"
        )
    return value
