"""How a worker of an executor comes by the objective: made there, or sent to it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch.distributed as dist

from fastscape._checks import first_line
from fastscape.objective.objective import Objective
from fastscape.runs.ranks import Distributed, checked_distributed

_LARGEST = 2**26  # bytes of an objective that is sent with every group of units


@runtime_checkable
class Making(Protocol):
    """What pickles and makes the same objective in any process, as :class:`fastscape.Source` does."""

    def make(self) -> Objective:
        """The objective, made anew."""
        ...


@dataclass(frozen=True)
class Sent:
    """An objective as its pickle."""

    content: bytes

    def make(self) -> Objective:
        """The objective, read."""
        found: Objective = pickle.loads(self.content)
        return found


def made(value: Objective | Making) -> Objective:
    """The objective that an argument is, or makes."""
    return value.make() if isinstance(value, Making) else value


def making(value: Objective | Making) -> Making:
    """What a worker makes the objective of an argument with.

    Raises:
        ValueError: an objective that does not pickle, or is too large to be sent.
    """
    if isinstance(value, Making):
        return value
    content = pickled("objective", value)
    if len(content) >= _LARGEST:
        raise ValueError(
            f"objective must pickle to less than {_LARGEST >> 20} MiB to be sent with executor=, got {len(content) >> 20} MiB; "
            "pass fs.Source(factory, state='weights.safetensors')"
        )
    return Sent(content)


def pickled(name: str, value: object) -> bytes:
    """The pickle of an argument.

    Raises:
        ValueError: there is none, with the remedy.
    """
    try:
        return pickle.dumps(value)
    except Exception as error:
        raise ValueError(
            f"{name} must pickle to reach the workers of an executor, got {type(error).__name__}: {first_line(error)}; in place "
            "of lambdas and inner functions use functions that a module defines at its top level, or fs.Source"
        ) from error


def check_executor(executor: object, distributed: Distributed) -> None:
    """Refuse what cannot evaluate units; ``None`` is no executor.

    Raises:
        TypeError: an executor without ``submit``.
        ValueError: processes of torchrun beside it.
    """
    if executor is None:
        return
    checked_distributed(distributed)
    if isinstance(executor, type) or not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"executor must have submit(function, argument), got {executor!r}; use such as "
            "concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn'))"
        )
    if distributed is True or (dist.is_available() and isinstance(distributed, dist.ProcessGroup)):
        raise ValueError("distributed must be left out with executor=, which shares the work among its own workers, got both")
