"""An objective by names and files instead of tensors, for workers that make it themselves."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastscape._checks import shown
from fastscape.objective.objective import Objective, checked_objective
from fastscape.runs.checkpoint_layouts import files_of, label_of
from fastscape.runs.checkpoints import Checkpoint
from fastscape.runs.making import pickled
from fastscape.zoo import specs


class Source:
    """How to make an objective, in this process or in a worker of an executor, to which only names and paths travel.

    Args:
        factory: a function that a module defines and that returns an :class:`Objective`, or text as on the command line: a model,
            ``zoo:NAME``, ``torchvision:NAME``, ``package.module:factory`` or ``path/file.py:factory``, each with optional
            ``?name=value&name=value``, made with torch's generator at seed 0; of a function that returns an objective, that.
        data: of a model that text names: such as ``"zoo:digits"``, ``package.module:factory``, an iterable of batches.
        state: a file of weights to use, ``.safetensors`` or torch's, of tensors alone; workers refuse another content than it has
            now.
        options: of :class:`fastscape.Objective`; ``criterion`` is ``cross_entropy`` unless there is a ``loss``, and both may be
            text: ``cross_entropy``, ``mse``, ``bce``, ``package.module:function``.

    Raises:
        TypeError, ValueError: what cannot travel, such as a lambda, a file that is missing, or options that nothing takes.

    Example:
        >>> import fastscape as fs
        >>> fs.Source("zoo:mlp", data="zoo:digits?samples=64").make().size
        17226
    """

    def __init__(
        self,
        factory: str | Callable[..., Any],
        data: str | None = None,
        *,
        state: str | Path | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(factory, str) and not callable(factory):
            raise TypeError(
                f"factory must be a function that returns an Objective, or text such as 'zoo:mlp', got {shown(factory)}"
            )
        if data is not None and not isinstance(data, str):
            raise TypeError(f"data must be text such as 'zoo:digits' to reach a worker, got {shown(data)}")
        beside = [*(["data"] if data is not None else []), *options]
        if not isinstance(factory, str) and beside:
            raise ValueError(
                f"data and options belong to a model that text names, got {', '.join(beside)} "
                "beside a function; make them part of it, with functools.partial perhaps"
            )
        self.factory, self.data, self.options = factory, data, options
        for name, value in {"factory": factory, **options}.items():
            pickled(name, value)
        self.state = None if state is None else Path(state).absolute()
        self.digest = None if self.state is None else _digest(self.state)

    def make(self) -> Objective:
        """The objective, made anew.

        Raises:
            ValueError: names that lead to nothing, or weights other than the file had.
        """
        objective = self._objective()
        if self.state is None:
            return objective
        if _digest(self.state) != self.digest:
            raise ValueError(
                f"state must be the file that it was when fs.Source was made, got other content of {str(self.state)!r} on "
                f"{platform.node()}; make the Source again"
            )
        return Checkpoint(self.state, label_of(self.state), None).at(objective)

    def __repr__(self) -> str:
        name = self.factory if isinstance(self.factory, str) else getattr(self.factory, "__qualname__", repr(self.factory))
        return f"Source({name})"

    def _objective(self) -> Objective:
        if not isinstance(self.factory, str):
            return checked_objective(self.factory())
        built = specs.build(self.factory, "factory", specs.MODELS)
        if isinstance(built, Objective):
            if self.data is not None or self.options:
                raise ValueError(f"data and options must be left out where {self.factory!r} returns an Objective")
            return built
        if not isinstance(built, torch.nn.Module):
            raise ValueError(
                f"factory must build a torch module or an Objective, got {type(built).__name__} from {self.factory!r}"
            )
        if self.data is None:
            raise ValueError(f"data must name the batches to evaluate {self.factory!r} on, such as 'zoo:digits', got None")
        options = dict(self.options)
        loss = specs.loss_arguments(self.factory, *(options.pop(name, None) for name in ("criterion", "loss", "output")))
        return Objective(built, specs.build(self.data, "data", specs.DATA), **loss, **options)


def _digest(path: Path) -> str:
    """SHA-256 of the files of a checkpoint."""
    if not path.exists():
        raise ValueError(f"state must be a file of weights, got {str(path)!r} on {platform.node()}")
    digest = hashlib.sha256()
    for file in files_of(path):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
