"""The keywords that probes share, one by one or together as a :class:`Run`."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, get_args, get_type_hints

from fastscape._checks import checked_settings
from fastscape.runs.budget import Budget
from fastscape.runs.ranks import Distributed


class _Unsaid(enum.Enum):
    UNSAID = "left to the probe"


_UNSAID: Any = _Unsaid.UNSAID  # None is a value: no budget, no step
_DEFAULTS: dict[str, Any] = {"seed": 0, "name": "model"}  # of all probes but for those that say otherwise; None for the rest


@dataclass(frozen=True, repr=False)
class Run:
    """How work is done, for any number of probes: ``fs.barrier(objective, a, b, run=run)``.

    Every probe takes these as plain keywords too, and its docstring says what they mean there. What is left out here has the
    probe's own default. A probe refuses what it does not take (see :meth:`without`) and a keyword that is given in both places
    with different values.

    Args:
        budget: seconds, ``"60s"``, or a :class:`fastscape.runs.budget.Budget`, whose deadline is then one for all probes.
        memory: bytes that batched evaluation or products may take.
        seed: of everything random.
        progress: called by the probe with what it says of its progress.
        path: how to evaluate or multiply, by the probe's names.
        precision: ``"float32"`` or ``"float64"``.
        targets: what ends the work before the budget does, by name.
        name, step: of the checkpoint.
        distributed: whether the processes that torchrun started share the work, as for :func:`fastscape.multifractal`.

    Example:
        >>> import fastscape as fs
        >>> run = fs.Run(budget="30s", seed=1)
        >>> run
        Run(budget='30s', seed=1)
        >>> run.without("budget")
        Run(seed=1)
    """

    budget: str | float | Budget | None = _UNSAID
    memory: int | None = _UNSAID
    seed: int = _UNSAID
    progress: Callable[..., None] | None = _UNSAID
    path: str | None = _UNSAID
    precision: str | None = _UNSAID
    targets: Mapping[str, float | None] | None = _UNSAID
    name: str = _UNSAID
    step: int | None = _UNSAID
    distributed: Distributed = _UNSAID

    @property
    def said(self) -> dict[str, Any]:
        """What was given, by name."""
        pairs = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in pairs if value is not _UNSAID}

    def without(self, *names: str) -> Run:
        """The same, leaving these to the probe."""
        return dataclasses.replace(self, **dict.fromkeys(names, _UNSAID))

    def clock(self) -> Budget:
        """The budget, which starts now unless it has been started before."""
        return self.budget if isinstance(self.budget, Budget) else Budget(self.budget)

    def __repr__(self) -> str:
        return f"Run({', '.join(f'{name}={value!r}' for name, value in self.said.items())})"


class Seeded(TypedDict, total=False):
    """Keywords of what draws random numbers."""

    run: Run | None
    seed: int


class Timed(Seeded, total=False):
    """Keywords of a probe of several checkpoints."""

    budget: str | float | Budget | None


class Work(Timed, total=False):
    """Keywords of every probe of one checkpoint."""

    name: str
    step: int | None


def settled(door: Callable[..., object], keywords: Mapping[str, object], **defaults: object) -> Run:
    """What a function works with: its keywords, what ``run=`` says beside them, and defaults for the rest.

    Args:
        door: the function, whose ``**keywords: Unpack[...]`` say what it takes.
        keywords: what it was given.
        defaults: where they are not those of most probes.

    Raises:
        TypeError: a keyword that there is not, with the nearest that there is; a ``run`` that is none.
        ValueError: a keyword with another value in ``run``, or one in ``run`` that the function does not take.
    """
    shared = shared_keywords(door)
    unknown = next((name for name in keywords if name not in shared), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, (*inspect.signature(door).parameters, *shared), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TypeError(f"{door.__qualname__}() got an unexpected keyword argument {unknown!r}{hint}")
    run = checked_settings("run", keywords.get("run"), Run)
    taken = [field.name for field in dataclasses.fields(Run) if field.name in shared]
    for name, value in run.said.items():
        if name not in taken:
            raise ValueError(
                f"run must say what {door.__qualname__}() takes of it, {', '.join(taken)}, got {name}={value!r}; "
                f"pass run.without({name!r})"
            )
        if name in keywords and not _same(value, keywords[name]):
            raise ValueError(f"{name} must be given once, got {keywords[name]!r} beside run.{name} = {value!r}; leave one out")
    given = {name: keywords[name] for name in taken if name in keywords}
    return Run(**{**{name: _DEFAULTS.get(name) for name in taken}, **defaults, **run.said, **given})


def _same(first: object, second: object) -> bool:
    return first is second or (type(first) is type(second) and bool(first == second))


@functools.cache
def shared_keywords(door: Callable[..., object]) -> tuple[str, ...]:
    """Keywords that a function takes by ``**keywords: Unpack[...]``."""
    kind = get_args(get_type_hints(door)["keywords"])[0]
    return tuple(sorted(kind.__required_keys__ | kind.__optional_keys__))
