"""Units of a long run on the processes of a torch.distributed group: rank 0 decides, all evaluate.

Every process takes the next unit of a round from a counter in the store, so that the faster does more, and the bytes of a result
depend on its unit alone.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastscape._clock import now
from fastscape.runs.folder import MANIFEST
from fastscape.runs.journal import Journal
from fastscape.runs.memory import out_of_memory
from fastscape.runs.ranks import PATIENCE, RankError, Ranks, Waiting, opened, sealed
from fastscape.runs.units import Evaluate, Pace, Unit

_MARGIN = 1.25  # how much longer than its slowest unit a rank expects the next to take
_UNITS = 20  # of the slowest kind, after which a rank that says nothing is not waited for


@dataclass(frozen=True)
class _Word:
    """What a rank tells rank 0.

    Attributes:
        kind: ``"value"``, ``"memory"`` or ``"failed"`` of a unit, or ``"left"`` of a round that has ended there.
        number: of the round.
        index: of the unit in it; -1 for none.
        content: bytes of a value, words for what went wrong.
        seconds: that a value took.
        lanes: directions that it was evaluated by, where memory was short.
        kept: whether a value is in the journal.
        evaluations: of the loss, in the rank so far.
    """

    kind: str
    number: int
    index: int = -1
    content: Any = None
    seconds: float = 0.0
    lanes: int | None = None
    kept: bool = True
    evaluations: int = 0


@dataclass
class _Share:
    """What one rank did of the work."""

    units: int = 0
    busy: float = 0.0
    lanes: int | None = None
    exhausted: bool = False
    evaluations: int = 0

    def did(self, seconds: float, lanes: int | None) -> None:
        self.units, self.busy = self.units + 1, self.busy + seconds
        self.lanes = min((each for each in (self.lanes, lanes) if each is not None), default=None)


@dataclass
class _Round:
    """A round on rank 0.

    Attributes:
        number: of the round in the call.
        units: of it.
        drawn: how many of them are begun, once nobody begins another.
        closed: whether nobody does.
        answered: indices of those that are done, or have failed.
        short: units that a rank had no memory for.
        left: ranks that take no more.
    """

    number: int
    units: Sequence[Unit]
    drawn: int
    closed: bool = False
    answered: set[int] = field(default_factory=set)
    short: list[Unit] = field(default_factory=list)
    left: int = 0


class TorchWorkers:
    """All processes of a group evaluate units: the side of rank 0; :func:`serve` is that of the others.

    Args:
        ranks: the processes.
        evaluate: the bytes of a unit, in this process.
        about: what the others must know before they evaluate units, of the first of them; it must pickle.
        lanes: directions that this process evaluates at a time where its memory was short; ``None`` where it never was.
        keep: takes the values that another rank could not write to the journal, with their seconds and lanes.
    """

    def __init__(
        self,
        ranks: Ranks,
        evaluate: Evaluate,
        about: Callable[[Unit], object] = lambda _unit: None,
        lanes: Callable[[], int | None] = lambda: None,
        keep: Callable[[Unit, bytes, float, int | None], object] = lambda *_: None,
    ) -> None:
        self._ranks, self._evaluate, self._about, self._lanes, self._keep = ranks, evaluate, about, lanes, keep
        self.pace = Pace(_MARGIN)
        self._slowest = 0.0  # of all ranks
        self._rounds: dict[int, _Round] = {}  # that some rank is in
        self._number = 0
        self._shares = [_Share() for _ in range(ranks.size)]

    @property
    def meta(self) -> Mapping[str, Any]:
        """See :class:`fastscape.runs.units.Workers`."""
        shares = self._shares
        found: dict[str, Any] = {
            "engine": self._ranks.engine,
            "size": self._ranks.size,
            "units": [share.units for share in shares],
            "busy": [share.busy for share in shares],
            "machines": list(self._ranks.hosts),
            "oom": {str(rank): share.lanes for rank, share in enumerate(shares) if share.lanes is not None},
        }
        return {"workers": found}

    @property
    def evaluations(self) -> int:
        """Of the loss, by the other ranks."""
        return sum(share.evaluations for share in self._shares)

    def map(self, units: Sequence[Unit], seconds: float = math.inf) -> Iterator[tuple[Unit, bytes]]:
        """See :class:`fastscape.runs.units.Workers`.

        Raises:
            RankError: another rank failed.
            MemoryError: two ranks, or all, have no memory for one direction.
        """
        self.pace.give(seconds)
        start, lacking = now(), list(units)
        for _ in range(2):  # what one rank has no memory for goes to another
            if lacking and not all(share.exhausted for share in self._shares):
                current = self._begin(lacking, seconds - (now() - start))
                yield from self._evaluated(current)
                lacking = current.short
        if lacking:
            raise MemoryError(f"the ranks have no memory for one direction of unit {lacking[0].key}; pass smaller batches")

    def _begin(self, units: Sequence[Unit], seconds: float) -> _Round:
        current = _Round(self._number, units, len(units))
        self._rounds[self._number] = current
        self._number += 1
        keys = [unit.key for unit in units]
        self._ranks.tell(f"round/{current.number}", (keys, seconds, self._about(units[0])))
        return current

    def _evaluated(self, current: _Round) -> Iterator[tuple[Unit, bytes]]:
        """The units of a round: own ones, and between them what the others have ready."""
        try:
            while self.pace.fits and (index := self._draw(current)) is not None:
                yield from self._own(current, index)
                yield from self._ready(current)
            if not self._shares[0].exhausted:
                self._close(current)  # the others have no time for what this process has none for
            yield from self._awaited(current)
        finally:
            self._close(current)
            self._forget(current)

    def _draw(self, current: _Round) -> int | None:
        if self._shares[0].exhausted:
            return None
        index = self._ranks.count(f"next/{current.number}") - 1
        current.closed = current.closed or index >= len(current.units)
        return None if current.closed else index

    def _close(self, current: _Round) -> None:
        """Let nobody begin another unit of a round."""
        if not current.closed:
            size = len(current.units)
            current.drawn = min(size, self._ranks.count(f"next/{current.number}", size) - size)
            current.closed = True

    def _forget(self, current: _Round) -> None:
        """Drop the keys of a round that is closed and that every rank has left."""
        if current.closed and current.left == len(self._ranks.others):
            self._ranks.drop(f"round/{current.number}", f"next/{current.number}")
            self._rounds.pop(current.number, None)

    def _own(self, current: _Round, index: int) -> Iterator[tuple[Unit, bytes]]:
        """A unit in this process; its error comes after what the others have ready."""
        unit, start = current.units[index], now()
        current.answered.add(index)
        try:
            with self.pace.unit():
                data = self._evaluate(unit)
        except Exception as error:
            if not out_of_memory(error):
                self._close(current)
                yield from self._ready(current)
                raise
            current.short.append(unit)
            self._shares[0].exhausted = True
            return
        self._slowest = max(self._slowest, self.pace.slowest)
        self._shares[0].did(now() - start, self._lanes())
        yield unit, data

    def _awaited(self, current: _Round) -> Iterator[tuple[Unit, bytes]]:
        """What the others have begun; in the place of one that says nothing, this process evaluates it."""
        waiting = Waiting()
        while waiting.seconds <= max(PATIENCE, _UNITS * self._slowest):
            for pair in self._ready(current):
                waiting.heard()
                yield pair
            if current.left == len(self._ranks.others):
                self._close(current)
            if len(current.answered) >= current.drawn:
                return
            waiting.pause()
        self._close(current)
        for index in sorted({*range(current.drawn)} - current.answered):
            yield from self._own(current, index)

    def _ready(self, current: _Round) -> Iterator[tuple[Unit, bytes]]:
        """Values that came; what went wrong elsewhere is raised after them."""
        wrong: BaseException | None = None
        for rank, word in self._words():
            if word.number != current.number or word.index in current.answered or word.kind == "left":
                continue
            if word.kind == "failed":
                what = f"unit {current.units[word.index].key}" if word.index >= 0 else "a round"
                wrong = wrong or RankError(f"{what} on rank {rank} ({self._ranks.hosts[rank]}): {word.content}")
            else:
                current.answered.add(word.index)
                unit = current.units[word.index]
                if word.kind == "memory":
                    current.short.append(unit)
                    continue
                if not word.kept:
                    self._keep(unit, word.content, word.seconds, word.lanes)
                yield unit, word.content
        if self._ranks.told("interrupted"):
            wrong = KeyboardInterrupt()
        if wrong is not None:
            self._close(current)
            raise wrong

    def _words(self) -> list[tuple[int, _Word]]:
        """What the ranks have said since the last look."""
        found: list[tuple[int, _Word]] = self._ranks.said()
        for rank, word in found:
            self._note(rank, word)
        return found

    def _note(self, rank: int, word: _Word) -> None:
        share = self._shares[rank]
        share.evaluations = word.evaluations
        if word.kind == "value":
            share.did(word.seconds, word.lanes)
            self._slowest = max(self._slowest, word.seconds)
        elif word.kind == "memory":
            share.exhausted = True
        elif word.kind == "left" and word.number in self._rounds:
            self._rounds[word.number].left += 1
            self._forget(self._rounds[word.number])


class _Server:
    """The side of another rank: units of round after round, until rank 0 has an outcome."""

    def __init__(self, ranks: Ranks, evaluate: Evaluate, learn: Callable[[Any], object], folder: str | Path | None) -> None:
        self._ranks, self._evaluate, self._learn, self._folder = ranks, evaluate, learn, folder
        self._own = evaluate
        self._journal: Journal | None = None
        self._pace = Pace(_MARGIN)
        self._number, self._exhausted = 0, False

    def outcome(self) -> Any:
        while True:
            key, value = self._ranks.hear("outcome", f"round/{self._number}")
            if key == "outcome":
                return value
            self._round(*value)
            self._say("left")
            self._number += 1

    def interrupted(self) -> None:
        """Tell rank 0, which then ends the run."""
        self._ranks.tell("interrupted", True)

    def _round(self, keys: Sequence[tuple[int, int, int, int]], seconds: float, about: object) -> None:
        self._pace.give(seconds)
        index = -1
        try:
            self._learn(about)
            self._write()
            while self._pace.fits and not self._exhausted:
                index = self._ranks.count(f"next/{self._number}") - 1
                if index >= len(keys):
                    return
                self._unit(index, Unit(*keys[index]))
        except Exception as error:
            where = "".join(traceback.format_exception(error)[-3:]).strip()
            self._say("failed", index, f"{type(error).__name__}: {error}\n{where}")

    def _write(self) -> None:
        """Begin a file of this process in the journal of rank 0, where this machine has it."""
        if self._folder is None or self._journal is not None or not (Path(self._folder) / MANIFEST).is_file():
            return
        self._journal = Journal(self._folder)
        self._journal.done.clear()  # rank 0 has decided what is to be evaluated again
        self._evaluate = self._journal.recording(self._own, self._lanes)

    def close(self) -> None:
        """Take the journal to disk."""
        if self._journal is not None:
            self._journal.close()

    def _lanes(self) -> int | None:
        return getattr(self._own, "lanes", None)

    def _unit(self, index: int, unit: Unit) -> None:
        start = now()
        try:
            with self._pace.unit():
                data = self._evaluate(unit)
        except Exception as error:
            if not out_of_memory(error):
                raise
            self._exhausted = True
            self._say("memory", index)
        else:
            self._say("value", index, data, now() - start)

    def _say(self, kind: str, index: int = -1, content: object = None, seconds: float = 0.0) -> None:
        evaluations = getattr(self._own, "evaluations", 0)
        kept = self._journal is not None
        self._ranks.say(_Word(kind, self._number, index, content, seconds, self._lanes(), kept, evaluations))


def serve(
    ranks: Ranks,
    evaluate: Evaluate,
    learn: Callable[[Any], object] = lambda _about: None,
    folder: str | Path | None = None,
) -> Any:
    """Evaluate units for rank 0 until it has an outcome, and return that, or raise its exception.

    The first Ctrl-C is told to rank 0, which then ends the run; a second one leaves.

    Args:
        ranks: the processes.
        evaluate: the bytes of a unit, in this process; an attribute ``lanes`` says what a lack of memory has halved, and one
            of the name ``evaluations`` how often the loss was evaluated.
        learn: takes what ``about`` of :class:`TorchWorkers` gave.
        folder: of the journal; each process writes its own units.
    """
    with closing(_Server(ranks, evaluate, learn, folder)) as server:
        try:
            found = server.outcome()
        except KeyboardInterrupt:
            server.interrupted()
            found = ranks.hear("outcome")[1]
    ranks.count("gone")
    return opened(found)


def lead(ranks: Ranks, work: Callable[[], Any]) -> Any:
    """Work of rank 0, of which the others get the result too, or the exception."""
    try:
        found = work()
    except BaseException as error:
        _finish(ranks, sealed(error))
        raise
    _finish(ranks, found)
    return found


def _finish(ranks: Ranks, outcome: object) -> None:
    """Tell the outcome, and wait until everybody has it: the store may go with this process."""
    try:
        ranks.tell("outcome", outcome)
    except KeyboardInterrupt:
        ranks.tell("outcome", outcome)
        raise
    waiting = Waiting()
    with suppress(KeyboardInterrupt):
        while ranks.count("gone", 0) < len(ranks.others) and waiting.seconds < PATIENCE:
            waiting.pause()
        if ranks.count("gone", 0) == len(ranks.others):
            ranks.drop("interrupted")
            ranks.end()
