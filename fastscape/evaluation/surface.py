"""Losses of a family of weights at many coordinates: the engine of slices, paths between solutions and searches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike

from fastscape._batches import available_memory
from fastscape._checks import first_line
from fastscape._replica import Replica
from fastscape._state import exact_arithmetic
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.evaluator import PathChoice, activation_bytes, check_memory
from fastscape.evaluation.families import Affine as Affine
from fastscape.evaluation.families import Family as Family
from fastscape.evaluation.lines import line_path
from fastscape.evaluation.noise import rounding_model
from fastscape.evaluation.points import Array
from fastscape.evaluation.sample_losses import SampleLosses, standard_errors
from fastscape.evaluation.surface_paths import PointLoop, PointVmap, Prepare, Raw, SurfacePath
from fastscape.objective import Objective, checked_objective

SurfacePathName = Literal["loop", "vmap"]
Candidate = Callable[[Replica, Affine, SampleLosses], "SurfacePath | None"]
CANDIDATES: dict[str, Candidate] = {
    "lines": line_path
}  # faster paths of single architectures, by name; None where a model is of another

_SLOW = 0.1  # seconds per forward above which dispatch overhead, all that vmap saves on a CPU, is below 2 %
_TRIAL = 0.02  # seconds of the loop's trial
_SIZES = (8, 32)  # points per batched call
_AGREEMENT = 1000  # ulp of the loss by which two paths may differ
_COMPARED = 4  # points that are evaluated in float64 as well, for the noise
_FEW = "few points"
_KEPT_BYTES = 64 << 20  # of samples' losses at a time


@dataclass(frozen=True)
class SurfaceLosses:
    """Losses at P points.

    Attributes:
        losses: sample-weighted means, float64 ``[P]``; NaN and inf are results.
        stderr: their standard errors over samples, or over batches where samples are not known, ``[P]``; NaN where unknown.
        accuracy: share of correct classifications ``[P]``; ``None`` where the task is not classification.
        samples: losses of single samples ``[P, N]``, where they were asked for and are known.
        weights: of the samples ``[N]``, where they are known.
    """

    losses: Array
    stderr: Array
    accuracy: Array | None
    samples: Array | None
    weights: Array | None


class Surface:
    """Evaluate a family of weights at coordinates, as a context manager that restores every global setting on exit.

    The objective is copied and checked to be a function (two evaluations at w agree bit for bit). Points are evaluated one by one
    over scratch weights, or by a batched path where that is measured to be faster and agrees. The origin of a family around the
    objective's weights gives ``objective.loss()`` in the same dtype, bit for bit, whatever the path.

    Args:
        objective: the loss.
        family: weights by coordinates; see :class:`Family` and :class:`Affine`.
        dtype: arithmetic of the forward passes; ``None`` for the objective's own.
        path: name of a path, or ``None`` to measure those that can evaluate the family.
        memory: bytes that batched evaluation may take; default half of what is available.
        keep_samples: return the losses of single samples.
        accuracy: count correct classifications.
        prepare: ``prepare(replica, coordinates)``, called when the weights of a point are written, such as to recompute
            batch-norm statistics; points are then evaluated one by one.

    Attributes:
        seconds: of one evaluation, measured on entry.
        choice: the path, once points have been evaluated.
        terms: how losses are split into those of samples.

    Raises:
        TypeError, ValueError: naming the argument.
        NondeterministicLossError: on entry; the loss is not a function of weights and data.

    Cost: two copies of the probed parameters for planes (one for lines), three evaluations on entry, one per point.
    """

    def __init__(
        self,
        objective: Objective,
        family: Family,
        *,
        dtype: torch.dtype | None = None,
        path: str | None = None,
        memory: int | None = None,
        keep_samples: bool = False,
        accuracy: bool = True,
        prepare: Prepare | None = None,
    ) -> None:
        self.objective, self.family = checked_objective(objective), family
        self.dtype = objective.dtype if dtype is None else dtype
        check_memory(memory)
        known = (*get_args(SurfacePathName), *CANDIDATES)
        if path is not None and path not in known:
            raise ValueError(f"path must be one of {', '.join(known)} or None to measure them, got {path!r}")
        if path not in (None, "loop") and (prepare is not None or not isinstance(family, Affine)):
            raise ValueError(f"path must be 'loop' for a family that is not affine and with prepare=, got {path!r}")
        if isinstance(family, Affine) and [t.shape for t in family.base] != [t.shape for t in objective.base.values()]:
            raise ValueError("family must move the objective's parameters, got a base of other shapes")
        self.keep_samples, self._accuracy = keep_samples, accuracy
        self._wanted, self._memory, self._prepare = path, memory, prepare
        self.choice: PathChoice | None = None
        self._path: SurfacePath | None = None
        self._seen: list[tuple[Array, Array]] = []
        self._noise: float | None = None
        self.seconds = 0.0
        self._beside = 0  # evaluations of the float64 copy
        self._stack = ExitStack()

    def __enter__(self) -> Surface:
        with ExitStack() as stack:
            stack.enter_context(exact_arithmetic(self.dtype))
            self.replica = self.objective.replica(self.dtype)
            start = time.perf_counter()
            unperturbed_loss(self.replica)  # evaluates twice, and counts
            self.seconds = (time.perf_counter() - start) / 2
            self.terms = SampleLosses(self.replica, accuracy=self._accuracy)
            self._loop = PointLoop(self.replica, self.family, self.terms, self._prepare)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._path = None
        self._stack.close()

    @property
    def evaluations(self) -> int:
        """Evaluations of all data done so far: gate, trials, padding of batches and the noise included."""
        return self.replica.evaluations + self._beside

    def at(self, points: ArrayLike) -> SurfaceLosses:
        """Losses at points ``[P, m]`` (``[P]`` for one coordinate).

        Raises:
            ValueError: another shape, or coordinates that are not finite.
        """
        rows = self._checked(points)
        path = self._chosen(rows)
        step = max(path.chunk, _KEPT_BYTES // (8 * len(self.terms.weights)) // path.chunk * path.chunk)
        parts = [self._part(path, rows[start : start + step]) for start in range(0, len(rows), step)]
        weights = self.terms.weights if self.terms.unit == "samples" else None
        found = SurfaceLosses(
            losses=np.concatenate([part.losses for part in parts]),
            stderr=np.concatenate([part.stderr for part in parts]),
            accuracy=np.concatenate([part.accuracy for part in parts]) if self.terms.targets else None,
            samples=np.concatenate([part.samples for part in parts]) if self.keep_samples and weights is not None else None,
            weights=weights,
        )
        self._seen.append((rows, found.losses))
        return found

    def turn(self, family: Affine) -> None:
        """Go on with another affine family, such as the next direction; the path that was chosen is kept.

        Raises:
            ValueError: a family of other dimensions.
        """
        if family.dims != self.family.dims:
            raise ValueError(f"family must have {self.family.dims} dimensions as the one before, got {family.dims}")
        self.family = family
        self._loop = PointLoop(self.replica, family, self.terms, self._prepare)
        self._seen.clear()  # coordinates of the other family
        if self._path is not None and self.choice is not None:
            self._path = self._named(self.choice.name, self.choice.chunk) or self._loop

    @property
    def noise(self) -> float:
        """RMS rounding error of one loss, in units of the loss; NaN before any point of finite loss was evaluated.

        Below float64 it is measured: four of the points evaluated so far are evaluated in float64, weights included, and the
        root mean square of the differences is taken. In float64 it comes from the dtype (:mod:`fastscape.evaluation.noise`, of
        whose three losses in a second difference one carries a sixth of the variance). At least a rounding of the loss itself.
        """
        if self._noise is None:
            wide = self.dtype == torch.float64
            self._noise = rounding_model(self.replica) / math.sqrt(6) if wide else self._compared()
        return self._noise

    # ------------------------------------------------------------------ private

    def _checked(self, points: ArrayLike) -> Array:
        rows = np.asarray(points, dtype=np.float64)
        rows = rows[:, None] if rows.ndim == 1 and self.family.dims == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != self.family.dims or not len(rows):
            raise ValueError(f"points must have shape [P, {self.family.dims}] with P >= 1, got {list(np.shape(points))}")
        if not np.isfinite(rows).all():
            raise ValueError(f"points must be finite, got {rows[~np.isfinite(rows)][0]}")
        return rows

    def _part(self, path: SurfacePath, rows: Array) -> SurfaceLosses:
        origin = ~rows.any(axis=1) if path is not self._loop and isinstance(self.family, Affine) else np.zeros(len(rows), bool)
        raw = path.at(rows)
        if origin.any():  # the objective's own loss, bit for bit
            exact = self._loop.at(rows[:1] * 0.0)
            for whole, one in ((raw.batches, exact.batches), (raw.samples, exact.samples), (raw.correct, exact.correct)):
                if whole is not None and one is not None:
                    whole[origin] = one
        return self._reduced(raw)

    def _reduced(self, raw: Raw) -> SurfaceLosses:
        objective = self.objective
        total = np.zeros(len(raw.batches))
        with np.errstate(invalid="ignore", over="ignore"):
            for index, weight in enumerate(objective.batch_weights):  # in the order and arithmetic of Objective.loss
                total += weight * raw.batches[:, index]
        parts = raw.batches if raw.samples is None else raw.samples
        return SurfaceLosses(
            losses=total / objective.samples,
            stderr=standard_errors(parts, self.terms.weights),
            accuracy=None if raw.correct is None else raw.correct / self.terms.targets,
            samples=raw.samples,
            weights=None,
        )

    def _compared(self) -> float:
        """RMS difference of losses from those in float64, at points spread over those seen."""
        rows = np.concatenate([seen for seen, _ in self._seen]) if self._seen else np.zeros((0, self.family.dims))
        losses = np.concatenate([found for _, found in self._seen]) if self._seen else np.zeros(0)
        usable = np.flatnonzero(np.isfinite(losses))
        if not len(usable):
            return math.nan
        chosen = usable[np.unique(np.linspace(0, len(usable) - 1, _COMPARED).round().astype(int))]
        with exact_arithmetic(torch.float64):
            replica = self.objective.replica(torch.float64)
            loop = PointLoop(replica, self.family, SampleLosses(replica, accuracy=False), self._prepare)
            exact = self._reduced(loop.at(rows[chosen])).losses
            self._beside += replica.evaluations
        least = torch.finfo(self.dtype).eps * float(np.abs(losses[chosen]).mean()) / math.sqrt(48)
        return float(np.fmax(np.sqrt(np.mean((losses[chosen] - exact) ** 2)), least))

    # ------------------------------------------------------------------ choosing

    def _chosen(self, rows: Array) -> SurfacePath:
        if self._path is None:
            self.choice, path = self._choose(rows)
            if self.choice.reason == _FEW:  # a later call with more points measures
                return path
            self._path = path
        return self._path

    def _choose(self, rows: Array) -> tuple[PathChoice, SurfacePath]:
        family = self.family
        if self._wanted == "loop" or self._prepare is not None or not isinstance(family, Affine):
            why = "asked for" if self._wanted else "the weights are not affine in the coordinates, or prepared at every point"
            return PathChoice("loop", 1, {}, why), self._loop
        if self._wanted is not None:
            return self._only(self._wanted, rows)
        if len(rows) < 2 * _SIZES[0]:
            return PathChoice("loop", 1, {}, _FEW), self._loop
        loop = self._timed(self._loop, rows)
        seconds, reason = {"loop": loop}, ""
        best: SurfacePath = self._loop
        for name, make in self._candidates(family, rows, loop).items():
            try:
                path = make()
                if path is None:
                    continue
                if not self._agree(path, rows):
                    reason = f"{name} gives other losses"
                    continue
                took = self._timed(path, rows)
            except Exception as error:  # whatever a model does under vmap: the loop has just run it
                reason = f"{name} cannot run this model: {type(error).__name__}: {first_line(error)[:120]}"
                continue
            if took < seconds.get(path.name, math.inf):
                seconds[path.name] = took
            if took < min(value for key, value in seconds.items() if key != path.name):
                best = path
        others = [value for key, value in seconds.items() if key != best.name]
        if others:
            reason = f"{min(others) / seconds[best.name]:.1f}x faster than the next on this model"
        elif not reason:
            reason = f"a forward takes {loop:.2g} s, long against dispatch overhead"
        return PathChoice(best.name, best.chunk, seconds, reason), best

    def _candidates(self, family: Affine, rows: Array, loop: float) -> dict[str, Callable[[], SurfacePath | None]]:
        """Paths worth a trial, by a label."""
        found: dict[str, Callable[[], SurfacePath | None]] = {
            name: lambda make=make: make(self.replica, family, self.terms)  # type: ignore[misc]
            for name, make in CANDIDATES.items()
        }
        if loop < _SLOW:
            sizes = [size for size in _SIZES if size <= min(self._affordable(), len(rows))]
            found |= {
                f"vmap of {size}": lambda size=size: PointVmap(self.replica, family, self.terms, size)  # type: ignore[misc]
                for size in sizes
            }
        return found

    def _only(self, name: str, rows: Array) -> tuple[PathChoice, SurfacePath]:
        size = min(_SIZES[0], self._affordable(), len(rows))
        if name == "vmap" and size < 1:
            raise ValueError("memory must hold a copy of the parameters and activations for path='vmap'; use path='loop'")
        path = self._named(name, size)
        if path is None:
            raise ValueError(f"path must be one that can run this model, got {name!r}; use path=None")
        if not self._agree(path, rows):
            raise ValueError(f"path must be 'loop' for this model, got {name!r}, which gives other losses")
        return PathChoice(path.name, path.chunk, {}, "asked for"), path

    def _named(self, name: str, chunk: int) -> SurfacePath | None:
        """A path of the present family; ``None`` where it cannot take the model."""
        assert isinstance(self.family, Affine)
        if name == "loop":
            return self._loop
        if name == "vmap":
            return PointVmap(self.replica, self.family, self.terms, chunk)
        return CANDIDATES[name](self.replica, self.family, self.terms)

    def _agree(self, path: SurfacePath, rows: Array) -> bool:
        few = rows[np.unique(np.linspace(0, len(rows) - 1, 3).round().astype(int))]
        found, expected = self._reduced(path.at(few)).losses, self._reduced(self._loop.at(few)).losses
        finite = np.abs(expected[np.isfinite(expected)])
        allowed = _AGREEMENT * torch.finfo(self.dtype).eps * (float(finite.max()) if len(finite) else 1.0)
        return bool(np.allclose(found, expected, rtol=0.0, atol=allowed, equal_nan=True))

    def _timed(self, path: SurfacePath, rows: Array) -> float:
        """Seconds per point: the fastest of two or three calls, on the middle of the points."""
        count = min(len(rows), max(path.chunk, 1))
        middle = rows[(len(rows) - count) // 2 :][:count]
        times: list[float] = []
        while len(times) < 2 or (len(times) < 8 and sum(times) < _TRIAL):
            start = time.perf_counter()
            self._reduced(path.at(middle))  # ends on the CPU: synchronises
            times.append(time.perf_counter() - start)
        return min(times) / count

    def _affordable(self) -> int:
        """Points whose weights and activations fit in memory beside each other."""
        limit = self._memory or available_memory(self.objective.device) // 2
        width = torch.finfo(self.dtype).bits // 8
        return int(limit // (3 * self.objective.size * width + activation_bytes(self.replica)))
