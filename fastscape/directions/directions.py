"""Directions in parameter space: random ones rebuilt from (seed, index), and given ones."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from fastscape._checks import integer
from fastscape.directions.normalise import Normaliser, OneD, Rule, ZeroNorm
from fastscape.objective import Objective, matched_state
from fastscape.ops import Distribution, tensor_ids
from fastscape.ops.direction.reference import draw

Scale = Literal["unit", "relative", "none"]
Source = Callable[[int], list[Tensor]]


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

    Cost: about 40 ns per element each time a direction is asked for; memory of one direction.

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
        if distribution not in get_args(Distribution):
            raise ValueError(f"distribution must be 'gaussian' or 'rademacher', got {distribution!r}")
        count, seed = integer("count", count, 1, 2**32 + 1), integer("seed", seed, 0, 2**64)
        names, device = objective.names, objective.device
        known = tensor_ids(name for name, _ in objective.model.named_parameters())
        ids = [known[name] for name in names]
        sizes = [tensor.numel() for tensor in objective.base.values()]
        self._draw = lambda key, index: draw(key, index, ids, sizes, distribution, device=device)
        self._source: Source = partial(self._draw, seed)
        self.seed: int | None = seed
        self.distribution: str = distribution
        self._finish(
            objective,
            count,
            Normaliser(objective.base, normalize, one_d=one_d, zero_norm=zero_norm, filter_dim=filter_dim),
            scale,
        )

    def _finish(self, objective: Objective, count: int, normaliser: Normaliser, scale: Scale) -> None:
        if scale not in get_args(Scale):
            raise ValueError(f"scale must be one of {', '.join(get_args(Scale))}, got {scale!r}")
        self.count, self.scale, self.names = count, scale, objective.names
        self.dtype = objective.dtype
        self.normalize: str = normaliser.rule
        self._normaliser = normaliser

    def with_seed(self, seed: int) -> Directions:
        """The same kind of random directions with another seed; the weights are not read again."""
        if self.seed is None:
            raise ValueError("with_seed needs random directions, got given ones")
        other = copy.copy(self)
        other.seed, other._source = seed, partial(self._draw, seed)
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
        rows = [tensors] if isinstance(tensors, Mapping) else list(tensors)
        if not rows:
            raise ValueError("tensors must hold at least one direction, got none")
        base = objective.base
        for index, row in enumerate(rows):
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
        stored = [
            [
                row[name].detach().to(w.device, torch.float64) if name in row else torch.zeros_like(w).double()
                for name, w in base.items()
            ]
            for row in rows
        ]
        self = object.__new__(cls)
        self._source = stored.__getitem__
        self.seed, self.distribution = None, "given"
        self._finish(objective, len(stored), Normaliser(base, normalize, dense=False), scale)
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
        if self.names != objective.names or shapes != self._normaliser.shapes:
            raise ValueError(
                f"directions must be made for this objective, got ones that move {', '.join(self.names[:3])} ... "
                f"({len(self.names)} tensors); make fs.Directions(objective, ...)"
            )

    @property
    def skipped_fraction(self) -> float:
        """Share of the parameters that no direction moves (zero-norm groups, biases under ``one_d="zero"``)."""
        return self._normaliser.skipped_fraction

    @property
    def weight_norm(self) -> float:
        """||w|| at the time the directions were made, in float64."""
        return self._normaliser.weight_norm

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Direction ``index`` as name -> tensor, in the objective's dtype."""
        position = operator.index(index)
        if not -self.count <= position < self.count:
            raise IndexError(f"direction {position} is out of range for {self.count} directions")
        return dict(zip(self.names, self.tensors(position % self.count)[0], strict=True))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[index] for index in range(self.count))

    def tensors(self, index: int, dtype: torch.dtype | None = None) -> tuple[list[Tensor], float]:
        """Direction ``index`` as tensors in the order of ``names``, in ``dtype``, and its norm."""
        with torch.no_grad():
            return self._normaliser(self._source(index), self.scale, dtype or self.dtype)
