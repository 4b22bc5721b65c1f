"""Losses of a family of weights at many coordinates: the engine of slices, paths between solutions and searches."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike

from fastscape._checks import check_memory, first_line
from fastscape._clock import now
from fastscape._state import exact_arithmetic
from fastscape.evaluation.agreement import check_same_function
from fastscape.evaluation.batch_statistics import kept, recalibrate
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.evaluator import PathChoice, activation_bytes, cannot_run
from fastscape.evaluation.noise import step_noise
from fastscape.evaluation.points import Array
from fastscape.evaluation.surface.families import Affine as Affine
from fastscape.evaluation.surface.families import Family as Family
from fastscape.evaluation.surface.lines import line_path
from fastscape.evaluation.surface.paths import PointLoop, PointVmap, Prepare, Raw, SurfacePath
from fastscape.evaluation.surface.sample_losses import SampleLosses, standard_errors
from fastscape.objective.batches import available_memory
from fastscape.objective.objective import Objective, checked_objective
from fastscape.objective.replica import Replica

SurfacePathName = Literal["loop", "vmap"]
Candidate = Callable[[Replica, Affine, SampleLosses], "SurfacePath | None"]
CANDIDATES: dict[str, Candidate] = {"lines": line_path}  # faster paths of single architectures; None where a model is of another

_SLOW = 0.1  # seconds per forward above which dispatch overhead, all that vmap saves on a CPU, is below 2 %
_TRIAL = 0.005  # seconds of one trial, beyond two calls
_SIZES = (8, 32)  # points per batched call
_CLEARLY = 1.2
_AGREEMENT = 1000  # ulp of the loss by which two paths may differ
_COMPARED, _COMPARING = (2, 8), 3e-3  # points at which the noise is measured: as many as evaluations of w fit in 3 ms
_NEAR = 1e-8  # relative step: 1e8 roundings of float64, and squared less than one
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
        batches: mean losses of the batches ``[P, batches]``.
        hits: share of correct classifications of every sample ``[P, N]``, where samples were asked for and points are
            evaluated one by one; ``None`` without classes.
    """

    losses: Array
    stderr: Array
    accuracy: Array | None
    samples: Array | None
    weights: Array | None
    batches: Array
    hits: Array | None = None


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
        trial: seconds that trying batched evaluation may take.
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
        trial: float = math.inf,
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
        self._wanted, self._memory, self._prepare, self._trial = path, memory, prepare, trial
        self.choice: PathChoice | None = None
        self._path: SurfacePath | None = None
        self._seen: list[tuple[Array, Array]] = []
        self._noise: float | None = None
        self.seconds = 0.0
        self._asked = 0  # points before a path is chosen
        self._beside = 0  # evaluations of the float64 copy
        self._stack = ExitStack()

    def __enter__(self) -> Surface:
        with ExitStack() as stack:
            stack.enter_context(exact_arithmetic(self.dtype))
            self.replica = self.objective.replica(self.dtype)
            start = now()
            unperturbed_loss(self.replica)  # evaluates twice, and counts
            self.seconds = (now() - start) / self.replica.gate
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
        hits = [part.hits for part in parts if part.hits is not None]
        found = SurfaceLosses(
            losses=np.concatenate([part.losses for part in parts]),
            stderr=np.concatenate([part.stderr for part in parts]),
            accuracy=np.concatenate([part.accuracy for part in parts]) if self.terms.targets else None,
            samples=np.concatenate([part.samples for part in parts]) if self.keep_samples and weights is not None else None,
            weights=weights,
            batches=np.concatenate([part.batches for part in parts]),
            hits=np.concatenate(hits) if hits else None,
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

    def recalibrated(self, points: ArrayLike) -> Array:
        """Losses ``[P]`` with the running statistics of batch norm recomputed at every point; the replica keeps its own.

        Raises:
            ValueError: as :meth:`at`, or a batch with a single value per channel.

        Cost: two evaluations per point.
        """
        rows = self._checked(points)
        found = np.empty(len(rows))
        with kept(self.replica):
            for position, row in enumerate(rows.tolist()):
                self.family.write(row, self.replica.scratch)
                recalibrate(self.replica)
                found[position] = float(self.replica.loss())
        return found

    @property
    def noise(self) -> float:
        """RMS rounding error of one loss, weights included, in units of the loss; NaN before a finite loss was evaluated.

        Measured once, at two (large models) to eight of the points evaluated so far. Below float64 the loss is evaluated
        in float64 as well; in float64 it is evaluated at coordinates smaller by 1e-8 and 2e-8 of themselves, where the second
        difference is rounding alone; so for models that cannot run in float64. At least a rounding of the loss itself, and the
        error of narrower dtypes and other steps inside the model, which float64 rounds to as well
        (:mod:`fastscape.evaluation.steps`).
        """
        if self._noise is None:
            self._noise = self._measured_noise()
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
            batches=raw.batches,
            hits=None if raw.hits is None or not self.keep_samples else raw.hits / np.maximum(self.terms.counts(), 1),
        )

    def _measured_noise(self) -> float:
        """Rounding at points spread over those seen, the origin aside where there are others."""
        rows = np.concatenate([seen for seen, _ in self._seen]) if self._seen else np.zeros((0, self.family.dims))
        losses = np.concatenate([found for _, found in self._seen]) if self._seen else np.zeros(0)
        usable = np.isfinite(losses)
        usable &= rows.any(axis=1) | ~(usable & rows.any(axis=1)).any()
        known = np.flatnonzero(usable)
        if not len(known):
            return math.nan
        few = int(np.clip(_COMPARING / max(self.seconds, 1e-9), *_COMPARED))
        chosen = known[np.unique(((np.arange(few) + 0.5) / few * len(known)).astype(int))]
        size = float(np.sqrt(np.mean(losses[chosen] ** 2)))
        errors = self._errors(rows[chosen], losses[chosen])
        least = torch.finfo(self.dtype).eps * size / math.sqrt(48)  # ulp / sqrt(12), half of the losses' largest ulp
        finite = errors[np.isfinite(errors)]
        steps = step_noise(self.replica, lambda: self._write(rows[chosen[-1]].tolist()))
        return float(np.fmax(np.fmax(np.sqrt(np.mean(finite**2)) if len(finite) else 0.0, least), steps))

    def _write(self, row: list[float]) -> None:
        self.family.write(row, self.replica.scratch)
        if self._prepare is not None:
            self._prepare(self.replica, row)

    def _errors(self, rows: Array, losses: Array) -> Array:
        """Rounding errors of losses."""
        if self.dtype == torch.float64:
            return self._nearby(rows)
        try:
            return losses - self._exact(rows)
        except Exception:  # such as a dtype that the model fixes: what was evaluated is kept
            return self._nearby(rows)

    def _nearby(self, rows: Array) -> Array:
        """Second differences over coordinates that differ by 1e-8 (in float64), as errors of one loss: six times the variance."""
        near = _NEAR * math.sqrt(torch.finfo(self.dtype).eps / torch.finfo(torch.float64).eps)
        plain = [self._reduced(self._loop.at(rows * (1 - step * near))).losses for step in range(3)]
        return (plain[0] - 2 * plain[1] + plain[2]) / math.sqrt(6)

    def _exact(self, rows: Array) -> Array:
        """Losses in float64."""
        with exact_arithmetic(torch.float64):
            replica = self.objective.replica(torch.float64)
            check_same_function(replica)
            exact = np.empty(len(rows))
            for position, row in enumerate(rows.tolist()):
                self.family.write(row, replica.scratch)
                if self._prepare is not None:
                    self._prepare(replica, row)
                exact[position] = float(replica.loss())
        self._beside += replica.evaluations
        return exact

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
        self._asked += len(rows)
        if self._asked < 2 * _SIZES[0]:
            return PathChoice("loop", 1, {}, _FEW), self._loop
        return self._fastest(family, rows)

    def _fastest(self, family: Affine, rows: Array) -> tuple[PathChoice, SurfacePath]:
        """The fastest of the loop and the paths that agree with it; the loop is timed only where there is a rival."""
        seconds: dict[str, float] = {}
        best: SurfacePath = self._loop
        reason = f"a forward takes {self.seconds:.2g} s, long against dispatch overhead"
        for label, make in self._candidates(family, rows).items():
            if seconds.get("vmap", 0.0) > _CLEARLY * seconds.get("loop", math.inf):
                break  # a larger batch makes up for dispatch, not for slower kernels
            try:
                path = make()
                if path is None:
                    continue
                if not self._agree(path, rows):
                    reason = f"{label} gives other losses"
                    continue
                took = self._timed(path, rows)
            except Exception as error:  # whatever a model does under vmap: the gate has just run it
                reason = f"{label} cannot run this model: {type(error).__name__}: {first_line(error)[:120]}"
                continue
            if not seconds:
                seconds["loop"] = self._timed(self._loop, rows)
            if took < seconds["loop"] / 2:  # vmap has never been this much faster where a path of its own can run the model
                seconds[path.name] = took
                best = path
                break
            if took < min(seconds.values()):
                best = path
            seconds[path.name] = min(took, seconds.get(path.name, math.inf))
        others = [value for name, value in seconds.items() if name != best.name]
        if others:
            reason = f"{min(others) / seconds[best.name]:.1f}x faster than the next on this model"
        return PathChoice(best.name, best.chunk, seconds, reason), best

    def _candidates(self, family: Affine, rows: Array) -> dict[str, Callable[[], SurfacePath | None]]:
        """Paths worth a trial, by a label."""
        found: dict[str, Callable[[], SurfacePath | None]] = {
            name: lambda make=make: make(self.replica, family, self.terms)  # type: ignore[misc]
            for name, make in CANDIDATES.items()
        }
        if self.seconds < _SLOW:
            most = min(self._affordable(), len(rows), self._trial / (4 * self.seconds))  # points of four calls: see _timed
            sizes = [size for size in _SIZES if size <= most]
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
        try:
            agree = self._agree(path, rows)
        except Exception as error:  # whatever a model does on another path: the gate has just run it
            raise cannot_run(name, error) from error
        if not agree:
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
            start = now()
            self._reduced(path.at(middle))  # ends on the CPU: synchronises
            times.append(now() - start)
        return min(times) / count

    def _affordable(self) -> int:
        """Points whose weights and activations fit in memory beside each other."""
        limit = self._memory or available_memory(self.objective.device) // 2
        width = torch.finfo(self.dtype).bits // 8
        return int(limit // (3 * self.objective.size * width + activation_bytes(self.replica)))
