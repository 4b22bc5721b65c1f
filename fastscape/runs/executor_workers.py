"""Units of a long run on the workers of an executor: a pool of processes, Dask, submitit, or whatever has ``submit``.

The caller decides and sends groups of units; a worker makes the objective once, compares it with the plan, and leaves its process
as it was after every group.
"""

from __future__ import annotations

import math
import os
import pickle
import platform
import threading
import traceback
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from fastscape._clock import now
from fastscape._creation import users_dtype
from fastscape._state import torch_threads
from fastscape.objective.objective import Objective
from fastscape.ops import _native
from fastscape.runs.agreement import confirm
from fastscape.runs.making import pickled
from fastscape.runs.plan import Plan, versions
from fastscape.runs.ranks import Waiting
from fastscape.runs.units import Pace, Unit

_GROUP = 20.0  # seconds of work that are sent together
_AHEAD = 4  # groups that are sent for every worker
_SLOTS = 64  # workers, where an executor does not say
_PART = 4  # of the time that is left, which a group takes at most one
_MARGIN = 1.25  # how much longer than the slowest unit the next may take
_Key = tuple[int, int, int, int]


class WorkerError(RuntimeError):
    """Work failed twice on the workers of an executor; the message names the unit and the machine."""


class Serving(Protocol):
    """What evaluates units on a worker; outside of its ``with`` block nothing of the process is changed."""

    @property
    def lanes(self) -> int | None:
        """Directions evaluated at a time since memory ran out; ``None`` where it never did."""
        ...

    @property
    def evaluations(self) -> int:
        """Evaluations of the loss, inside of the block so far at least."""
        ...

    def whole(self, point: int) -> Objective:
        """The objective of a checkpoint."""
        ...

    def learn(self, unit: Unit, plan: Plan) -> None:
        """Take the plan of a unit's checkpoint, and make what evaluates it."""
        ...

    def __call__(self, unit: Unit) -> bytes:
        """The bytes of a unit."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


Recipe = Callable[[], Serving]  # which pickles


@dataclass(frozen=True)
class _Group:
    """Units on their way to a worker, all of one checkpoint and group of batches.

    Attributes:
        call: name of the call that they belong to.
        process: of the caller.
        recipe: of what evaluates them, as its pickle.
        plan: of their checkpoint.
        keys: of the units.
        seconds: after which no other unit of the group is begun.
        made: what the last bits depend on at the caller.
    """

    call: str
    process: tuple[str, int]
    recipe: bytes
    plan: Plan
    keys: tuple[_Key, ...]
    seconds: float
    made: Mapping[str, str]


@dataclass(frozen=True)
class _Answer:
    """What a worker says to a group.

    Attributes:
        process: of the worker.
        made: what the last bits depend on there.
        values: of the units that it evaluated: key, bytes, seconds, and directions at a time where memory was short.
        refused: why its objective is not that of the plan; empty where it is.
        failed: what a unit raised; empty where none did.
        evaluations: of the loss.
    """

    process: tuple[str, int]
    made: Mapping[str, str]
    values: tuple[tuple[_Key, bytes, float, int | None], ...] = ()
    refused: str = ""
    failed: str = ""
    evaluations: int = 0


@dataclass
class _Kept:
    """The objective of the call that a worker served last, with the checkpoints that were compared."""

    call: str
    serving: Serving
    compared: set[int] = field(default_factory=set)


_alone = threading.Lock()  # evaluations set what belongs to the process
_calls: set[str] = set()  # that this process makes
_kept: _Kept | None = None


def work(content: bytes) -> bytes:
    """Evaluate a group of units, in a worker; what it got and gives is pickled by the caller, not by the executor."""
    group: _Group = pickle.loads(content)
    with _alone:
        if group.process != _process():
            return pickle.dumps(_worked(group))
        with ThreadPoolExecutor(1) as clean:  # not the caller's thread, which is in the middle of an evaluation
            return pickle.dumps(clean.submit(_worked, group).result())


def _worked(group: _Group) -> _Answer:
    here = _process()
    if group.process == here:
        if group.call not in _calls:  # it has ended, and what its process set has been put back
            return _Answer(here, _made())
        if any(way.precision == "difference-bf16" for way in group.plan.ways):
            words = "executor must have processes of its own for precision='difference-bf16', whose products need one alone"
            return _Answer(here, _made(), refused=f"{words}, got threads of the caller; use a pool of processes")
    unit, values = Unit(*group.keys[0]), list[tuple[_Key, bytes, float, int | None]]()
    try:
        serving = _serving(group, unit)
    except ValueError as error:
        return _Answer(here, _made(), refused=str(error))
    pace, evaluations = Pace(_MARGIN), 0
    pace.give(group.seconds)
    try:
        with users_dtype(), serving:
            before = serving.evaluations
            serving.learn(unit, group.plan)
            for key in group.keys:
                if values and not pace.fits:
                    break
                unit, start = Unit(*key), now()
                with pace.unit():
                    data = serving(unit)
                values.append((key, data, now() - start, serving.lanes))
                evaluations = serving.evaluations - before
    except Exception as error:
        where = "".join(traceback.format_exception(error)[-3:]).strip()
        words = f"unit {unit.key} on {here[0]} (process {here[1]}): {type(error).__name__}: {error}\n{where}"
        return _Answer(here, _made(), tuple(values), failed=words, evaluations=evaluations)
    return _Answer(here, _made(), tuple(values), evaluations=evaluations)


def _serving(group: _Group, unit: Unit) -> Serving:
    """What evaluates the units of a call, made for its first group and compared with the plan of every checkpoint."""
    global _kept
    if _kept is None or _kept.call != group.call:
        _kept = None  # before another takes memory
        recipe: Recipe = pickle.loads(group.recipe)
        with users_dtype():
            _kept = _Kept(group.call, recipe())
    if unit.point not in _kept.compared:
        with torch_threads(group.plan.threads):
            confirm(group.plan, _kept.serving.whole(unit.point), group.made)
        _kept.compared.add(unit.point)
    return _kept.serving


def _process() -> tuple[str, int]:
    return platform.node(), os.getpid()


def _made() -> dict[str, str]:
    return versions() | {"kernels": _native.library.isa if _native.library.available else "none"}


class Hired:
    """An executor for the time of a call: a context manager, after which no worker does anything for it.

    Args:
        executor: see :func:`fastscape.runs.making.check_executor`.
        recipe: of what evaluates units, which pickles.

    Raises:
        ValueError: a pool that forks a process in which CUDA has begun.

    Warns:
        UserWarning: one that forks a process in which torch has several threads.
    """

    def __init__(self, executor: Any, recipe: Recipe) -> None:
        self.executor, self.recipe, self.call = executor, pickled("objective", recipe), uuid.uuid4().hex
        self.engine = type(executor).__name__
        self.slots = _slots(executor)
        _check_fork(executor)

    def __enter__(self) -> Self:
        _calls.add(self.call)
        return self

    def __exit__(self, *_: object) -> None:
        global _kept
        _calls.discard(self.call)
        with _alone:  # a worker that is a thread of this process ends its group
            if _kept is not None and _kept.call == self.call:
                _kept = None

    def submit(self, plan: Plan, units: Sequence[Unit], seconds: float) -> Any:
        """A future of the answer to a group of units.

        Raises:
            WorkerError: the executor takes no more.
        """
        keys = tuple(unit.key for unit in units)
        group = _Group(self.call, _process(), self.recipe, plan, keys, seconds, _made())
        try:
            return self.executor.submit(work, pickle.dumps(group))
        except Exception as error:
            raise WorkerError(f"executor took no unit {keys[0]}: {type(error).__name__}: {error}") from error


def _slots(executor: Any) -> int:
    """Workers of an executor: pools of the standard library and Dask's client say how many."""
    known = getattr(executor, "_max_workers", None)
    cores = getattr(executor, "ncores", None)
    if known is None and callable(cores):
        with suppress(Exception):
            known = sum(cores().values())
    return known if isinstance(known, int) and known > 0 else _SLOTS


def _check_fork(executor: Any) -> None:
    context = getattr(executor, "_mp_context", None)
    if context is None or context.get_start_method() != "fork":
        return
    remedy = "use ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn'))"
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise ValueError(f"executor must not fork this process, in which CUDA has begun, got a pool that does; {remedy}")
    if torch.get_num_threads() > 1:
        warnings.warn(
            f"executor forks this process, in which torch has {torch.get_num_threads()} threads: its workers may wait for ever; "
            f"{remedy}",
            stacklevel=2,
        )


@dataclass(frozen=True)
class _Out:
    """Units that are out with a worker, and whether for the second time."""

    units: Sequence[Unit]
    again: bool = False


@dataclass
class _Share:
    """What one worker did."""

    units: int = 0
    busy: float = 0.0
    lanes: int | None = None


class ExecutorWorkers:
    """The workers of an executor evaluate units.

    Attributes:
        evaluations: of the loss, by the workers.

    Args:
        hired: the executor.
        plan: of a unit's checkpoint.
        keep: takes every value, with its seconds and lanes, before anybody hears of it.
        known: values that are there already.
    """

    def __init__(
        self,
        hired: Hired,
        plan: Callable[[Unit], Plan],
        keep: Callable[[Unit, bytes, float, int | None], object] = lambda *_: None,
        known: Mapping[Unit, bytes] | None = None,
    ) -> None:
        self._hired, self._plan, self._keep, self._known = hired, plan, keep, known or {}
        self._shares: dict[tuple[str, int], _Share] = {}
        self._slowest = 0.0
        self.evaluations = 0
        self._end = math.inf
        self._same = True

    @property
    def meta(self) -> Mapping[str, Any]:
        """See :class:`fastscape.runs.units.Workers`."""
        shares = list(self._shares.values())
        found: dict[str, Any] = {
            "engine": self._hired.engine,
            "size": len(shares),
            "units": [share.units for share in shares],
            "busy": [share.busy for share in shares],
            "machines": [host for host, _ in self._shares],
            "oom": {str(index): share.lanes for index, share in enumerate(shares) if share.lanes is not None},
        }
        return {"workers": found} | ({} if self._same else {"bitwise": False})

    def map(self, units: Sequence[Unit], seconds: float = math.inf) -> Iterator[tuple[Unit, bytes]]:
        """See :class:`fastscape.runs.units.Workers`.

        Raises:
            ValueError: the objective of a worker is not that of the plan.
            WorkerError: a unit failed twice.
        """
        self._end = now() + seconds
        yield from ((unit, self._known[unit]) for unit in units if unit in self._known)
        waiting = deque(unit for unit in units if unit not in self._known)
        out: dict[Any, _Out] = {}
        try:
            while True:
                self._send(waiting, out)
                future = self._first(out)
                if future is None:
                    return
                try:
                    yield from self._answered(future, out, waiting)
                except WorkerError:
                    for ready in [each for each in out if _is_done(each)]:
                        group = out.pop(ready)
                        yield from self._values(_answer(ready, group), {unit.key: unit for unit in group.units})
                    raise
        finally:
            _cancel(out)

    def _send(self, waiting: deque[Unit], out: dict[Any, _Out]) -> None:
        """Send what the workers can have before them and is expected to end in time."""
        slots = self._hired.slots
        most = _AHEAD * slots if self._shares else slots
        while waiting and len(out) < most:
            left, size = self._end - now(), self._size(len(waiting))
            queued = 1 + len(out) // slots
            if left <= 0 or _MARGIN * self._slowest * size * queued > left:
                return
            group = [waiting.popleft() for _ in range(size)]
            out[self._hired.submit(self._plan(group[0]), group, left)] = _Out(group)

    def _size(self, waiting: int) -> int:
        """Units of a group: one until it is known how long they take."""
        if not self._shares or not self._slowest:
            return 1
        seconds = min(_GROUP, (self._end - now()) / _PART)
        return max(1, min(int(seconds / self._slowest), -(-waiting // self._hired.slots)))

    def _first(self, out: dict[Any, _Out]) -> Any:
        """A future that is done, awaited; ``None`` where none is out. At the deadline those that have not begun are dropped."""
        pause = Waiting()
        while out:
            if now() >= self._end:
                _cancel(out)
            for future in out:
                if _is_done(future):
                    return future
            pause.pause()
        return None

    def _answered(self, future: Any, out: dict[Any, _Out], waiting: deque[Unit]) -> Iterator[tuple[Unit, bytes]]:
        """The values of a future that is done; units that failed go out again, once."""
        group = out.pop(future)
        left = {unit.key: unit for unit in group.units}
        answer = _answer(future, group)
        yield from self._values(answer, left)
        if answer.refused:
            raise ValueError(answer.refused)
        rest = list(left.values())
        if answer.failed and group.again:
            raise WorkerError(answer.failed)
        if answer.failed:
            out[self._hired.submit(self._plan(rest[0]), rest, self._end - now())] = _Out(rest, again=True)
        else:
            waiting.extendleft(reversed(rest))

    def _values(self, answer: _Answer, left: dict[_Key, Unit]) -> Iterator[tuple[Unit, bytes]]:
        """What an answer brings; those units are left no more."""
        self.evaluations += answer.evaluations
        for key, data, seconds, lanes in answer.values:
            unit = left.pop(key)
            self._note(answer, seconds, lanes)
            self._keep(unit, data, seconds, lanes)
            yield unit, data

    def _note(self, answer: _Answer, seconds: float, lanes: int | None) -> None:
        share = self._shares.setdefault(answer.process, _Share())
        share.units, share.busy = share.units + 1, share.busy + seconds
        share.lanes = min((each for each in (share.lanes, lanes) if each is not None), default=None)
        self._slowest = max(self._slowest, seconds)
        self._same = self._same and answer.made == _made()


def _answer(future: Any, group: _Out) -> _Answer:
    """The answer in a future, awaited; one that is lost has failed."""
    try:
        found: _Answer = pickle.loads(future.result())
    except Exception as error:
        return _Answer(("", 0), {}, failed=f"unit {group.units[0].key} on a worker: {type(error).__name__}: {error}")
    return found


def _is_done(future: Any) -> bool:
    """Whether there is an answer; a future that cannot say is awaited in its turn."""
    done = getattr(future, "done", None)
    return done is None or bool(done())


def _cancel(out: dict[Any, _Out]) -> None:
    """Drop the futures that have not begun; one that says it has is left."""
    for future in list(out):
        cancel = getattr(future, "cancel", None)
        if cancel is None or cancel() is not False:
            del out[future]
