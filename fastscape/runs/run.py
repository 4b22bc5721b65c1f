"""The keywords that probes share, one by one or together as a :class:`Run`."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, get_args, get_type_hints

from fastscape._checks import check_memory, check_progress, checked_settings, integer, real, shown
from fastscape._renamed import METHOD, renamed, under_new_names
from fastscape.runs.budget import Budget
from fastscape.runs.folder import check_folder
from fastscape.runs.ranks import Distributed, checked_distributed


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
        memory: bytes that a call may take beside what was there before it.
        seed: of everything random.
        progress: called by the probe with a :class:`Progress` after every unit of its work.
        method: how to evaluate or multiply, by the probe's names.
        precision: ``"float32"`` or ``"float64"``.
        targets: what ends the work before the budget does, by name.
        name, step: of the checkpoint.
        distributed: whether the processes that torchrun started share the work, as for :func:`fastscape.multifractal`.
        resume: a folder for the journal of one run of one probe.
        executor: whose workers evaluate, as for :func:`fastscape.multifractal`.

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
    method: str | None = _UNSAID
    precision: str | None = _UNSAID
    targets: Mapping[str, float | None] | None = _UNSAID
    name: str = _UNSAID
    step: int | None = _UNSAID
    distributed: Distributed = _UNSAID
    resume: str | Path | None = _UNSAID
    executor: Any = _UNSAID

    @property
    def said(self) -> dict[str, Any]:
        """What was given, by name."""
        pairs = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in pairs if value is not _UNSAID}

    def without(self, *names: str) -> Run:
        """The same, leaving these to the probe."""
        return dataclasses.replace(self, **dict.fromkeys((METHOD.get(name, name) for name in names), _UNSAID))

    def clock(self) -> Budget:
        """The budget, which starts now unless it has been started before."""
        return self.budget if isinstance(self.budget, Budget) else Budget(self.budget)

    def __repr__(self) -> str:
        return f"Run({', '.join(f'{name}={value!r}' for name, value in self.said.items())})"


Run.__init__ = renamed(METHOD)(Run.__init__)  # type: ignore[method-assign]


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


class Resumed(TypedDict, total=False):
    """Keyword of a probe whose evaluations a journal keeps."""

    resume: str | Path | None


def settled(door: Callable[..., object], keywords: Mapping[str, object], **defaults: object) -> Run:
    """What a function works with: its keywords, what ``run=`` says beside them, and defaults for the rest.

    Args:
        door: the function, whose ``**keywords: Unpack[...]`` say what it takes.
        keywords: what it was given.
        defaults: where they are not those of most probes.

    Raises:
        TypeError: a keyword that there is not, with the nearest that there is; a ``run`` that is none; a ``progress`` that
            cannot be called.
        ValueError: a keyword with another value in ``run``, or one in ``run`` that the function does not take.

    Warns:
        DeprecationWarning: a keyword under an earlier name.
    """
    shared = shared_keywords(door)
    names = {old: new for old, new in METHOD.items() if new in shared}
    keywords = under_new_names(
        keywords, names, door.__qualname__.removesuffix(".__init__"), stacklevel=3 + hasattr(door, "__wrapped__")
    )
    unknown = next((name for name in keywords if name not in shared), None)
    if unknown is not None:
        raise TypeError(f"{door.__qualname__}() got an unexpected keyword argument {unknown!r}{_hint(door, unknown)}")
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
    found = Run(**{**{name: _DEFAULTS.get(name) for name in taken}, **defaults, **run.said, **given})
    check_shared(found.said)
    return dataclasses.replace(found, name=str(found.name)) if isinstance(found.name, (Path, int)) else found


def check_shared(values: Mapping[str, Any]) -> None:
    """Raise for a value of a shared keyword that it cannot have in any probe; what only some take is theirs to check."""
    for name, value in values.items():
        if value is None:
            continue
        if name in ("name", "method") and not isinstance(value, (str, Path, int) if name == "name" else str):
            raise TypeError(f"{name} must be text, got {shown(value)}")
        if name == "step" and not real(value):
            raise TypeError(f"step must be a number of optimizer steps, got {shown(value)}")
        if name == "seed":
            integer(name, value, 0, 2**64)
        elif name == "distributed":
            checked_distributed(value)
        elif name == "resume":
            check_folder(value)
        elif name == "memory":
            check_memory(value)
        elif name == "progress":
            check_progress(value)
        elif name == "budget" and not isinstance(value, Budget):
            Budget(value)


def _hint(door: Callable[..., object], unknown: str) -> str:
    """The nearest keyword of a function, or of the settings that it takes."""
    own = dict.fromkeys((*inspect.signature(door).parameters, *shared_keywords(door)))
    settings = {
        field.name: f"it belongs to {argument}=fs.{kind.__name__}({field.name}=...)"
        for argument, hint in get_type_hints(door).items()
        for kind in (hint, *get_args(hint))
        if argument in own and isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__name__.endswith("Settings")
        for field in dataclasses.fields(kind)
    }
    near = difflib.get_close_matches(unknown, (*own, *settings), n=1)
    if not near:
        return ""
    return f"; did you mean {near[0]!r}?" if near[0] in own else f"; {settings[near[0]]}"


def _same(first: object, second: object) -> bool:
    return first is second or (type(first) is type(second) and bool(first == second))


@functools.cache
def shared_keywords(door: Callable[..., object]) -> tuple[str, ...]:
    """Keywords that a function takes by ``**keywords: Unpack[...]``."""
    kind = get_args(get_type_hints(door)["keywords"])[0]
    return tuple(sorted(kind.__required_keys__ | kind.__optional_keys__))
