"""Read checkpoints without running code from them."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fastscape._checks import first_line, listed
from fastscape._files import check_expansion
from fastscape.objective.objective import Objective
from fastscape.runs.checkpoint_layouts import OPTIMIZER, check_weights, expanded, files_of, is_adapter, label_of, step_of
from fastscape.runs.checkpoint_names import renamed
from fastscape.runs.optimizers import WRAPPERS, OptimizerState

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params", "net", "ema")
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin")  # in a folder: of Trainer, of accelerate


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint; its tensors are read when asked for, so a trajectory holds one at a time.

    Attributes:
        path: a file, the index of several files, or a folder with one of them.
        name: its stem, or more of its path where stems repeat; the folder's name where all folders name their weights alike.
        step: that of ``trainer_state.json`` in a folder; else the number after "step", "iter", "checkpoint" or "epoch" in the
            name, or the name itself where it is a number.
    """

    path: Path
    name: str
    step: int | None

    def at(self, objective: Objective) -> Objective:
        """The objective with this checkpoint's weights.

        Raises:
            ValueError: unreadable or pickled file, or tensors that do not fit the model (the first few are listed).
        """
        state = without_prefix(read_state(self.path), objective)
        if is_adapter(self.path):  # the weights below stay
            state = {**(objective.state or objective.model.state_dict()), **state}
        try:
            return objective.at(state)
        except ValueError as error:
            raise ValueError(f"checkpoint {self.path}: {error}") from error

    def optimizer(self) -> OptimizerState | None:
        """The optimizer's state in ``<stem>.optimizer.pt`` beside the file, or in the file itself; ``None`` without one.

        Raises:
            ValueError: a file that cannot be read, or whose state is of no known optimizer.
        """
        folder = self.path if self.path.is_dir() else self.path.parent
        names = _OPTIMIZERS if self.name == label_of(folder) else (self.path.stem + OPTIMIZER,)
        beside = next((folder / name for name in names if (folder / name).is_file()), None)
        if beside is not None:
            return read_optimizer(beside)
        (file, *others) = files_of(self.path)
        if others or file.suffix == ".safetensors":
            return None
        content = _content(file)
        held = isinstance(content, Mapping) and any(isinstance(content.get(key), (Mapping, list)) for key in WRAPPERS)
        return _state_of(content, file) if held else None


def without_prefix(state: dict[str, Tensor], objective: Objective) -> dict[str, Tensor]:
    """A state dict under the names of the objective's model, whatever wrappers it was saved from."""
    model = objective.model
    return renamed(state, model.state_dict(), str(getattr(model, "base_model_prefix", "")))


def read_optimizer(path: Path) -> OptimizerState:
    """The optimizer's state in a torch file, alone or in a training checkpoint; code in it is never run.

    Raises:
        ValueError: a file that is missing, damaged or would run code, or without an optimizer's state.
    """
    if not path.is_file():
        raise ValueError(f"optimizer must be a file, got {str(path)!r}")
    content = _content(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"optimizer {path} must hold a state dict, got {type(content).__name__}; save optimizer.state_dict()")
    return _state_of(content, path)


def _state_of(content: Mapping[str, Any], path: Path) -> OptimizerState:
    try:
        return OptimizerState.of(content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def checkpoints(paths: Sequence[str | Path]) -> tuple[Checkpoint, ...]:
    """Checkpoints in the order given, checked to exist and to be distinct; a folder stands for those in it, in natural order.

    Raises:
        ValueError: no path, a missing file, a folder without checkpoints, or one given twice.
    """
    given = [paths] if isinstance(paths, (str, Path)) else listed("checkpoints", paths, "paths of files")
    for index, path in enumerate(given):
        if not isinstance(path, (str, Path)):
            raise TypeError(
                f"checkpoints[{index}] must be the path of a file, got {type(path).__name__}; save it with torch.save, or pass "
                "objective.at(state) to the probe of a single one"
            )
    if not given:
        raise ValueError("checkpoints must hold at least one file, got none")
    files: list[Path] = []
    for index, path in enumerate(map(Path, given)):
        argument = f"checkpoints[{index}]"
        check_file(argument, path)
        for file in expanded(path, argument):
            if file.resolve() in {other.resolve() for other in files}:
                raise ValueError(f"{argument} is given twice, got {str(file)!r}")
            files.append(file)
    labels = ([label_of(file) for file in files], [file.name for file in files], [str(file) for file in files])
    names = next(names for names in labels if len(set(names)) == len(names))
    return tuple(Checkpoint(file, name, step_of(file)) for file, name in zip(files, names, strict=True))


def check_file(name: str, path: Path) -> None:
    """Raise a ValueError that begins with ``name`` unless there is a file that may hold weights, or a folder."""
    if not path.exists():
        raise ValueError(f"{name} must be a file, got {str(path)!r}, which does not exist")
    check_weights(path, name)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a ``.safetensors`` file, or of a torch file read with ``weights_only=True``; of a folder or an index too.

    A dict that wraps the state dict under a usual key (``state_dict``, ``model`` ...) is unwrapped.

    Raises:
        ValueError: corrupt file, one that would run code when unpickled, or one without a state dict.
    """
    state: dict[str, Tensor] = {}
    for file in files_of(path):
        part = unwrapped(_content(file), f"checkpoint {file}")
        if state.keys() & part.keys():
            raise ValueError(
                f"checkpoint {path} must name every tensor once, got {min(state.keys() & part.keys())!r} in two files"
            )
        state |= part
    return state


class _Bounded(io.BufferedReader):
    """A file of which no more is asked for than there is: a damaged length would reserve gigabytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        """See :class:`io.BufferedReader`."""
        left = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(left if size is None or size < 0 else min(size, left))


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_expansion(archive, archive.infolist())
            return torch.load(path, map_location="cpu", weights_only=True)
        with _Bounded(io.FileIO(path)) as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {path} must hold tensors only, got a pickle that could run code or is damaged; save "
            "model.state_dict(), or convert it to safetensors where you trust it"
        ) from error
    except Exception as error:  # a damaged file fails in many ways, also with bare assertions
        raise ValueError(f"checkpoint {path} cannot be read (damaged?): {type(error).__name__}: {first_line(error)}") from error


def unwrapped(content: Any, origin: str) -> dict[str, Tensor]:
    """The state dict in what a file held, alone or under one of the usual keys.

    Raises:
        ValueError: none there; ``origin`` begins the message.
    """
    if isinstance(content, Mapping):
        content = {key: value for key, value in content.items() if isinstance(key, str)}
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return dict(content)
        for key in _WRAPPERS:
            inner = content.get(key)
            if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
                return {name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, Tensor)}
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors:  # a state dict with an epoch or a learning rate beside it
            return tensors
    found = f"keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(f"{origin} must hold a state dict, alone or under one of {', '.join(_WRAPPERS)}; got {found}")
