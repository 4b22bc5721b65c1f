"""Losses at perturbed weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastscape._checks import one_of
from fastscape._renamed import METHOD, renamed
from fastscape.directions import Directions, checked_directions
from fastscape.evaluation.evaluator import PathName
from fastscape.evaluation.sharded import evaluator_of
from fastscape.objective.objective import Objective, checked_objective

Subtracted = Literal["float64", "float32"]
DTYPES: dict[str, torch.dtype] = {"float64": torch.float64, "float32": torch.float32}


def checked_dtype(precision: str) -> torch.dtype:
    """The dtype of a precision name, or a ValueError that lists the names."""
    one_of("precision", precision, (*DTYPES, None))
    return DTYPES[precision]


def checked_radii(radii: ArrayLike, *, minimum: int = 1) -> NDArray[np.float64]:
    """Radii as a float64 vector: positive, finite and strictly ascending, or a ValueError naming the first offender."""
    values = _vector(radii)
    for index, value in enumerate(values):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"radii must be positive and finite, got radii[{index}] = {value!s}")
        if index and value <= values[index - 1]:
            raise ValueError(
                f"radii must be strictly ascending, got radii[{index - 1}] = {values[index - 1]!s} and "
                f"radii[{index}] = {value!s}; sort them and drop duplicates"
            )
    if len(values) < minimum:
        raise ValueError(f"radii must hold at least {minimum} scales, got {len(values)}")
    return values


def _vector(radii: ArrayLike) -> NDArray[np.float64]:
    try:
        given = np.asarray(radii)
    except ValueError as error:  # rows of different length
        raise ValueError(f"radii must be a vector of numbers, got {str(radii)[:60]}") from error
    if given.size and given.dtype.kind not in "iuf":
        raise ValueError(f"radii must be a vector of numbers, got {radii!r} of {given.dtype}; write such as [1e-3, 1e-2]")
    values = np.atleast_1d(given.astype(np.float64))
    if values.ndim != 1 or not len(values):
        raise ValueError(f"radii must be a non-empty vector, got shape {values.shape}")
    return values


@renamed(METHOD)
def losses(
    objective: Objective,
    directions: Directions,
    radii: ArrayLike | Sequence[float],
    *,
    precision: Subtracted | None = None,
    method: PathName | None = None,
    memory: int | None = None,
) -> Tensor:
    r"""Loss at every point :math:`w + r_k d_i`.

    Args:
        objective: the loss.
        directions: n directions.
        radii: R signed radii in units of ``||d||``; 0 gives L(w).
        precision: arithmetic of the forward passes, ``"float64"`` (default) or ``"float32"``; that of a sharded model is its own.
        method: ``"loop"``, ``"vmap"``, or ``None`` for the one that measures faster on this model; ``"stream"`` has the numbers
            of ``"loop"`` with displaced parameters made a module at a time, and is taken too where copies do not fit in memory.
        memory: bytes that the call may take beside what was there: private copies, data in another dtype, checks, trials and
            batched evaluation; default half of what is available, for batches. What cannot be held is refused before the work.

    Returns:
        Losses, float64 ``[n, R]`` on the CPU. NaN and inf are kept.

    Raises:
        ValueError: bad radii, precision or method.
        NondeterministicLossError: two evaluations at w differ.

    Cost: n R forwards over the data, and one copy of the probed parameters.

    Example:
        >>> import torch, fastscape as fs
        >>> model = torch.nn.Linear(4, 3)
        >>> objective = fs.Objective(model, [(torch.ones(2, 4), torch.tensor([0, 2]))],
        ...                          criterion=torch.nn.functional.cross_entropy)
        >>> fs.losses(objective, fs.Directions(objective, count=8), [-0.1, 0.0, 0.1]).shape
        torch.Size([8, 3])
    """
    checked_objective(objective, sharded=True)
    values = _vector(radii)
    if not np.isfinite(values).all():
        raise ValueError(f"radii must be finite, got {values[~np.isfinite(values)][0]!s}")
    checked_directions(directions)
    own = precision is None and objective.sharding is not None
    dtype = objective.dtype if own else checked_dtype("float64" if precision is None else precision)
    with evaluator_of(objective, dtype, method=method, memory=memory) as evaluator:
        return evaluator.losses(directions, range(len(directions)), values.tolist())
