"""Directions and checkpoints of a slice, as users may give them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fastscape._checks import amount, flag, shown
from fastscape.directions import Directions
from fastscape.directions.axes import Axes
from fastscape.directions.directions import Scale
from fastscape.numerics.arrays import Array
from fastscape.objective.arguments import matched_state
from fastscape.objective.objective import Objective
from fastscape.probes.spectrum.result import SpectrumResult
from fastscape.runs.checkpoint_layouts import expanded
from fastscape.runs.checkpoints import check_file, checkpoints

State = Mapping[str, Tensor]
AnyState = State | nn.Module | str | Path
AnyDirections = Directions | Axes | SpectrumResult | Tensor | State | Sequence[State] | str | None

LINES, COMPONENTS = 32, 8  # random directions, and principal components or eigenvectors, where no number is asked for
_NAMES = "'random', 'gradient' or 'pca' (with trajectory=)"


def states_of(objective: Objective, given: Sequence[AnyState], argument: str = "trajectory") -> tuple[list[State], list[str]]:
    """State dicts and names of checkpoints: state dicts, modules, or files.

    Raises:
        ValueError: none, missing or damaged files, or tensors that do not fit the model.
        TypeError: something else.
    """
    no_items = getattr(given, "ndim", 1) == 0 or not isinstance(given, Iterable)
    if isinstance(given, (str, Path, nn.Module, Mapping)) or no_items:
        raise TypeError(f"{argument} must be a sequence of checkpoints, got {shown(given)}; write [{argument}] for one")
    states: list[State] = []
    names: list[str] = []
    for index, item in enumerate(given):
        if isinstance(item, (str, Path)):
            check_file(f"{argument}[{index}]", Path(item))
            for file in checkpoints(expanded(Path(item), f"{argument}[{index}]")):
                state = file.at(objective).state
                assert state is not None
                states.append(state)
                names.append(file.name)
        elif isinstance(item, (Mapping, nn.Module)):
            states.append(_matched(objective, item, f"{argument}[{index}]"))
            names.append(f"{index}")
        else:
            raise TypeError(f"{argument}[{index}] must be a file, a state dict or a module, got {type(item).__name__}")
    if not states:
        raise ValueError(f"{argument} must hold at least one checkpoint, got none")
    return states, names


def _matched(objective: Objective, given: State | nn.Module, name: str) -> State:
    state = given.state_dict() if isinstance(given, nn.Module) else given
    try:
        matched_state(objective.model, state)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return state


def axes_of(
    objective: Objective,
    given: AnyDirections,
    *,
    count: int,
    normalize: str,
    scale: Scale,
    seed: int,
    trajectory: Sequence[State] | None = None,
) -> Axes | Directions:
    """Axes of what was given; random directions stay as they are, to be generated one at a time.

    Raises:
        ValueError, TypeError: naming what cannot be directions.
    """
    if isinstance(given, np.ndarray):
        raise TypeError(f"directions must be tensors, got an array {given.shape}; pass torch.from_numpy(directions)")
    if given is None or (isinstance(given, str) and given == "random"):
        rule: Any = normalize
        return Directions(objective, count=count, seed=seed, normalize=rule, scale=scale)
    match given:
        case Directions():
            given.check(objective)
            return given
        case Axes():
            shapes = [tensor.shape for tensor in objective.base.values()]
            if any([tensor.shape for tensor in axis] != shapes for axis in given.tensors):
                raise ValueError("directions must be made for this objective, got axes of other shapes")
            return given
        case SpectrumResult():
            if given.vectors is None:
                raise ValueError(
                    "directions must hold vectors, got a loaded spectrum; they are not saved: pass fs.spectrum's own"
                )
            return Axes.eigenvectors(objective, given.vectors, values=np.asarray(given.eigenvalues).tolist(), scale=scale)
        case Tensor():
            with _spoken_of("vectors", "directions"):
                return Axes.eigenvectors(objective, given, scale=scale)
        case "gradient":
            return Axes.gradient(objective, scale=scale)
        case "pca":
            if trajectory is None:
                raise ValueError("directions='pca' needs trajectory=, the checkpoints whose principal components to take")
            with _spoken_of("states", "trajectory"):
                return Axes.pca(objective, trajectory, count, scale=scale)
    if isinstance(given, str):
        raise ValueError(f"directions must be {_NAMES}, or given ones, got {given!r}")
    if isinstance(given, Sequence):
        others = [item for item in given if not isinstance(item, Mapping)]
        if others:
            raise TypeError(f"directions must hold tensors by parameter name, got {type(others[0]).__name__} among them")
    if isinstance(given, (Mapping, Sequence)):
        with _spoken_of("tensors", "directions"):
            return Axes.given(objective, cast("Sequence[State]", given), scale=scale)
    raise TypeError(f"directions must be fs.Directions, tensors by name, a spectrum or {_NAMES}, got {type(given).__name__}")


@contextmanager
def _spoken_of(inner: str, name: str) -> Iterator[None]:
    """Name an argument as the caller knows it where what it is passed on to refuses it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        words = str(error)
        if not words.startswith(inner):
            raise
        raise type(error)(name + words.removeprefix(inner)) from error


@dataclass(frozen=True)
class Line:
    """A direction to be evaluated: its tensors, label, and length relative to the weights."""

    axis: list[Tensor]
    label: str
    relative: float


def lines_of(given: Axes | Directions, dtype: torch.dtype) -> Iterator[Line]:
    """Directions one at a time, so that random ones take the memory of one."""
    wide = torch.promote_types(dtype, torch.float32)
    if isinstance(given, Axes):
        for axis, label, relative in zip(given.tensors, given.labels, given.relative, strict=True):
            yield Line([tensor.to(wide) for tensor in axis], label, float(relative))
        return
    kind = "given" if given.seed is None else "random"
    for index in range(len(given)):
        axis, length = given.tensors(index, wide)
        yield Line(axis, f"{kind} {index}", length / given.weight_norm if given.weight_norm else math.inf)


def plane_axes(given: Axes | Directions, dtype: torch.dtype, *, orthogonal: bool) -> Axes:
    """The first two directions as the axes of a plane, in at least ``dtype``.

    Raises:
        ValueError: fewer than two, or two that are parallel.
    """
    if len(given) < 2:
        raise ValueError(f"directions must be two for a plane, got {len(given)}; use fs.slice1d for a line")
    wide = torch.promote_types(dtype, torch.float32)
    axes = given[:2] if isinstance(given, Axes) else Axes.of(given, count=2)
    axes = axes.to(wide)
    if flag("orthogonal", orthogonal):
        return axes.orthogonal()
    axes.check_independent()
    return axes


def coarse_to_fine(count: int) -> list[int]:
    """Indices below ``count``: the middle, both ends, then the middles of what lies between."""
    order = dict.fromkeys([count // 2, 0, count - 1])
    gaps = [(0, count // 2), (count // 2, count - 1)]
    while gaps:
        gaps = [(low, high) for low, high in gaps if high - low > 1]
        order |= dict.fromkeys((low + high) // 2 for low, high in gaps)
        gaps = [half for low, high in gaps for half in ((low, (low + high) // 2), ((low + high) // 2, high))]
    return list(order)


def grid(radius: float, points: int, argument: str = "") -> Array:
    """``points`` coordinates from -radius to radius, evenly spaced, symmetric, with an exact 0 in the middle.

    Raises:
        ValueError: a radius that is not positive and finite in float32, or an even number of points.
    """
    number = isinstance(radius, (int, float, np.floating, np.integer)) and not isinstance(radius, bool)
    if not (number and 0 < radius <= torch.finfo(torch.float32).max):
        raise ValueError(
            f"radius{argument} must be positive and finite, got {radius!r}; it is the largest |alpha|, relative to ||w|| with "
            "scale='relative'"
        )
    if isinstance(points, bool) or not isinstance(points, (int, np.integer)) or points < 3 or points % 2 == 0:
        raise ValueError(f"points{argument} must be odd and at least 3, so that alpha = 0 is one of them, got {points!r}")
    half = amount(f"points{argument}", points, 3) // 2
    return np.arange(-half, half + 1) / half * float(radius)
