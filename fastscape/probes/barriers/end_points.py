"""Solutions to connect, from state dicts, files, modules and objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastscape.objective.arguments import matched_state
from fastscape.objective.objective import Objective
from fastscape.runs.checkpoints import checkpoints, unwrapped, without_prefix

Solution = Mapping[str, Any] | str | Path | nn.Module | Objective | None
OWN = "own weights"


@dataclass(frozen=True)
class EndPoint:
    """A solution: its name and its complete state dict."""

    label: str
    state: dict[str, Tensor]


def end_point(objective: Objective, solution: Solution, argument: str) -> EndPoint:
    """A solution as a state dict of the objective's model, by whichever way it was given.

    Args:
        objective: whose model it must fit.
        solution: state dict, checkpoint file, module, objective, or ``None`` for the objective's own weights.
        argument: its name, for messages.

    Raises:
        TypeError: something else.
        ValueError: other keys or shapes (the first few are listed), an unreadable file, or NaN or inf in a tensor.
    """
    try:
        label, state = _read(objective, solution, argument)
        state = matched_state(objective.model, state)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    for name, tensor in state.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
            place = int((~torch.isfinite(tensor)).flatten().nonzero()[0])
            value = tensor.detach().flatten()[place].item()
            raise ValueError(f"{argument} must be finite, got {value} in {name!r} (element {place}); no path can start there")
    return EndPoint(label, state)


def _read(objective: Objective, solution: Solution, argument: str) -> tuple[str, Mapping[str, Tensor]]:
    match solution:
        case None:
            return OWN, objective.state or objective.model.state_dict()
        case Objective():
            return argument, solution.state or solution.model.state_dict()
        case nn.Module():
            return argument, without_prefix(dict(solution.state_dict()), objective)
        case str() | Path():
            if not Path(solution).exists():
                raise ValueError(f"must be a checkpoint file, got {str(solution)!r}")
            file, *others = checkpoints([solution])
            if others:
                raise ValueError(f"must be one checkpoint, got {str(solution)!r} with {1 + len(others)}; name one of them")
            state = file.at(objective).state
            assert state is not None
            return file.name, state
        case Mapping():
            return argument, without_prefix(unwrapped(solution, argument), objective)
    raise TypeError(
        f"{argument} must be a state dict, a checkpoint file, a module, an Objective or None for the objective's own weights, "
        f"got {type(solution).__name__}"
    )


def end_points(objective: Objective, solutions: Mapping[str, Solution] | Sequence[Solution], argument: str) -> list[EndPoint]:
    """Several solutions with labels that differ: the keys of a mapping, or the stems of files.

    Raises:
        ValueError: fewer than two, or what :func:`end_point` refuses.
    """
    if isinstance(solutions, (str, Path)) or not isinstance(solutions, (Mapping, Sequence)):
        raise TypeError(f"{argument} must be a sequence of solutions, or a mapping from names to them, got {solutions!r:.60}")
    if len(solutions) < 2:
        raise ValueError(f"{argument} must hold at least two solutions, got {len(solutions)}")
    given = solutions.values() if isinstance(solutions, Mapping) else solutions
    found = [end_point(objective, solution, f"{argument}[{index}]") for index, solution in enumerate(given)]
    labels = list(map(str, solutions)) if isinstance(solutions, Mapping) else distinct(list(given), [end.label for end in found])
    return [EndPoint(label, end.state) for label, end in zip(labels, found, strict=True)]


def distinct(solutions: Sequence[Solution], labels: Sequence[str]) -> list[str]:
    """Labels that differ: with the folder of a file where stems repeat, and with a number where that does not help."""
    if len(set(labels)) < len(labels):
        labels = [
            f"{Path(solution).parent.name}/{label}" if isinstance(solution, (str, Path)) else label
            for solution, label in zip(solutions, labels, strict=True)
        ]
    again = [label for label in labels if labels.count(label) > 1]
    return [f"{label} #{labels[: index + 1].count(label)}" if label in again else label for index, label in enumerate(labels)]
