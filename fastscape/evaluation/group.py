"""The processes of torch.distributed that make one call together: rank 0 decides, all work, and what one raises all raise."""

from __future__ import annotations

import importlib
import io
import itertools
import math
import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastscape._checks import first_line
from fastscape._deadline import shared_work
from fastscape._state import exact_arithmetic
from fastscape._version import __version__
from fastscape.objective.objective import Objective
from fastscape.runs.ranks import Distributed as Distributed
from fastscape.runs.ranks import RankError as RankError
from fastscape.runs.ranks import beside_others, checked_distributed, several

Found = TypeVar("Found")
_SAME_LOSS = 1e-6  # relative: two processors round differently, another loss function differs by more
_OPEN = -(2**62)  # below any word
_calls = 0  # of groups that were made here, so that none finds the addresses of one before it in the store


class Group:
    """A process group, in which every process makes the same calls in the same order.

    It does not keep the group: the threads of one that is destroyed end with its last reference. What of them is left when
    Python ends takes the lock of the interpreter to drop a tensor, and aborts the process.

    Attributes:
        rank, size: of this process, of the group.
        device: of the tensors that are exchanged.
        home: the device of what is computed.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group, self.rank, self.size = weakref.ref(group), dist.get_rank(group), dist.get_world_size(group)
        backends = str(dist.get_backend_config(group))
        nccl = "nccl" in backends and (device.type == "cuda" or "gloo" not in backends)
        cuda = device if device.type == "cuda" else torch.device("cuda", torch.cuda.current_device()) if nccl else device
        self.device, self.home = cuda if nccl else torch.device("cpu"), device
        self.engine = f"torch {dist.get_backend(group)}"
        self._first = dist.get_global_rank(group, 0)

    @property
    def group(self) -> dist.ProcessGroup:
        """The group, until it is destroyed."""
        group = self._group()
        if group is None:
            raise ValueError("distributed must be a process group that is there, got one that was destroyed")
        return group

    @property
    def asked(self) -> Distributed:
        """The group as an argument ``distributed=``, which keeps no default group in the frames of an exception."""
        return self.group is dist.group.WORLD or self.group

    # ------------------------------------------------------------------ tensors, in place

    def maximum(self, tensor: Tensor) -> Tensor:
        """Largest of each element over the processes."""
        return self._everywhere(tensor, lambda own: dist.all_reduce(own, dist.ReduceOp.MAX, self.group))

    def add(self, tensor: Tensor) -> Tensor:
        """Sum of each element over the processes."""
        return self._everywhere(tensor, lambda own: dist.all_reduce(own, dist.ReduceOp.SUM, self.group))

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The tensor of rank 0."""
        return self._everywhere(tensor, lambda own: dist.broadcast(own, self._first, self.group))

    def _everywhere(self, tensor: Tensor, exchange: Callable[[Tensor], object]) -> Tensor:
        if self.size == 1:
            return tensor
        own = tensor.to(self.device).contiguous()
        exchange(own)
        return tensor.copy_(own) if own is not tensor else tensor

    # ------------------------------------------------------------------ numbers and objects

    def common(self, words: Sequence[int | None]) -> tuple[int, ...] | None:
        """Integers that all processes give, but for those that leave them open; ``None`` where they give different ones."""
        low, high = ([_OPEN if word is None else sign * word for word in words] for sign in (-1, 1))
        found = self.maximum(torch.tensor([low, high], dtype=torch.int64)).tolist()
        return tuple(found[1]) if all(-a == b for a, b in zip(*found, strict=True)) else None

    def announce(self, *words: int) -> tuple[int, ...]:
        """Integers of rank 0; the others give as many."""
        return tuple(self.broadcast(torch.tensor(words, dtype=torch.int64)).tolist())

    def _sent(self, content: bytes = b"") -> Any:
        """What rank 0 has packed; tensors in it are on this process's device."""
        with uninterrupted():
            (size,) = self.announce(len(content))
            buffer = _bytes(content) if self.rank == 0 else torch.empty(size, dtype=torch.uint8)
            return _unpacked(self.broadcast(buffer), self.home)

    def gather(self, value: object) -> list[Any]:
        """The values of all processes, by rank."""
        own = _bytes(_packed(value))
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(own)
        with uninterrupted():
            ends = [0, *torch.cumsum(self.add(sizes), 0).tolist()]
            buffer = torch.zeros(ends[-1], dtype=torch.uint8)
            buffer[ends[self.rank] : ends[self.rank + 1]] = own
            self.add(buffer)
        return [_unpacked(buffer[start:stop], self.home) for start, stop in itertools.pairwise(ends)]

    # ------------------------------------------------------------------ work whose failures all know of

    def agreed(self, work: Callable[[], Found]) -> Found:
        """What each process makes, once all have made it.

        Raises:
            RankError: it failed on some, on all of them; what all of them raised alike is raised as it is.
        """
        found, failure = None, None
        try:
            found = work()
        except Exception as error:
            failure = error
        self.check(failure)
        return found  # type: ignore[return-value]

    def check(self, failure: Exception | None) -> None:
        """Raise on all processes where one has a failure."""
        words = None if failure is None else f"{type(failure).__name__}: {first_line(failure)}"
        found = self.gather((words, socket.gethostname()))
        failed = [rank for rank, (why, _) in enumerate(found) if why is not None]
        if not failed:
            return
        if failure is not None and {why for why, _ in found} == {words}:
            raise self._of_all(failure)
        why, host = found[failed[0]]
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise self._of_all(RankError(f"rank {failed[0]} of {self.size} on {host}{others} failed: {why}")) from failure

    def _of_all(self, error: Exception) -> Exception:
        """An exception that rank 0 has too."""
        error.__dict__["elsewhere"] = self.rank > 0
        return error

    def led(self, work: Callable[[], Found] | None = None) -> Found:
        """What rank 0 makes, or raises, on all processes; the others give nothing."""
        if self.rank:
            outcome, told = self._sent()
            if told is not None:
                raise _remade(told)
            result: Found = outcome
            return result
        assert work is not None
        try:
            found = work()
            content = _packed((found, None))
        except BaseException as error:
            self._sent(_packed((None, _told(error))))
            raise
        self._sent(content)
        return found

    def machines(self) -> list[str]:
        """Host and processor of every rank."""
        cuda = self.home.type == "cuda"
        name = torch.cuda.get_device_name(self.home) if cuda else torch.backends.cpu.get_cpu_capability()
        return [str(machine) for machine in self.gather(f"{socket.gethostname()}: {name}")]

    def check_same(self, objective: Objective) -> None:
        """Refuse ranks of another model, data, loss or version than rank 0's.

        Cost: two hashes of weights and data, and the loss of one batch.

        Raises:
            ValueError: on all processes, naming what differs and where.
        """
        self._compare("model and data", self.agreed(lambda: _identity(objective)))

    def check_equal(self, noun: str, value: object) -> None:
        """Refuse, on all processes, ranks with another value than rank 0's."""
        self._compare(noun, {noun: value})

    def _compare(self, noun: str, own: dict[str, Any]) -> None:
        found = self.gather(own)
        apart = {rank: [key for key in own if not _alike(key, other[key], found[0][key])] for rank, other in enumerate(found)}
        words = [f"other {', '.join(keys)} on rank {rank}" for rank, keys in apart.items() if keys]
        if words:
            raise self._of_all(ValueError(f"ranks must hold the same {noun} as rank 0, got {'; '.join(words)}"))


def _identity(objective: Objective) -> dict[str, Any]:
    """What decides the numbers of an objective, in words of the field."""
    index = min(range(len(objective.batches)), key=lambda batch: objective.batch_weights[batch])
    with exact_arithmetic(objective.dtype):
        replica = objective.on(index).replica(objective.dtype)
        replica.reset()
        loss = float(replica.batch_loss(0)[0])
    return {
        "weights": objective.weight_fingerprint(),
        "data": objective.data_fingerprint(),
        "parameters": objective.names,
        "weights of batches": objective.batch_weights,
        "batch norm": objective.batch_norm,
        "dtype": str(objective.dtype),
        "version of fastscape": __version__,
        "version of torch": str(torch.__version__),
        "loss": loss,
    }


def _alike(key: str, own: Any, first: Any) -> bool:
    if key != "loss":
        return bool(own == first)
    return math.isclose(own, first, rel_tol=_SAME_LOSS) or (math.isnan(own) and math.isnan(first))


# ---------------------------------------------------------------------- which processes


def ranks_of(distributed: Distributed, objective: Objective) -> Group | None:
    """The processes of a call; ``None`` where it is for this one alone.

    Args:
        distributed: ``True`` for the default process group, a group, ``False`` for this process alone. ``None`` is the default
            group where one is initialised with several processes, under torchrun (``TORCHELASTIC_RUN_ID`` is set), unless the
            model is being trained: a module here is ``DistributedDataParallel``, or the model has gradients. There people call
            probes on rank 0 only, where waiting for the others would have no end.
        objective: the loss.

    Raises:
        ValueError, TypeError: there is no group, or this process is not in it.
    """
    checked_distributed(distributed)
    ready = dist.is_available() and dist.is_initialized()
    if distributed is False:
        return None
    if distributed is None:
        if not several() or beside_others(objective):
            return None
    elif not ready:
        raise ValueError(
            "distributed must be False without a process group; call torch.distributed.init_process_group() first, "
            "or use fs.serve and fs.spectrum, which make one"
        )
    group = distributed if isinstance(distributed, dist.ProcessGroup) else dist.group.WORLD
    assert group is not None
    return Group(group, objective.device)


def alone_in_training(distributed: Distributed, objective: Objective) -> str:
    """In words, that this process works alone by default beside others that train; empty where it does not."""
    if distributed is not None or not beside_others(objective):
        return ""
    return "by this process alone, because the model is in training; pass distributed=True where all processes make the call"


@contextmanager
def joined(distributed: Distributed, objective: Objective) -> Iterator[Group | None]:
    """:func:`ranks_of` for a block; ``True`` makes the default group from torchrun's environment where there is none."""
    own = distributed is True and not (dist.is_available() and dist.is_initialized())
    if own:
        _initialise("nccl" if objective.device.type == "cuda" else "gloo")
    try:
        ranks = ranks_of(distributed, objective)
        with nullcontext() if ranks is None else shared_work():
            yield ranks
        if own:
            dist.barrier()  # one that leaves early takes the connections of the others with it
    finally:
        if own:
            dist.destroy_process_group()


def _initialise(backend: str) -> None:
    """The default process group; its store is that of torchrun, which outlives restarted processes and groups made before."""
    global _calls
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing or not dist.is_available():
        why = f"of which {', '.join(missing)} are not set" if missing else "and a torch that has torch.distributed"
        raise ValueError(f"distributed=True needs the environment of torchrun, {why}; start with torchrun, or pass False")
    importlib.import_module(
        "torch.distributed.nn.functional"
    )  # its default arguments keep the group that is there when it is imported
    _calls += 1
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend)
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)  # type: ignore[attr-defined]
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    prefix = dist.PrefixStore(f"fastscape/attempt_{attempt}/group_{_calls}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=prefix, rank=rank, world_size=size)


# ---------------------------------------------------------------------- signals


@contextmanager
def uninterrupted(*, drop: bool = False) -> Iterator[None]:
    """A block that Ctrl-C and SIGTERM do not cut, so that all processes leave an exchange together.

    What came is handled after it, as it would have been, or left to rank 0 with ``drop``; a second one at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        if len(came) > 1:
            handlers[signal.Signals(number)](number, frame)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if len(came) == 1 and not drop:
            handlers[signal.Signals(came[0])](came[0], None)


# ---------------------------------------------------------------------- bytes


def _packed(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def _unpacked(content: Tensor, device: torch.device) -> Any:
    return torch.load(io.BytesIO(content.cpu().numpy().tobytes()), map_location=device, weights_only=False)


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _told(error: BaseException | None) -> Any:
    """An exception as its class, arguments and attributes; where they do not travel, as a :class:`RankError`."""
    if error is None:
        return None
    told = type(error), error.args, dict(error.__dict__)
    try:
        _packed(told)
    except Exception:
        return RankError, (f"rank 0 on {socket.gethostname()} failed: {type(error).__name__}: {first_line(error)}",), {}
    return told


def _remade(told: tuple[type[BaseException], tuple[Any, ...], dict[str, Any]]) -> BaseException:
    kind, arguments, attributes = told
    error: BaseException = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(attributes | {"elsewhere": True})
    return error
