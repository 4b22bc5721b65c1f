"""Losses of a family of weights at many coordinates: the engine of slices, paths between solutions and searches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike

from fastscape._checks import check_memory, one_of
from fastscape._clock import now
from fastscape._state import left_on_failure
from fastscape.evaluation.batch_statistics import kept, recalibrate
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.footprint import capped_arithmetic, footprint
from fastscape.evaluation.points import Array
from fastscape.evaluation.surface.choice import CANDIDATES, SIZES, PathTrial
from fastscape.evaluation.surface.families import Affine as Affine
from fastscape.evaluation.surface.families import Family as Family
from fastscape.evaluation.surface.losses import SurfaceLosses as SurfaceLosses
from fastscape.evaluation.surface.losses import reduced
from fastscape.evaluation.surface.noise import Rounding
from fastscape.evaluation.surface.paths import PointLoop, Prepare, SurfacePath
from fastscape.evaluation.surface.sample_losses import SampleLosses
from fastscape.evaluation.trial import PathChoice
from fastscape.objective.objective import Objective, checked_objective
from fastscape.runs.evaluations import Evaluations

SurfacePathName = Literal["loop", "vmap"]
_FEW = "few points"
_KEPT_BYTES = 64 << 20  # of samples' losses at a time


class Surface:
    """Evaluate a family of weights at coordinates, as a context manager that restores every global setting on exit.

    The objective is copied and checked to be a function (two evaluations at w agree bit for bit). Points are evaluated one by one
    over scratch weights, or by a batched path where that is measured to be faster and agrees. The origin of a family around the
    objective's weights gives ``objective.loss()`` in the same dtype, bit for bit, whatever the path.

    Args:
        objective: the loss.
        family: weights by coordinates; see :class:`Family` and :class:`Affine`.
        dtype: arithmetic of the forward passes; ``None`` for the objective's own.
        method: name of a path, or ``None`` to measure those that can evaluate the family.
        memory: bytes that evaluation may take, the private copy included; default half of what is available, for batches.
        keep_samples: return the losses of single samples.
        accuracy: count correct classifications.
        trial: seconds that trying batched evaluation may take.
        evaluations: those of a journal, by the content of the family and the coordinates; ``None`` for none.
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
        method: str | None = None,
        memory: int | None = None,
        keep_samples: bool = False,
        accuracy: bool = True,
        trial: float = math.inf,
        prepare: Prepare | None = None,
        evaluations: Evaluations | None = None,
    ) -> None:
        self.objective, self.family = checked_objective(objective), family
        self.dtype = objective.dtype if dtype is None else dtype
        check_memory(memory)
        known = (*get_args(SurfacePathName), *CANDIDATES)
        one_of("method", method, (*known, None), "to measure them")
        if method not in (None, "loop") and (prepare is not None or not isinstance(family, Affine)):
            raise ValueError(f"method must be 'loop' for a family that is not affine and with prepare=, got {method!r}")
        if isinstance(family, Affine) and [t.shape for t in family.base] != [t.shape for t in objective.base.values()]:
            raise ValueError("family must move the objective's parameters, got a base of other shapes")
        self.keep_samples, self._accuracy = keep_samples, accuracy
        self._wanted, self._memory, self._prepare, self._trial = method, memory, prepare, trial
        self.choice: PathChoice | None = None
        self._path: SurfacePath | None = None
        self._seen: list[tuple[Array, Array]] = []
        self._noise: float | None = None
        self.seconds = 0.0
        self._asked = 0  # points before a path is chosen
        self._beside = 0  # evaluations of the float64 copy, and of an earlier run
        self._kept = evaluations or Evaluations()
        self._block = capped_arithmetic(self.dtype, memory)

    def __enter__(self) -> Surface:
        with left_on_failure(self._block):
            if self._memory is not None:
                found = footprint(self.objective, self.dtype)
                self._block.hold(found.alone + self.family.dims * found.copy, "axes and an evaluation of the loss")
            self.replica = self.objective.replica(self.dtype)
            start = now()
            loss = unperturbed_loss(self.replica)  # evaluates twice, and counts
            self.seconds = (now() - start) / self.replica.gate
            self._kept.same_loss(loss)
            self.terms = SampleLosses(self.replica, accuracy=self._accuracy)
            self._loop = PointLoop(self.replica, self.family, self.terms, self._prepare)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._path = None
        self._block.__exit__(kind, error, trace)

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
        weights = self.terms.weights if self.terms.unit == "samples" else None
        value = self._counted("points", (rows, self.keep_samples), lambda: self._parts(path, rows))
        found = SurfaceLosses(**{"accuracy": None, "samples": None, **value}, weights=weights)
        self._seen.append((rows, found.losses))
        return found

    def _parts(self, path: SurfacePath, rows: Array) -> dict[str, Any]:
        """Losses of points by the names of :class:`SurfaceLosses`, what is not known left out."""
        step = max(path.chunk, _KEPT_BYTES // (8 * len(self.terms.weights)) // path.chunk * path.chunk)
        parts = [self._part(path, rows[start : start + step]) for start in range(0, len(rows), step)]
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("losses", "stderr", "accuracy", "samples", "batches", "hits")
            if getattr(parts[0], name) is not None
        }
        if not self.keep_samples or self.terms.unit != "samples":
            joined.pop("samples", None)
        return joined

    def _counted(self, kind: str, request: Sequence[Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is made, or the journal has for the family; :attr:`evaluations` counts those of either."""
        if self._kept.journal is None:
            return make()
        made, before = [], self.evaluations

        def counted() -> dict[str, Any]:
            made.append(kind)
            return {**make(), "evaluations": self.evaluations - before}

        value = dict(self._kept.taken(kind, (self.family.content, *request), counted))
        done = int(value.pop("evaluations"))
        self._beside += 0 if made else done
        return value

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
            self._path = self._paths(family).named(self.choice.name, self.choice.chunk) or self._loop

    def recalibrated(self, points: ArrayLike) -> Array:
        """Losses ``[P]`` with the running statistics of batch norm recomputed at every point; the replica keeps its own.

        Raises:
            ValueError: as :meth:`at`, or a batch with a single value per channel.

        Cost: two evaluations per point.
        """
        rows = self._checked(points)

        def make() -> dict[str, Any]:
            found = np.empty(len(rows))
            with kept(self.replica):
                for position, row in enumerate(rows.tolist()):
                    self.family.write(row, self.replica.scratch)
                    recalibrate(self.replica)
                    found[position] = float(self.replica.loss())
            return {"losses": found}

        recomputed: Array = self._counted("recalibrated", (rows,), make)["losses"]
        return recomputed

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
            rows = np.concatenate([seen for seen, _ in self._seen]) if self._seen else np.zeros((0, self.family.dims))
            losses = np.concatenate([found for _, found in self._seen]) if self._seen else np.zeros(0)

            def make() -> dict[str, Any]:
                rounding = Rounding(self.objective, self._loop, self._memory)
                found = rounding.rms(rows, losses)
                self._beside += rounding.evaluations
                return {"rms": found}

            self._noise = float(self._counted("rounding", (rows, losses), make)["rms"])
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
        return reduced(self.objective, self.terms, raw, hits=self.keep_samples)

    # ------------------------------------------------------------------ choosing

    def _chosen(self, rows: Array) -> SurfacePath:
        if self._path is None:
            self._asked += len(rows)
            tried: list[SurfacePath] = []

            def make() -> dict[str, Any]:
                choice, path = self._choose(rows)
                tried.append(path)
                return dataclasses.asdict(choice)

            self.choice = PathChoice.of(self._counted("path", (self._asked, self._memory), make))
            named = None
            if not tried and isinstance(self.family, Affine):
                named = self._paths(self.family).named(self.choice.name, self.choice.chunk)
            path = tried[0] if tried else named or self._loop
            if self.choice.reason == _FEW:  # a later call with more points measures
                return path
            self._path = path
        return self._path

    def _choose(self, rows: Array) -> tuple[PathChoice, SurfacePath]:
        if self._wanted == "loop" or self._prepare is not None or not isinstance(self.family, Affine):
            why = "asked for" if self._wanted else "the weights are not affine in the coordinates, or prepared at every point"
            return PathChoice("loop", 1, {}, why), self._loop
        if self._wanted is not None:
            return self._paths(self.family).only(self._wanted, rows)
        if self._asked < 2 * SIZES[0]:
            return PathChoice("loop", 1, {}, _FEW), self._loop
        return self._paths(self.family).fastest(rows, self._trial)

    def _paths(self, family: Affine) -> PathTrial:
        return PathTrial(self.replica, family, self.terms, self._loop, self._memory, self.seconds)
