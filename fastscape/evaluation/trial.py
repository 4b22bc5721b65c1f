"""Try, time, compare, choose: ways to one number run on a little of the work, and the fastest that gives the same is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np
import torch

from fastscape._checks import first_line
from fastscape._clock import now
from fastscape.evaluation.footprint import Cap, footprint
from fastscape.evaluation.points import Array
from fastscape.objective.batches import available_memory
from fastscape.objective.replica import Replica
from fastscape.objective.structures import tensors_in, tensors_of

Way = TypeVar("Way")
Found = TypeVar("Found")
_AGREEMENT = 1000  # ulp of the loss by which two paths may differ; they measured below 10


@dataclass(frozen=True)
class PathChoice:
    """Path that evaluates, with the reason.

    Attributes:
        name: ``"loop"``, ``"vmap"`` or ``"stream"``; ``"graph"`` or ``"dispatch"`` where differences are propagated.
        chunk: directions per batched call (1 for the loop).
        seconds: measured seconds per loss evaluation, by path.
        reason: in words.
        parts: radii at a time, where differences are propagated; ``None`` for as many as fit in memory.
        shared: radii whose differences follow from two of them; ``None`` where that is to be found out.
    """

    name: str
    chunk: int
    seconds: dict[str, float]
    reason: str
    parts: int | None = None
    shared: tuple[float, ...] | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> PathChoice:
        """From its fields, as a file has them."""
        shared = data.get("shared")
        return cls(**{**data, "shared": None if shared is None else tuple(shared)})


class Refusal(Exception):  # noqa: N818 (no error: it never leaves a trial)
    """A way that runs and is not to be taken, with the reason."""


def told(error: Exception, length: int = 120) -> str:
    """An exception in words: its type and the first of its message."""
    return f"{type(error).__name__}: {first_line(error)[:length]}"


def unable(name: str, error: Exception) -> str:
    """That a model does not run in a way, and what it raised there."""
    return f"{name} cannot run this model: {told(error)}"


class PathError(ValueError, RuntimeError):
    """The path that was asked for cannot run the model: a wrong argument, that shows while the model runs."""


def asked_for(method: str, run: Callable[[], Way]) -> Way:
    """What ``run`` returns on the path that was asked for.

    Raises:
        ValueError: a refusal.
        PathError: the model raised, although the gate has just run it.
    """
    try:
        return run()
    except Refusal as refusal:
        raise ValueError(f"method must be 'loop' for this model, got {method!r}: {refusal}") from None
    except Exception as error:
        words = f"{method!r}, which cannot run it ({told(error, 160)}); use method='loop' or None"
        raise PathError(f"method must be 'loop' for this model, got {words}") from error


class Trial(Generic[Way]):
    """Ways that are tried one after another, with what each takes or why it is refused.

    Args:
        explain: the reason of a refusal by an exception, from the name of a way and the exception.
        through: exceptions that say something of the model, whatever the way: they end the trial.

    Attributes:
        seconds: per unit of work, of ways that were timed.
        refused: ways that cannot be taken, in the order of trying, and why.
    """

    def __init__(
        self, explain: Callable[[str, Exception], str] = unable, through: type[Exception] | tuple[type[Exception], ...] = ()
    ) -> None:
        self._explain, self._through = explain, through
        self.seconds: dict[str, float] = {}
        self.refused: dict[str, str] = {}

    def attempt(self, name: str, run: Callable[[], Way | None]) -> Way | None:
        """What ``run`` returns; ``None`` where it raises, and ``refused`` says why."""
        try:
            return run()
        except self._through:
            raise
        except Refusal as refusal:
            self.refused[name] = str(refusal)
        except Exception as error:  # whatever a model does in another way: the first has just run it
            self.refused[name] = self._explain(name, error)
        return None

    def best(self, otherwise: str) -> str:
        """The fastest of the ways that were timed and not refused, the first of equals; ``otherwise`` without one."""
        return min((name for name in self.seconds if name not in self.refused), key=self.seconds.__getitem__, default=otherwise)

    def lead(self, name: str) -> float:
        """How many times as long as a way the fastest of the others takes; infinite without others."""
        others = [seconds for other, seconds in self.seconds.items() if other != name]
        return min(others) / self.seconds[name] if others else math.inf


def timed(
    call: Callable[[], Found], runs: int = 2, most: int = 0, more: Callable[[list[float]], bool] = bool
) -> tuple[float, Found]:
    """Seconds of the fastest of some calls, which must end on the CPU, and what the last one returned.

    Args:
        call: what to time.
        runs: calls.
        most: calls at most, while ``more`` of the seconds so far is true.
        more: whether what is quick, or disturbed, is to be timed once more.
    """
    times: list[float] = []
    while len(times) < runs or (len(times) < most and more(times)):
        start = now()
        found = call()
        times.append(now() - start)
    return min(times), found


def same_losses(found: Array | Sequence[float], expected: Array | Sequence[float], dtype: torch.dtype) -> bool:
    """Whether two paths give the same losses up to rounding, relative to the largest that is finite; NaN is the same as NaN."""
    finite = np.abs(np.asarray(expected)[np.isfinite(expected)])
    allowed = _AGREEMENT * torch.finfo(dtype).eps * (float(finite.max()) if len(finite) else 1.0)
    return bool(np.allclose(found, expected, rtol=0.0, atol=allowed, equal_nan=True))


def memory_for(memory: int | None, device: torch.device) -> int:
    """Bytes that a computation may take: what was asked for, or half of what is available."""
    return memory or available_memory(device) // 2


def copies_within(replica: Replica, memory: int | None, points: int = 1) -> int:
    """How many times ``points`` perturbed copies, with parameters and activations, fit in memory beside each other."""
    if memory is None:
        return int(memory_for(None, replica.objective.device) // (copy_bytes(replica) * points))
    room = Cap(memory).room() - footprint(replica.objective, replica.dtype).alone
    return max(0, int(room // (copy_bytes(replica) * points)))


def refuse_copies(replica: Replica, memory: int | None, points: int = 1) -> NoReturn:
    """Refuse ``method="vmap"`` for want of memory, and say how much is enough."""
    needed = footprint(replica.objective, replica.dtype).alone + points * copy_bytes(replica)
    Cap(memory or memory_for(None, replica.objective.device)).hold(
        needed, f"{points} copies of the parameters and activations for method='vmap' (method='loop' takes one)"
    )
    raise AssertionError(needed)


def copy_bytes(replica: Replica) -> int:
    """Bytes of a perturbed copy, with what displaces it and activations."""
    return 3 * replica.objective.size * torch.finfo(replica.dtype).bits // 8 + activation_bytes(replica)


def activation_bytes(replica: Replica) -> int:
    """Bytes of all module outputs in one forward of the largest batch: an upper bound on what is alive at once."""
    sizes: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, out: sizes.append(sum(t.nbytes for t in tensors_in(out))))
        for module in replica.module.model.modules()
    ]
    largest = max(range(len(replica.batches)), key=lambda i: sum(t.nbytes for t in tensors_of(replica.batches[i])))
    try:
        replica.reset()
        replica.batch_loss(largest)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(sizes) + sum(tensor.nbytes for tensor in tensors_of(replica.batches[largest]))
