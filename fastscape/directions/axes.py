"""Axes of slices: directions held as tensors, scaled, made orthogonal, and the projection of checkpoints onto them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape.directions.directions import Directions, Scale
from fastscape.objective.arguments import matched_state
from fastscape.objective.objective import Objective, checked_objective

Array = NDArray[np.float64]
State = Mapping[str, Tensor]

PARALLEL = 1 - 1e-6  # |cosine| above which a plane is a line: its second axis would be 1e-3 of the first's length
_COLUMNS = 1 << 18  # elements of a trajectory that a Gram matrix takes at once: 2 MiB per checkpoint


@dataclass(frozen=True)
class Axes:
    r"""Directions v_1 ... v_n in the space of an objective's parameters, held as tensors.

    Attributes:
        tensors: n lists in the order and shapes of ``objective.names``.
        labels: what each is, for tables and figures.
        lengths: :math:`\|v_j\|`, ``[n]``.
        weight_norm: :math:`\|w\|`; a coordinate alpha moves the weights by alpha ||v|| / ||w|| of their norm.
        explained: share of the squared distances of a trajectory from w along each axis, ``[n]``; ``None`` without one.

    Example:
        >>> import torch, fastscape as fs
        >>> from fastscape.directions.axes import Axes
        >>> model = torch.nn.Linear(4, 3)
        >>> objective = fs.Objective(model, [(torch.ones(2, 4), torch.tensor([0, 2]))],
        ...                          criterion=torch.nn.functional.cross_entropy)
        >>> Axes.random(objective, 2, seed=1).labels
        ('random 0', 'random 1')
    """

    tensors: tuple[list[Tensor], ...]
    labels: tuple[str, ...]
    lengths: Array
    weight_norm: float
    explained: Array | None = None

    @classmethod
    def of(cls, directions: Directions, labels: Sequence[str] | None = None, *, count: int | None = None) -> Axes:
        """The first ``count`` of these directions, or all, as they are; memory of as many float64 copies of the parameters."""
        rows = [directions.tensors(index, torch.float64) for index in range(len(directions) if count is None else count)]
        kind = "random" if directions.seed is not None else "given"
        names = tuple(labels) if labels is not None else tuple(f"{kind} {index}" for index in range(len(rows)))
        return cls(tuple(row for row, _ in rows), names, np.array([length for _, length in rows]), directions.weight_norm)

    @classmethod
    def random(
        cls, objective: Objective, count: int, *, normalize: str = "filter", scale: Scale = "relative", seed: int = 0
    ) -> Axes:
        """Gaussian directions with any normalisation of :class:`fastscape.Directions`.

        Raises:
            ValueError: a setting outside its range, naming it.
        """
        rule = {"normalize": normalize}
        return cls.of(Directions(objective, count=count, seed=seed, scale=scale, **rule))  # type: ignore[arg-type]

    @classmethod
    def given(
        cls,
        objective: Objective,
        tensors: State | Sequence[State],
        *,
        scale: Scale = "relative",
        labels: Sequence[str] | None = None,
    ) -> Axes:
        """Tensors by parameter name, one mapping per axis; names that are absent do not move.

        Raises:
            ValueError: unknown names, wrong shapes, or a direction that is zero or not finite.
        """
        return cls.of(Directions.given(objective, tensors, scale=scale), labels)

    @classmethod
    def gradient(cls, objective: Objective, *, scale: Scale = "relative") -> Axes:
        """The gradient of the loss. Cost: one forward and backward per batch.

        Raises:
            ValueError: a gradient that is zero or not finite.
        """
        gradient = objective.gradient()
        if not any(bool(tensor.any()) for tensor in gradient.values()):
            raise ValueError("the gradient must not be zero to be an axis, got 0 in every parameter; use another direction")
        return cls.given(objective, gradient, scale=scale, labels=("gradient",))

    @classmethod
    def eigenvectors(
        cls, objective: Objective, vectors: Tensor, *, values: Sequence[float] | None = None, scale: Scale = "relative"
    ) -> Axes:
        """Columns of ``vectors`` ``[D, k]``, such as ``SpectrumResult.vectors``; ``values`` only name them.

        Raises:
            ValueError: not D rows.
        """
        checked_objective(objective)
        if vectors.ndim != 2 or vectors.shape[0] != objective.size or not vectors.shape[1]:
            raise ValueError(f"vectors must have shape [D = {objective.size}, k], got {list(vectors.shape)}")
        base = objective.base
        sizes = [tensor.numel() for tensor in base.values()]
        rows = [
            {
                name: part.reshape(tensor.shape)
                for part, (name, tensor) in zip(torch.split(column, sizes), base.items(), strict=True)
            }
            for column in vectors.T
        ]
        labels = [f"eigenvector {index + 1}" for index in range(len(rows))]
        if values is not None:
            labels = [f"{label} ({value:.3g})" for label, value in zip(labels, values, strict=True)]
        return cls.given(objective, rows, scale=scale, labels=labels)

    @classmethod
    def difference(cls, objective: Objective, start: State, end: State, *, scale: Scale = "none") -> Axes:
        """``end - start`` of two state dicts, in float64; with ``scale="none"`` alpha = 1 is the whole way.

        Raises:
            ValueError: state dicts that do not fit the model, or that do not differ.
        """
        checked_objective(objective)
        first, second = (matched_state(objective.model, state) for state in (start, end))
        step = {name: second[name].double() - first[name].double() for name in objective.names}
        if not any(bool(tensor.any()) for tensor in step.values()):
            raise ValueError("the checkpoints must differ in the probed parameters, got equal ones")
        return cls.given(objective, step, scale=scale, labels=("difference",))

    @classmethod
    def pca(cls, objective: Objective, states: Sequence[State], count: int = 2, *, scale: Scale = "relative") -> Axes:
        r"""Principal components of a trajectory: the axes through w that leave the least of its checkpoints outside.

        With :math:`\delta_c = w_c - w`, the eigenvectors e of their Gram matrix, in float64, give the components
        :math:`\sum_c e_c \delta_c`; w is the centre, because the slice goes through it. :attr:`explained` is each one's share of
        the squared distances.

        Args:
            objective: whose weights are w.
            states: C state dicts.
            count: components, at most the rank of G.
            scale: as for :class:`fastscape.Directions`.

        Raises:
            ValueError: state dicts that do not fit, or a trajectory of fewer dimensions than ``count``.

        Cost: C^2 D multiplications; memory of a float64 copy of the parameters per checkpoint.

        Source: Li et al., "Visualizing the loss landscape of neural nets" (2018), section 7.
        """
        steps = _from_weights(objective, states)
        gram = sum((block @ block.T for block in _blocks(steps)), torch.zeros(len(steps), len(steps), dtype=torch.float64))
        matrix = gram.numpy()
        if not np.isfinite(matrix).all():
            bad = int(np.flatnonzero(~np.isfinite(np.diag(matrix)))[0])
            raise ValueError(f"states[{bad}] must be finite, got NaN or inf in the probed parameters")
        values, vectors = np.linalg.eigh(matrix)
        values, vectors = values[::-1], vectors[:, ::-1]
        floor = len(steps) * np.finfo(np.float64).eps * max(values[0], 0.0) * 16
        rank = int((values > floor).sum())
        if rank < count:
            raise ValueError(
                f"states must span {count} dimensions around the objective's weights, got {len(steps)} checkpoints that span "
                f"{rank}; pass more of them, or use fs.slice1d"
            )
        base = objective.base
        rows = []
        for index in range(count):
            column = torch.from_numpy(vectors[:, index].copy())
            rows.append({name: torch.einsum("c,cn->n", column, _stacked(steps, name)).reshape(base[name].shape) for name in base})
        share = values[:count] / values.sum()
        labels = [f"component {index + 1} ({100 * part:.0f} %)" for index, part in enumerate(share)]
        return dataclasses.replace(cls.given(objective, rows, scale=scale, labels=labels), explained=share)

    def __len__(self) -> int:
        return len(self.tensors)

    def __add__(self, other: Axes) -> Axes:
        """These axes and others, of one objective."""
        lengths = np.concatenate([self.lengths, other.lengths])
        return Axes(self.tensors + other.tensors, self.labels + other.labels, lengths, self.weight_norm)

    def __getitem__(self, wanted: slice) -> Axes:
        """Some of the axes."""
        explained = None if self.explained is None else self.explained[wanted]
        return Axes(self.tensors[wanted], self.labels[wanted], self.lengths[wanted], self.weight_norm, explained)

    def to(self, dtype: torch.dtype) -> Axes:
        """The same axes, rounded to ``dtype``."""
        return dataclasses.replace(self, tensors=tuple([tensor.to(dtype) for tensor in axis] for axis in self.tensors))

    @property
    def relative(self) -> Array:
        """||v_j|| / ||w||, the relative change of the weights per unit of each coordinate, ``[n]``; inf at zero weights."""
        with np.errstate(divide="ignore"):
            found: Array = self.lengths / np.float64(self.weight_norm)
        return found

    @property
    def cosines(self) -> Array:
        """Cosines between all pairs of axes, in float64, ``[n, n]``."""
        gram = self._gram()
        lengths = np.sqrt(np.diag(gram))
        found: Array = gram / np.outer(lengths, lengths)
        return found

    def orthogonal(self) -> Axes:
        """Gram-Schmidt in the order of the axes, each keeping its length, after any scaling (filter scaling breaks it).

        The first axis stays as it is, to the last bit.

        Raises:
            ValueError: axes that are parallel, by name, with their cosine.
        """
        self.check_independent()
        made = [list(axis) for axis in self.tensors[:1]]
        for axis, length in zip(self.tensors[1:], self.lengths[1:], strict=True):
            rest = [tensor.double() for tensor in axis]
            for _ in range(2):  # twice is enough: the second removes what rounding of the first left
                for known in made:
                    share = _dot(rest, known) / _dot(known, known)
                    rest = [tensor - share * other.double() for tensor, other in zip(rest, known, strict=True)]
            factor = float(length) / math.sqrt(_dot(rest, rest))
            made.append([(tensor * factor).to(old.dtype) for tensor, old in zip(rest, axis, strict=True)])
        return dataclasses.replace(self, tensors=tuple(made))

    def check_independent(self) -> None:
        """Raise unless no two axes are parallel.

        Raises:
            ValueError: naming the two and their cosine.
        """
        cosines = self.cosines
        for second in range(len(self)):
            for first in range(second):
                if abs(cosines[first, second]) > PARALLEL:
                    raise ValueError(
                        f"directions must span a plane, got {self.labels[first]!r} and {self.labels[second]!r} with cosine "
                        f"{cosines[first, second]:.9f}; pass two that are not parallel"
                    )

    def project(self, objective: Objective, states: Sequence[State]) -> tuple[Array, Array]:
        """Coordinates of checkpoints in these axes by least squares, and what they leave out.

        Returns:
            Coordinates ``[C, n]``, and the residual ``[C]``: distance from the slice relative to the distance from w, in
            [0, 1]; 0 for w itself.

        Raises:
            ValueError: state dicts that do not fit the model.
        """
        steps = _from_weights(objective, states)
        along = np.array([[_dot(list(step.values()), axis) for axis in self.tensors] for step in steps]).reshape(-1, len(self))
        coordinates = np.linalg.solve(self._gram(), along.T).T
        residuals = []
        for step, alpha in zip(steps, coordinates, strict=True):
            rest = [tensor.double() for tensor in step.values()]
            for axis, value in zip(self.tensors, alpha, strict=True):
                rest = [tensor - float(value) * other.double() for tensor, other in zip(rest, axis, strict=True)]
            whole = math.sqrt(_dot(list(step.values()), list(step.values())))
            residuals.append(math.sqrt(_dot(rest, rest)) / whole if whole else 0.0)
        return coordinates, np.array(residuals)

    def _gram(self) -> Array:
        return np.array([[_dot(first, second) for second in self.tensors] for first in self.tensors])


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Inner product of two lists of tensors, in float64."""
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(first, second, strict=True))


def _from_weights(objective: Objective, states: Sequence[State]) -> list[dict[str, Tensor]]:
    """Checkpoints relative to the objective's weights, by name, in float64 on the objective's device."""
    checked_objective(objective)
    if not states:
        raise ValueError("states must hold at least one checkpoint, got none")
    base = objective.base
    steps = []
    for index, state in enumerate(states):
        try:
            full = matched_state(objective.model, state)
        except ValueError as error:
            raise ValueError(f"states[{index}]: {error}") from error
        steps.append({name: full[name].detach().to(tensor.device).double() - tensor.double() for name, tensor in base.items()})
    return steps


def _stacked(steps: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    return torch.stack([step[name].reshape(-1) for step in steps]).cpu()


def _blocks(steps: Sequence[Mapping[str, Tensor]]) -> Iterator[Tensor]:
    """Columns of the matrix of steps, ``[C, at most 2^18]`` each."""
    for name in steps[0]:
        yield from torch.split(_stacked(steps, name), _COLUMNS, dim=1)
