"""Which path evaluates an affine family fastest on the user's model; tried on the points that were asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fastscape.evaluation.points import Array
from fastscape.evaluation.surface.families import Affine
from fastscape.evaluation.surface.lines import line_path
from fastscape.evaluation.surface.losses import total
from fastscape.evaluation.surface.paths import PointVmap, SurfacePath
from fastscape.evaluation.surface.sample_losses import SampleLosses
from fastscape.evaluation.trial import PathChoice, Refusal, Trial, asked_for, copies_within, refuse_copies, same_losses, timed
from fastscape.objective.replica import Replica

Candidate = Callable[[Replica, Affine, SampleLosses], "SurfacePath | None"]
CANDIDATES: dict[str, Candidate] = {"lines": line_path}  # faster paths of single architectures; None where a model is of another

SIZES = (8, 32)  # points per batched call
_SLOW = 0.1  # seconds per forward above which dispatch overhead, all that vmap saves on a CPU, is below 2 %
_TRIAL = 0.005  # seconds of one trial, beyond two calls
_CLEARLY = 1.2


@dataclass(frozen=True)
class PathTrial:
    """Tries the paths of an affine family.

    Args:
        replica, family, terms: what paths are made of.
        loop: the path that the others must agree with.
        memory: bytes that batched evaluation may take; default half of what is available.
        forward: seconds of one evaluation.
    """

    replica: Replica
    family: Affine
    terms: SampleLosses
    loop: SurfacePath
    memory: int | None
    forward: float

    def fastest(self, rows: Array, limit: float) -> tuple[PathChoice, SurfacePath]:
        """The fastest of the loop and the paths that agree with it, tried for ``limit`` seconds; alone it is not timed."""
        trial, best = Trial[tuple[SurfacePath, float]](), self.loop
        seconds = trial.seconds
        for label, make in self._candidates(rows, limit):
            if seconds.get("vmap", 0.0) > _CLEARLY * seconds.get("loop", math.inf):
                break  # a larger batch makes up for dispatch, not for slower kernels
            found = trial.attempt(label, lambda label=label, make=make: self._tried(label, make(), rows))  # type: ignore[misc]
            if found is None:
                continue
            path, took = found
            if not seconds:
                seconds["loop"] = self._seconds(self.loop, rows)
            if took < min(seconds.values()):
                best = path
            seconds[path.name] = min(took, seconds.get(path.name, math.inf))
            if took < seconds["loop"] / 2:  # vmap has never been this much faster where a path of its own can run the model
                break
        slow = f"a forward takes {self.forward:.2g} s, long against dispatch overhead"
        reason = [slow, *trial.refused.values()][-1]
        if len(seconds) > 1:
            reason = f"{trial.lead(best.name):.1f}x faster than the next on this model"
        return PathChoice(best.name, best.chunk, seconds, reason), best

    def only(self, name: str, rows: Array) -> tuple[PathChoice, SurfacePath]:
        """The path that was asked for, if it agrees with the loop.

        Raises:
            ValueError: it does not, cannot run the model, or does not fit in memory.
        """
        size = min(SIZES[0], copies_within(self.replica, self.memory), len(rows))
        if name == "vmap" and size < 1:
            refuse_copies(self.replica, self.memory)
        path = self.named(name, size)
        if path is None:
            raise ValueError(f"method must be one that can run this model, got {name!r}; use method=None")
        asked_for(name, lambda: self._check(name, path, rows))
        return PathChoice(path.name, path.chunk, {}, "asked for"), path

    def named(self, name: str, chunk: int) -> SurfacePath | None:
        """A path of the family; ``None`` where it cannot take the model."""
        if name == "loop":
            return self.loop
        if name == "vmap":
            return PointVmap(self.replica, self.family, self.terms, chunk)
        return CANDIDATES[name](self.replica, self.family, self.terms)

    def _candidates(self, rows: Array, limit: float) -> Iterator[tuple[str, Callable[[], SurfacePath | None]]]:
        """Paths worth a trial, by a label."""
        for name in CANDIDATES:
            yield name, lambda name=name: self.named(name, 1)  # type: ignore[misc]
        if self.forward < _SLOW:
            most = min(copies_within(self.replica, self.memory), len(rows), limit / (4 * self.forward))  # of four calls
            for size in (size for size in SIZES if size <= most):
                yield f"vmap of {size}", lambda size=size: self.named("vmap", size)  # type: ignore[misc]

    def _tried(self, label: str, path: SurfacePath | None, rows: Array) -> tuple[SurfacePath, float] | None:
        """A path and its seconds per point; ``None`` where the model is of another kind."""
        if path is None:
            return None
        self._check(label, path, rows)
        return path, self._seconds(path, rows)

    def _check(self, label: str, path: SurfacePath, rows: Array) -> None:
        """Raise a :class:`Refusal` unless the losses are the loop's."""
        few = rows[np.unique(np.linspace(0, len(rows) - 1, 3).round().astype(int))]
        found, expected = (total(self.replica.objective, each.at(few)) for each in (path, self.loop))
        if not same_losses(found, expected, self.replica.dtype):
            raise Refusal(f"{label} gives other losses")

    def _seconds(self, path: SurfacePath, rows: Array) -> float:
        """Seconds per point: the fastest of two or more calls, on the middle of the points."""
        count = min(len(rows), max(path.chunk, 1))
        middle = rows[(len(rows) - count) // 2 :][:count]
        fastest, _ = timed(lambda: total(self.replica.objective, path.at(middle)), most=8, more=lambda times: sum(times) < _TRIAL)
        return fastest / count
