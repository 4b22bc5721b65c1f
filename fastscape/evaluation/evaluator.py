"""A prepared evaluation: private copy, determinism gate, and the faster path, chosen by measuring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, get_args

import torch
from torch import Tensor

from fastscape._checks import check_memory as check_memory
from fastscape._checks import one_of
from fastscape._clock import now
from fastscape._state import left_on_failure
from fastscape.directions import Directions
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.footprint import Cap, capped_arithmetic, footprint
from fastscape.evaluation.paths import LoopPath, Path, VmapPath
from fastscape.evaluation.points import Array, Radii, second_difference, signed_radii
from fastscape.evaluation.streaming import ASKED_FOR, reason_to_stream, streamed_bytes
from fastscape.evaluation.trial import (
    PathChoice,
    Refusal,
    Trial,
    asked_for,
    copies_within,
    copy_bytes,
    refuse_copies,
    same_losses,
    timed,
)
from fastscape.objective.examination import streamed_replica
from fastscape.objective.objective import Objective, checked_objective
from fastscape.objective.replica import Replica
from fastscape.objective.streamed import StreamedReplica

PathName = Literal["loop", "vmap", "stream"]
_TRIAL_POINTS = 6  # loop evaluations in a trial: the median of few is enough to tell 1.2x
_QUICK = 0.005  # seconds per forward below which a trial with all radii is cheap
_SLOW = 0.1  # seconds per forward above which dispatch overhead, all that vmap saves on a CPU, is below 2 %
_DIFFERS = "vmap gives other losses: the model accesses parameters outside named_parameters() (a list, a closure)"
_SIZES = (1, 8)  # directions a call: small batches win where the perturbed copies leave the cache


class Evaluator:
    """Evaluate an objective in one dtype, as a context manager that restores every global setting on exit.

    Args:
        objective: the function.
        dtype: arithmetic of the forward passes.
        method: ``"loop"``, ``"vmap"``, ``"stream"``, an earlier :class:`PathChoice`, or ``None`` to measure the first two on this
            model, or for the last where copies of the parameters do not fit in memory.
        memory: bytes that evaluation may take, the private copy and the trial included; default half of what is available, for
            batched evaluation.
        gate: evaluate twice and refuse a loss that differs.
        trial: seconds that measuring the batched path may take.

    Raises:
        ValueError: unknown method; on entry, a memory that holds no evaluation, with what is enough.
        NondeterministicLossError: on entry, if gated.
    """

    in_place = False  # whether a sharded model is evaluated, as it is

    def __init__(
        self,
        objective: Objective,
        dtype: torch.dtype,
        *,
        method: PathName | PathChoice | None = None,
        memory: int | None = None,
        gate: bool = True,
        trial: float = math.inf,
    ) -> None:
        checked_objective(objective, sharded=self.in_place)
        if not isinstance(method, PathChoice):
            one_of("method", method, (*get_args(PathName), None), "to measure")
        check_memory(memory)
        self.objective, self.dtype, self.gate = objective, dtype, gate
        self.choice: PathChoice | None = method if isinstance(method, PathChoice) else None
        self._wanted: PathName | None = None if isinstance(method, PathChoice) else method
        self.cap, self._trial = Cap(memory), trial
        self._block = capped_arithmetic(self.dtype, memory)
        self._path: Path | None = None
        self.forward_seconds = 0.0

    @property
    def evaluations(self) -> int:
        """Loss evaluations done so far: gate, trials and padding of batches included."""
        return self.replica.evaluations

    def __enter__(self) -> Evaluator:
        with left_on_failure(self._block):
            self.replica = self._replica()
            if self.gate:
                start = now()
                unperturbed_loss(self.replica)
                self.forward_seconds = (now() - start) / self.replica.gate
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._path = None
        self._block.__exit__(kind, error, trace)

    def _replica(self) -> Replica:
        """A copy to evaluate, whose parameters are made on use where that was asked for, or no other fits in memory."""
        name = self._wanted if self.choice is None else self.choice.name
        self._streamed = reason_to_stream(self.objective, self.dtype, self.cap) if name is None else ""
        if name != "stream" and not self._streamed:
            if self.cap.memory is not None:
                self._block.hold(footprint(self.objective, self.dtype).alone, "an evaluation of the loss")
            return self.objective.replica(self.dtype)
        self._streamed = self._streamed or ASKED_FOR
        if self.cap.memory is not None:
            self._block.hold(streamed_bytes(self.objective, self.dtype), "an evaluation of the loss, a module at a time")
        return streamed_replica(self.objective, self.dtype)

    @property
    def streamed(self) -> bool:
        """Whether parameters are made as a forward uses them."""
        return isinstance(self.replica, StreamedReplica)

    def prepare(self, directions: Directions, radii: Sequence[float]) -> PathChoice:
        """Choose the path for rows of ``radii``, once; later calls return the same choice."""
        if self._path is None:
            directions.check(self.objective)  # once: it copies the weights where the objective casts them
        if self.choice is None:
            self.choice = self._choose(directions, radii)
            self.cap.settle()
            if self.cap.memory is not None and self.choice.name == "vmap":
                copies = self.choice.chunk * len(radii) * copy_bytes(self.replica)
                self._block.hold(footprint(self.objective, self.dtype).alone + copies)
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
        if self.streamed:
            return PathChoice("stream", 1, {}, self._streamed)
        if self._wanted == "loop":
            return PathChoice("loop", 1, {}, ASKED_FOR)
        few = [radius for radius in radii if radius][:_TRIAL_POINTS] or list(radii[:1])
        chunk = min(copies_within(self.replica, self.cap.memory, len(radii)), len(directions))
        if self._wanted == "vmap":
            return self._only_vmap(directions, radii, few, chunk)
        trial = Trial[int]()
        loop = self._seconds(LoopPath(self.replica), directions, few[:1])
        points = radii if loop < _QUICK else few  # all of them where that is cheap: making the direction is shared
        if loop <= _SLOW:
            loop = self._seconds(LoopPath(self.replica), directions, points)
        trial.seconds["loop"] = loop
        sizes = [
            size
            for size in (_SIZES if loop < _QUICK else _SIZES[:1])
            if size <= chunk and 3 * size * len(points) * loop < self._trial
        ]
        if loop > _SLOW:
            trial.refused["vmap"] = f"a forward takes {loop:.2g} s, long against dispatch overhead"
        elif chunk < 1:
            trial.refused["vmap"] = f"{len(radii)} copies of the parameters do not fit in memory"
        elif not sizes:
            trial.refused["vmap"] = "the budget is too short to try vmap"
        else:
            size = trial.attempt("vmap", lambda: self._best_batch(trial, directions, few, points, sizes))
            if size is not None:
                best = trial.best("loop")
                reason = f"{trial.lead(best):.1f}x faster than {'the loop' if best == 'vmap' else 'vmap'} on this model"
                return PathChoice(best, size if best == "vmap" else 1, trial.seconds, reason)
        return PathChoice("loop", 1, trial.seconds, trial.refused["vmap"])

    def _only_vmap(self, directions: Directions, radii: Sequence[float], few: Sequence[float], chunk: int) -> PathChoice:
        if chunk < 1:
            refuse_copies(self.replica, self.cap.memory, len(radii))
        trial, sizes = Trial[int](), [size for size in _SIZES if size <= chunk]
        size = asked_for("vmap", lambda: self._best_batch(trial, directions, few, radii, sizes))
        return PathChoice("vmap", size, trial.seconds, ASKED_FOR)

    def _best_batch(
        self, trial: Trial[int], directions: Directions, few: Sequence[float], points: Sequence[float], sizes: Sequence[int]
    ) -> int:
        """Directions per batched call with the least seconds per evaluation, which are noted in a trial.

        Raises:
            Refusal: the losses are not the loop's.
        """
        found, expected = (
            path.losses(directions, (0,), few).numpy() for path in (VmapPath(self.replica, 1), LoopPath(self.replica))
        )
        if not same_losses(found, expected, self.dtype):
            raise Refusal(_DIFFERS)
        times = {size: self._seconds(VmapPath(self.replica, size), directions, points, range(size)) for size in sizes}
        best = min(times, key=times.__getitem__)
        trial.seconds["vmap"] = times[best]
        return best

    def _seconds(self, path: Path, directions: Directions, radii: Sequence[float], indices: Sequence[int] = (0,)) -> float:
        """Seconds per evaluation: the fastest of three runs, or of two where they are long (the gate has warmed up)."""
        fastest, _ = timed(lambda: path.losses(directions, indices, radii), most=3, more=lambda times: times[0] < _SLOW)
        return fastest / (len(indices) * len(radii))
