"""A prepared evaluation: private copy, determinism gate, and the faster path, chosen by measuring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, get_args

import torch
from torch import Tensor

from fastscape._checks import check_memory as check_memory
from fastscape._checks import first_line
from fastscape._clock import now
from fastscape._state import exact_arithmetic
from fastscape.directions import Directions
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.paths import LoopPath, Path, VmapPath
from fastscape.evaluation.points import Array, Radii, second_difference, signed_radii
from fastscape.objective.batches import available_memory
from fastscape.objective.objective import Objective, checked_objective
from fastscape.objective.replica import Replica
from fastscape.objective.structures import tensors_in, tensors_of

PathName = Literal["loop", "vmap"]
_TRIAL_POINTS = 6  # loop evaluations in a trial: the median of few is enough to tell 1.2x
_QUICK = 0.005  # seconds per forward below which a trial with all radii is cheap
_SLOW = 0.1  # seconds per forward above which dispatch overhead, all that vmap saves on a CPU, is below 2 %
_AGREEMENT = 1000  # ulp of the loss by which two paths may differ; they measured below 10
_DIFFERS = "vmap gives other losses: the model accesses parameters outside named_parameters() (a list, a closure)"
_SIZES = (1, 8)  # directions a call: small batches win where the perturbed copies leave the cache


@dataclass(frozen=True)
class PathChoice:
    """Path that evaluates, with the reason.

    Attributes:
        name: ``"loop"`` or ``"vmap"``; ``"graph"`` or ``"dispatch"`` where differences are propagated.
        chunk: directions per batched call (1 for the loop).
        seconds: measured seconds per loss evaluation, by path.
        reason: in words.
    """

    name: str
    chunk: int
    seconds: dict[str, float]
    reason: str


class Evaluator:
    """Evaluate an objective in one dtype, as a context manager that restores every global setting on exit.

    Args:
        objective: the function.
        dtype: arithmetic of the forward passes.
        path: ``"loop"``, ``"vmap"``, an earlier :class:`PathChoice`, or ``None`` to measure both on this model.
        memory: bytes that batched evaluation may take; default half of what is available.
        gate: evaluate twice and refuse a loss that differs.
        trial: seconds that measuring the batched path may take.

    Raises:
        ValueError: unknown path.
        NondeterministicLossError: on entry, if gated.
    """

    def __init__(
        self,
        objective: Objective,
        dtype: torch.dtype,
        *,
        path: PathName | PathChoice | None = None,
        memory: int | None = None,
        gate: bool = True,
        trial: float = math.inf,
    ) -> None:
        checked_objective(objective)
        if not isinstance(path, PathChoice) and path not in (None, *get_args(PathName)):
            raise ValueError(f"path must be 'loop', 'vmap' or None to measure both, got {path!r}")
        check_memory(memory)
        self.objective, self.dtype, self.gate = objective, dtype, gate
        self.choice: PathChoice | None = path if isinstance(path, PathChoice) else None
        self._wanted: PathName | None = None if isinstance(path, PathChoice) else path
        self._memory, self._trial = memory, trial
        self._stack = ExitStack()
        self._path: Path | None = None
        self.forward_seconds = 0.0

    @property
    def evaluations(self) -> int:
        """Loss evaluations done so far: gate, trials and padding of batches included."""
        return self.replica.evaluations

    def __enter__(self) -> Evaluator:
        with ExitStack() as stack:
            stack.enter_context(exact_arithmetic(self.dtype))
            self.replica = self.objective.replica(self.dtype)
            if self.gate:
                start = now()
                unperturbed_loss(self.replica)
                self.forward_seconds = (now() - start) / self.replica.gate
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._path = None
        self._stack.close()

    def prepare(self, directions: Directions, radii: Sequence[float]) -> PathChoice:
        """Choose the path for rows of ``radii``, once; later calls return the same choice."""
        if self._path is None:
            directions.check(self.objective)  # once: it copies the weights where the objective casts them
        if self.choice is None:
            self.choice = self._choose(directions, radii)
        if self._path is None:
            vmap = self.choice.name == "vmap"
            self._path = VmapPath(self.replica, self.choice.chunk) if vmap else LoopPath(self.replica)
        return self.choice

    def losses(self, directions: Directions, indices: Sequence[int], radii: Sequence[float]) -> Tensor:
        """L(w + r d_i), float64 ``[indices, radii]``; full batches are multiples of the choice's ``chunk``."""
        self.prepare(directions, radii)
        assert self._path is not None
        return self._path.losses(directions, indices, radii)

    def choose(self, directions: Directions, radii: Radii) -> PathChoice:
        """:meth:`prepare` for responses at positive radii."""
        return self.prepare(directions, signed_radii(radii))

    def responses(self, directions: Directions, indices: Sequence[int], radii: Radii) -> tuple[Array, Array, Array]:
        """Even and odd responses ``[K, n]`` by subtraction, and L(w) ``[n]``."""
        return second_difference(self.losses(directions, indices, signed_radii(radii)))

    # ------------------------------------------------------------------ choosing

    def _choose(self, directions: Directions, radii: Sequence[float]) -> PathChoice:
        if self._wanted == "loop":
            return PathChoice("loop", 1, {}, "asked for")
        few = [radius for radius in radii if radius][:_TRIAL_POINTS] or list(radii[:1])
        chunk = min(self._affordable(len(radii)), len(directions))
        if self._wanted == "vmap":
            return self._only_vmap(directions, radii, few, chunk)
        loop = self._timed(LoopPath(self.replica), directions, few[:1])
        points = radii if loop < _QUICK else few  # all of them where that is cheap: making the direction is shared
        if loop <= _SLOW:
            loop = self._timed(LoopPath(self.replica), directions, points)
        seconds = {"loop": loop}
        if loop > _SLOW:
            return PathChoice("loop", 1, seconds, f"a forward takes {loop:.2g} s, long against dispatch overhead")
        if chunk < 1:
            return PathChoice("loop", 1, seconds, f"{len(radii)} copies of the parameters do not fit in memory")
        wanted = _SIZES if loop < _QUICK else _SIZES[:1]
        sizes = [size for size in wanted if size <= chunk and 3 * size * len(points) * loop < self._trial]
        if not sizes:
            return PathChoice("loop", 1, seconds, "the budget is too short to try vmap")
        try:
            if not self._agree(VmapPath(self.replica, 1), directions, few):
                return PathChoice("loop", 1, seconds, _DIFFERS)
            size, seconds["vmap"] = self._best_batch(directions, points, sizes)
        except Exception as error:  # whatever a model does under vmap: the loop has just run it
            words = first_line(error)[:120]
            return PathChoice("loop", 1, seconds, f"vmap cannot run this model: {type(error).__name__}: {words}")
        if seconds["vmap"] < loop:
            return PathChoice("vmap", size, seconds, f"{loop / seconds['vmap']:.1f}x faster than the loop on this model")
        return PathChoice("loop", 1, seconds, f"{seconds['vmap'] / loop:.1f}x faster than vmap on this model")

    def _only_vmap(self, directions: Directions, radii: Sequence[float], few: Sequence[float], chunk: int) -> PathChoice:
        if chunk < 1:
            raise ValueError(
                f"memory must hold {len(radii)} copies of the parameters and activations for path='vmap'; use path='loop'"
            )
        try:
            agree = self._agree(VmapPath(self.replica, 1), directions, few)
        except Exception as error:  # whatever a model does under vmap: the gate has just run it
            raise cannot_run("vmap", error) from error
        if not agree:
            raise ValueError(f"path must be 'loop' for this model, got 'vmap': {_DIFFERS}")
        size, seconds = self._best_batch(directions, radii, [size for size in _SIZES if size <= chunk])
        return PathChoice("vmap", size, {"vmap": seconds}, "asked for")

    def _best_batch(self, directions: Directions, points: Sequence[float], sizes: Sequence[int]) -> tuple[int, float]:
        """Directions per batched call with the least seconds per evaluation, and those seconds."""
        times = {size: self._timed(VmapPath(self.replica, size), directions, points, indices=range(size)) for size in sizes}
        best = min(times, key=times.__getitem__)
        return best, times[best]

    def _agree(self, path: Path, directions: Directions, radii: Sequence[float]) -> bool:
        """Whether a path gives the loop's losses up to rounding."""
        found, expected = (p.losses(directions, (0,), radii) for p in (path, LoopPath(self.replica)))
        size = float(expected[expected.isfinite()].abs().max()) if bool(expected.isfinite().any()) else 1.0
        return torch.allclose(found, expected, rtol=0.0, atol=_AGREEMENT * torch.finfo(self.dtype).eps * size, equal_nan=True)

    def _timed(self, path: Path, directions: Directions, radii: Sequence[float], indices: Sequence[int] = (0,)) -> float:
        """Seconds per evaluation: the fastest of three runs, or of two where they are long (the gate has warmed up)."""
        times: list[float] = []
        while len(times) < 2 or (len(times) < 3 and times[0] < _SLOW):
            start = now()
            path.losses(directions, indices, radii)  # returns on the CPU: synchronises
            times.append(now() - start)
        return min(times) / (len(indices) * len(radii))

    def _affordable(self, points: int) -> int:
        """Directions whose ``points`` perturbed copies, with parameters and activations, fit in memory."""
        limit = self._memory or available_memory(self.objective.device) // 2
        width = torch.finfo(self.dtype).bits // 8
        per_point = 3 * self.objective.size * width + activation_bytes(self.replica)
        return int(limit // (per_point * points))


class PathError(ValueError, RuntimeError):
    """The path that was asked for cannot run the model: a wrong argument, that shows while the model runs."""


def cannot_run(path: str, error: Exception) -> PathError:
    """The refusal of a path that was asked for, with what the model raised on it."""
    words = f"{type(error).__name__}: {first_line(error)[:160]}"
    return PathError(f"path must be 'loop' for this model, got {path!r}, which cannot run it ({words}); use path='loop' or None")


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
