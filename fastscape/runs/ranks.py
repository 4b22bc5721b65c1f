"""The processes that make one call together, and what they tell each other through a store of torch.distributed.

There is no collective in it: nothing waits for all, a store that outlives a restart of its processes does no harm, and it is the
same for every backend.
"""

from __future__ import annotations

import gc
import os
import pickle
import platform
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch.distributed as dist

from fastscape._clock import now, pause
from fastscape._interrupts import termination
from fastscape.objective.objective import Objective

if TYPE_CHECKING or dist.is_available():
    from torch.distributed import PrefixStore, ProcessGroup, Store, TCPStore  # type: ignore[attr-defined]

Distributed: TypeAlias = bool | dist.ProcessGroup | None

PATIENCE = 60.0  # seconds without a word from a process that is expected to answer
_SHORTEST, _LONGEST = 1e-3, 2e-2  # seconds between two looks into the store
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_STRANGER = "distributed must be a group that this process is in, got one without it; call on its ranks only"
_TRAINING = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine"}


class RankError(RuntimeError):
    """A process of several failed; the message names its rank, its machine and what it was about."""


class Waiting:
    """Looks into a store, more and more seldom while there is nothing."""

    def __init__(self) -> None:
        self._seconds, self._since, self._warned = _SHORTEST, now(), False

    def pause(self) -> None:
        """Wait a little."""
        pause(self._seconds)
        self._seconds = min(1.5 * self._seconds, _LONGEST)

    def say(self, whom: str) -> None:
        """Warn, once, that it takes long until others make the call."""
        if self.seconds > PATIENCE and not self._warned:
            self._warned = True
            warnings.warn(f"waiting for {whom} to make the same call; pass distributed=False where they do not", stacklevel=6)

    def heard(self) -> None:
        """Something came: the next may be near."""
        self._seconds, self._since = _SHORTEST, now()

    @property
    def seconds(self) -> float:
        """Since something came."""
        return now() - self._since


class Ranks:
    """This process among those that make a call together; :func:`meet` makes it.

    Args:
        rank: of this process; 0 decides, the others serve.
        size: number of processes.
        store: that nobody else uses.
        engine: what the store belongs to, for ``meta``.
        hosts: names of the machines, by rank.
        first: number of rank 0's process, where it is another one on this machine.
    """

    def __init__(self, rank: int, size: int, store: Store, engine: str, hosts: Sequence[str], first: int | None = None) -> None:
        self._first = first
        self.rank, self.size, self.engine, self.hosts, self._store = rank, size, engine, tuple(hosts), store
        self._keys: set[str] = set()  # that this process has set
        self._said, self._read, self._heard = 0, dict.fromkeys(self.others, 0), 0  # words: own, read of each rank, of all

    @property
    def others(self) -> range:
        """Ranks beside 0."""
        return range(1, self.size)

    def tell(self, key: str, value: object) -> None:
        """Set a key to any value that pickles."""
        self._keys.add(key)
        self._store.set(key, pickle.dumps(value))  # type: ignore[arg-type]

    def told(self, key: str) -> bool:
        """Whether a key is set."""
        return bool(self._store.check([key]))

    def hear(self, *keys: str) -> tuple[str, Any]:
        """The first of the keys that is set, awaited, and its value.

        Raises:
            RankError: rank 0, on this machine, has ended without it.
        """
        waiting = Waiting()
        while True:
            ended = self._first is not None and not _lives(self._first)  # before the look: what it told is there
            for key in keys:
                if self.told(key):
                    return key, pickle.loads(self._store.get(key))
            if ended:
                raise RankError(f"rank 0 of {self.size} on {self.hosts[0]} has ended without a result")
            waiting.pause()

    def count(self, key: str, by: int = 1) -> int:
        """Add to a counter, which begins at 0, and return it; no two processes get the same."""
        self._keys.add(key)
        return int(self._store.add(key, by))

    def drop(self, *keys: str) -> None:
        """Forget keys, where the store can."""
        self._keys.difference_update(keys)
        with suppress(RuntimeError):
            for key in keys:
                self._store.delete_key(key)

    def say(self, word: object) -> None:
        """Tell rank 0 one more thing."""
        self.tell(f"word/{self.rank}/{self._said}", word)
        self._said += 1
        self.count("words")

    def said(self) -> list[tuple[int, Any]]:
        """What the others have said since the last look, with their ranks."""
        heard = self.count("words", 0)
        if heard == self._heard:
            return []
        found = []
        for rank in self.others:
            while self.told(key := f"word/{rank}/{self._read[rank]}"):
                found.append((rank, self.hear(key)[1]))
                self._read[rank] += 1
                self.drop(key)
        self._heard = heard
        return found

    def end(self) -> None:
        """Forget all keys of the call, on rank 0 once nobody has a use for them."""
        self.said()
        self.drop(*self._keys)

    def share(self, key: str, own: Callable[[], object], settle: Callable[[list[Any]], object]) -> Any:
        """What rank 0 makes of every rank's ``own``, in the order of ranks, on all of them; any exception is raised on all."""
        try:
            value = own()
        except BaseException as error:
            error.add_note(f"on rank {self.rank}")
            value = sealed(error)
        if self.rank:
            self.tell(f"{key}/{self.rank}", value)
            return opened(self.hear(key)[1])
        try:
            values = [value, *(self.hear(f"{key}/{rank}")[1] for rank in self.others)]
            self.drop(*(f"{key}/{rank}" for rank in self.others))
            found = settle([opened(value) for value in values])
        except BaseException as error:
            self.tell(key, sealed(error))
            raise
        self.tell(key, found)
        return found


class _Sealed:
    """An exception on its way to other processes."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def sealed(error: BaseException) -> object:
    """An exception as a value that pickles; one that does not becomes a RuntimeError that names it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__} on rank 0: {error}")
    return _Sealed(error)


def opened(value: object) -> Any:
    """A value that came, or its exception raised."""
    if isinstance(value, _Sealed):
        value.error.__dict__["elsewhere"] = True
        raise value.error
    return value


def elsewhere(error: BaseException) -> bool:
    """Whether an exception came from another process, which has it too."""
    return bool(error.__dict__.get("elsewhere"))


def _lives(process: int) -> bool:
    """Whether a process of this machine has not ended."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _process() -> tuple[int, str]:
    """The number of this process, and where it means the same: containers count their own, and may share a host's name."""
    place = platform.node()
    with suppress(OSError):
        place += str(Path("/proc/self/ns/pid").readlink())
    return os.getpid(), place


class LeftError(RuntimeError):
    """Rank 0 is at something else than this process."""


def meet(rank: int, size: int, store: Store, engine: str, purpose: str = "a call") -> Ranks:
    """The processes of a group, once all of them have come to this call.

    Every process draws a name. Rank 0 answers with the names that it has seen and a place of their own in the store, and each
    waits for an answer with its own name: what an earlier call or a process that has died left in the store is no answer.

    Raises:
        LeftError: rank 0 came for another purpose.
    """
    waiting = Waiting()
    if rank:
        name = f"{uuid.uuid4().hex} {platform.node()}"
        store.set(f"here/{rank}", name)
        while True:
            nothing = "", "", [""] * size, (0, "")
            place, met, names, first = pickle.loads(store.get("roster")) if store.check(["roster"]) else nothing
            waiting.say("rank 0")
            if names[rank] == name:
                if met != purpose:
                    raise LeftError(f"all ranks must come to {purpose} together, got rank 0 at {met}")
                store.add(f"{place}/met", 1)
                hosts = [name.partition(" ")[2] for name in names]
                own = _process()
                beside = first != own and first[1] == own[1]
                return Ranks(rank, size, PrefixStore(place, store), engine, hosts, first[0] if beside else None)
            waiting.pause()
    place, told, own = uuid.uuid4().hex, list[str](), _process()
    while store.add(f"{place}/met", 0) < size - 1:
        waiting.say("the other ranks")
        seen = [store.get(f"here/{other}").decode() for other in range(1, size) if store.check([f"here/{other}"])]
        if len(seen) == size - 1 and seen != told:
            store.set("roster", pickle.dumps((place, purpose, [f" {platform.node()}", *seen], own)))  # type: ignore[arg-type]
            told = seen
        waiting.pause()
    with suppress(RuntimeError):
        store.delete_key(f"{place}/met")
    hosts = [platform.node(), *(name.partition(" ")[2] for name in told)]
    return Ranks(rank, size, PrefixStore(place, store), engine, hosts)


@contextmanager
def ranks_of(distributed: Distributed, objective: Objective) -> Iterator[Ranks | None]:
    """The processes that share the work of a call; ``None`` where this process does it alone.

    Args:
        distributed: as for :func:`fastscape.multifractal`.
        objective: of the call, whose model may be in training.

    Raises:
        TypeError: no such value.
        ValueError: ``True`` where neither a group nor the environment of torchrun is, or a group without this process.
    """
    checked_distributed(distributed)
    if distributed is False or (distributed is None and not _together(objective)):
        yield None
        return
    if isinstance(distributed, bool) or distributed is None:
        group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    else:
        group = distributed
    ranks = _from_environment() if group is None else _of_group(group)
    if ranks is None:
        yield None
    else:
        with termination():
            yield ranks


def _of_group(group: ProcessGroup) -> Ranks | None:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ValueError(_STRANGER)
    if size == 1:
        return None
    members = "-".join(map(str, dist.get_process_group_ranks(group)))
    store = PrefixStore(f"fastscape/{members}", dist.distributed_c10d._get_default_store())
    return meet(rank, size, store, f"torch {dist.get_backend(group)}")


def checked_distributed(distributed: object) -> None:
    """Raise unless ``distributed`` is a bool, ``None`` or a process group of this process."""
    if distributed is None or isinstance(distributed, bool):
        return
    if dist.is_available() and distributed is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(_STRANGER)
    if not dist.is_available() or not isinstance(distributed, dist.ProcessGroup):
        raise TypeError(
            f"distributed must be None, True, False or a torch.distributed.ProcessGroup, got {type(distributed).__name__}; True "
            "shares the work among all processes that torchrun started"
        )


def _together(objective: Objective) -> bool:
    """Whether all processes of an initialised group are expected to make the call, where nothing is said.

    Those that train a model together are not: there people call a probe on one of them, where waiting for the others has no end.
    Those that hold its shards make every call together as it is.
    """
    if objective.sharding is not None:
        return False
    if beside_others(objective):
        warnings.warn(
            "this process trains a model together with others, so it makes this call alone; pass distributed=True where all "
            "ranks make it, or False to say that they do not",
            stacklevel=5,
        )
        return False
    return several()


def several() -> bool:
    """Whether this process is one of several in a group that was made under torchrun."""
    ready = dist.is_available() and dist.is_initialized() and dist.is_torchelastic_launched()
    return ready and dist.get_world_size() > 1


def beside_others(objective: Objective) -> bool:
    """Whether several processes seem to train together: a module here exchanges gradients, or the model has some."""
    return several() and (any(tensor.grad is not None for tensor in objective.model.parameters()) or _wrapped())


def _wrapped() -> bool:
    """Whether there is a module in this process that exchanges gradients with others."""
    kinds = {type(value) for value in gc.get_objects()}
    return any(base.__name__ in _TRAINING for kind in kinds for base in kind.__mro__)


def launched() -> int | None:
    """Rank of this process among several that torchrun, or another launcher, started; ``None`` where it is alone."""
    if any(not os.environ.get(name) for name in _ENVIRONMENT) or not dist.is_available():
        return None
    return None if int(os.environ["WORLD_SIZE"]) == 1 else int(os.environ["RANK"])


def come_to(purpose: str) -> None:
    """Wait until all processes of a launcher have come to a purpose, before something in which none may be missing.

    Raises:
        LeftError: rank 0 came for another one.
    """
    _from_environment(purpose)


def common_exit(code: int) -> int:
    """The exit code of rank 0, once all processes of a launcher have come to their end."""
    ranks = _from_environment("the end")
    if ranks is None:
        return code
    found: int = ranks.share("exit", lambda: code, lambda codes: codes[0])
    return found


def _from_environment(purpose: str = "a call") -> Ranks | None:
    """The processes that torchrun, or another launcher, told each other about."""
    missing = [name for name in _ENVIRONMENT if not os.environ.get(name)]
    if missing or not dist.is_available():
        why = f"{', '.join(missing)} of the environment" if missing else "torch.distributed, which this torch is built without"
        raise ValueError(
            f"distributed=True must find the processes to share the work with, got none: {why} missing; start with "
            "torchrun --nproc-per-node N, or call torch.distributed.init_process_group before"
        )
    rank, size, host, port = (os.environ[name] for name in _ENVIRONMENT)
    if int(size) == 1:
        return None
    store = PrefixStore("fastscape/environment", _store(int(rank), int(size), host, int(port)))
    return meet(int(rank), int(size), store, "torch", purpose)


@cache
def _store(rank: int, size: int, host: str, port: int) -> Store:
    """The store of the launcher, kept as long as the process: a server that went with a call would take others along."""
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store: Store = TCPStore(host, port, size, serves, wait_for_workers=False, multi_tenant=True)
    return store
