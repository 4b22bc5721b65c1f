"""Read checkpoints without running code from them."""

from __future__ import annotations

import io
import os
import pickle
import re
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
from fastscape.runs.optimizers import WRAPPERS, OptimizerState

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params", "net", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
OPTIMIZER = ".optimizer.pt"  # ending of a checkpoint's optimizer state, beside it
SUFFIXES = frozenset({".safetensors", ".pt", ".pth", ".ckpt", ".bin"})


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file; its tensors are read when asked for, so a trajectory holds one at a time.

    Attributes:
        path: the file.
        name: its stem, or more of its path where stems repeat.
        step: number after "step", "epoch", "iter" or "checkpoint" in the stem, or the stem itself where it is a number.
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
        try:
            return objective.at(state)
        except ValueError as error:
            raise ValueError(f"checkpoint {self.path}: {error}") from error

    def optimizer(self) -> OptimizerState | None:
        """The optimizer's state in ``<stem>.optimizer.pt`` beside the file, or in the file itself; ``None`` without one.

        Raises:
            ValueError: a file that cannot be read, or whose state is of no known optimizer.
        """
        beside = self.path.with_name(self.path.stem + OPTIMIZER)
        if beside.is_file():
            return read_optimizer(beside)
        if self.path.suffix == ".safetensors":
            return None
        content = _content(self.path)
        held = isinstance(content, Mapping) and any(isinstance(content.get(key), (Mapping, list)) for key in WRAPPERS)
        return _state_of(content, self.path) if held else None


def without_prefix(state: dict[str, Tensor], objective: Objective) -> dict[str, Tensor]:
    """A state dict without the prefix of a wrapper (``module.``, ``_orig_mod.``, ``model.``) where its names then fit better."""
    expected = objective.model.state_dict().keys()
    for prefix in _PREFIXES:
        stripped = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        if len(expected & stripped.keys()) > len(expected & state.keys()):
            state = stripped
    return state


def is_checkpoint(path: Path) -> bool:
    """Whether a file's name is that of weights: a known suffix, and no optimizer's state."""
    return path.suffix in SUFFIXES and not path.name.endswith(OPTIMIZER)


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
    """Checkpoints in the order given, checked to exist and to be distinct.

    Raises:
        ValueError: no path, a missing file, or one given twice.
    """
    given = [paths] if isinstance(paths, (str, Path)) else listed("checkpoints", paths, "paths of files")
    for index, path in enumerate(given):
        if not isinstance(path, (str, Path)):
            raise TypeError(
                f"checkpoints[{index}] must be the path of a file, got {type(path).__name__}; save it with torch.save, or pass "
                "objective.at(state) to the probe of a single one"
            )
    files = [Path(path) for path in given]
    if not files:
        raise ValueError("checkpoints must hold at least one file, got none")
    for index, file in enumerate(files):
        check_file(f"checkpoints[{index}]", file)
        if file.resolve() in {other.resolve() for other in files[:index]}:
            raise ValueError(f"checkpoints[{index}] is given twice, got {str(file)!r}")
    labels = ([file.stem for file in files], [file.name for file in files], [str(file) for file in files])
    names = next(names for names in labels if len(set(names)) == len(names))
    return tuple(Checkpoint(file, name, _step(file.stem)) for file, name in zip(files, names, strict=True))


def check_file(name: str, file: Path) -> None:
    """Raise a ValueError that begins with ``name`` unless there is a file."""
    if not file.is_file():
        found = "a directory" if file.is_dir() else "which does not exist"
        raise ValueError(f"{name} must be a file, got {str(file)!r}, {found}")


def _step(stem: str) -> int | None:
    if stem.isdigit():
        return int(stem)
    found = re.search(r"(?:step|epoch|iter|iteration|checkpoint|ckpt)[-_=]?(\d+)", stem, re.IGNORECASE)
    return int(found[1]) if found else None


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a ``.safetensors`` file, or of a torch file read with ``weights_only=True``.

    A dict that wraps the state dict under a usual key (``state_dict``, ``model`` ...) is unwrapped.

    Raises:
        ValueError: corrupt file, one that would run code when unpickled, or one without a state dict.
    """
    return unwrapped(_content(path), f"checkpoint {path}")


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
