"""Which path multiplies blocks of a size, chosen once for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fastscape._heap import give_back
from fastscape.curvature.choice import BLOCK, Candidate, NoPathError, ProductChoice, ProductTrial
from fastscape.curvature.compiled import CompiledPath
from fastscape.curvature.forward import ForwardPath, ReplayPath
from fastscape.curvature.ggn import GaussNewtonForward, GaussNewtonGraph, GaussNewtonReplay
from fastscape.curvature.gradient_difference import DifferencePath
from fastscape.curvature.paths import Matrix, PathName, ProductPath
from fastscape.curvature.program import Program
from fastscape.curvature.reverse import GraphPath, Graphs, ReversePath
from fastscape.curvature.workspace import Workspace

_SCARCE = 0.1  # of the memory for a computation: a vector above this is not made for a trial if one is there
_FUNCTIONAL = ("forward", "replay")  # paths that put parameters in place by name
_OVERFLOW = 1e36  # norm of a product with signs above which float32 may not hold products
_WORDS = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}


class Selection:
    """The paths of products, by vectors in a block (at most 8).

    Args:
        space: the loss, with arithmetic and memory.
        matrix: ``"hessian"`` or ``"ggn"``.
        path: a path by name, or ``None`` to try them.
        memory: bytes, if they were asked for.
        compile_: also try the graph compiled.

    Attributes:
        choices: what was chosen, by vectors in a block.
        chosen: the path, with what it keeps.
        thorough: blocks for which what takes long to set up has been tried.
        spent: seconds of products since the choice, by vectors in a block.
        products: vectors multiplied in trials.
        basis: arithmetic, and cuts of the batches, of choices that were made elsewhere.
    """

    def __init__(
        self, space: Workspace, matrix: Matrix, path: PathName | None, memory: int | None, *, compile_: bool = False
    ) -> None:
        self._space, self._matrix, self._path, self._memory, self._compile = space, matrix, path, memory, compile_
        self.choices: dict[int, ProductChoice] = {}
        self.chosen: dict[int, Candidate] = {}
        self.thorough: set[int] = set()
        self.spent: dict[int, float] = {}
        self.products = 0
        self.basis: tuple[torch.dtype, int] | None = None
        self._borne_out: set[str] = set()

    def prepare(self, count: int, rows: Tensor | None = None, *, thorough: bool = False) -> ProductChoice:
        """Choose the path for blocks of ``count`` vectors, once; ``thorough`` also tries what takes long to set up."""
        key = block_key(count)
        if key not in self.chosen or (thorough and key not in self.thorough):
            self._space.keeping = False  # as long as nobody knows what a path holds
            with self._space.arithmetic():
                self._choose(key, rows, thorough=thorough)
        return self.choices[key]

    def release(self) -> None:
        """Free what is kept of batches."""
        for candidate in self.chosen.values():
            candidate.built.clear()

    def obey(self, key: int, choice: ProductChoice, *, held: int, peak: int, step: float | None) -> None:
        """Multiply blocks as was chosen elsewhere, on another batch of the same function, without trying anything."""
        path = self._named(self._space.program)[choice.name]()
        if isinstance(path, DifferencePath):
            path.step, path.error = step, choice.error
        self.chosen[key] = Candidate(path, held=held, peak=peak)
        self.choices[key], self.spent[key] = choice, 0.0

    def _choose(self, key: int, rows: Tensor | None, *, thorough: bool) -> None:
        space, program = self._space, self._space.opened()
        self.release()
        if self._path in _FUNCTIONAL and not program.is_functional(space.largest):
            raise ValueError(
                f"method must not be {self._path!r} for this model, which accesses parameters outside named_parameters() (a "
                "list, a closure): they would count as constants; use method='graph' or None"
            )
        trial = self._tried(program, key, rows, thorough=thorough)
        if not trial.found:
            self._without(trial, key, rows, thorough=thorough)
            return
        if trial.size > _OVERFLOW:
            space.dtype = space.work
        space.note(trial.sound.note)
        self.chosen[key], self.spent[key] = trial.best(), 0.0
        if self._memory is not None:
            give_back()
        if thorough or self._path is not None:
            self.thorough.add(key)
        self.choices[key] = self._record(trial, key)

    def _tried(self, program: Program, key: int, rows: Tensor | None, *, thorough: bool) -> ProductTrial:
        space = self._space
        vector = program.layout.size * program.leaves[0].element_size()
        given = None
        if rows is not None and vector > _SCARCE * space.limit and math.isfinite(total := float(rows[:1].norm())) and total:
            given = program.layout.views(rows[:1].contiguous())
        limit = space.limit - (vector if given is None else 0)
        if space.cap.memory is not None:  # products that are returned, and what is added to them
            space.hold(key, 2 * vector)
            limit -= key * vector
        borne_out = self._borne_out if self._matrix == "hessian" else None
        trial = ProductTrial(program, space.largest, limit, space.effort, given, borne_out=borne_out)
        try:
            for make in self._makers(program, key, trial.found, thorough=thorough):
                trial.attempt(make, key)
            if trial.found:
                trial.settle(limit)
        finally:
            self.products += trial.products
        return trial

    def _without(self, trial: ProductTrial, key: int, rows: Tensor | None, *, thorough: bool) -> None:
        """Where nothing works: smaller batches where memory is short, and float64 where float32 does not do, or why not."""
        space = self._space
        if trial.over_cap and space.halve():
            self.chosen.clear()
            self._choose(key, rows, thorough=thorough)
        elif trial.rounded and space.work == torch.float32 and space.widened():
            for kept in (self.chosen, self.choices, self.thorough, self._borne_out):
                kept.clear()
            with space.arithmetic():
                self._choose(key, None if rows is None else rows.double(), thorough=thorough)
        else:
            raise trial.asymmetric or self._no_path(trial.trial.refused, over_cap=trial.over_cap)

    def _makers(
        self, program: Program, key: int, found: Sequence[Candidate], *, thorough: bool
    ) -> Iterator[Callable[[], ProductPath]]:
        """Paths to try, in order; ``found`` grows meanwhile."""
        if self._path is not None:
            yield self._named(program)[self._path]
            return
        named = self._named(program)
        yield named["graph"]
        if key > 1:
            yield named["graph, batched"]
        if not found or (key > 1 and thorough):  # its arithmetic is no less than the graph's, and its setup is paid every time
            yield named["forward"]
        if found and self._compile:
            yield lambda: CompiledPath(program, key)
        if thorough:
            yield named["replay"]
            if self._matrix == "hessian" and any(leaf.ndim == 4 for leaf in program.leaves):
                yield named["channels-last"]
        for last in ("reverse", "gradient difference"):  # slower than what keeps a graph, always
            if not found and last in named:
                yield named[last]

    def _named(self, program: Program) -> dict[str, Callable[[], ProductPath]]:
        if self._matrix == "ggn":
            return {
                "graph": lambda: GaussNewtonGraph(program, batched=False),
                "graph, batched": lambda: GaussNewtonGraph(program, batched=True),
                "forward": lambda: GaussNewtonForward(program),
                "replay": lambda: GaussNewtonReplay(program),
            }
        graphs: Graphs = WeakValueDictionary()
        return {
            "graph": lambda: GraphPath(program, batched=False, graphs=graphs),
            "graph, batched": lambda: GraphPath(program, batched=True, graphs=graphs),
            "forward": lambda: ForwardPath(program),
            "reverse": lambda: ReversePath(program),
            "replay": lambda: ReplayPath(program),
            "channels-last": lambda: GraphPath(
                Program(self._space.objective, self._space.work, channels_last=True), batched=False, name="channels-last"
            ),
            "gradient difference": lambda: DifferencePath(program),
        }

    def _record(self, trial: ProductTrial, key: int) -> ProductChoice:
        space, chosen = self._space, trial.best()
        seconds, refused = trial.trial.seconds, trial.trial.refused
        name, path = chosen.path.name, chosen.path
        chunk = min(trial.chunk(chosen), key)
        others = [f"{other} is {time / seconds[name]:.1f}x slower" for other, time in seconds.items() if other != name]
        others += [f"{other}: {why}" for other, why in refused.items()]
        program = space.program
        if len(program.weights) > len(space.objective.batches):
            others.append(f"batches are cut in {len(program.weights)} parts to fit in memory")
        inside = 0.0 if program.narrow is None else torch.finfo(program.narrow[0]).eps  # which derivatives pass over
        return ProductChoice(
            name=name,
            chunk=chunk,
            gradients=seconds[name] / space.gradient_seconds,
            gradient_seconds=space.gradient_seconds,
            seconds=seconds,
            peak=chosen.peak + (chunk - 1) * chosen.slope,
            refused=refused,
            error=max(getattr(path, "error", 0.0) or 0.0, inside),
            asymmetry=trial.sound.asymmetry,
            reason="asked for" if self._path is not None else "; ".join(others) or "the only one tried",
        )

    def _no_path(self, refused: dict[str, str], *, over_cap: bool) -> Exception:
        tried = "; ".join(f"{name}: {why}" for name, why in refused.items())
        if self._path is not None:
            remain = [name for name in self._named(self._space.opened()) if name != self._path]
            return ValueError(f"method must be one that runs this model, got {tried}; method=None tries {', '.join(remain)}")
        if over_cap and self._memory is not None:
            return NoPathError(
                f"memory must hold a computation of products, for which {self._space.enough()} bytes are enough, got "
                f"{self._memory}, of which a gradient takes {self._space.gradient_peak}: {tried}; raise memory=, or pass smaller "
                "batches"
            )
        advice = (
            "use fs.hessian"
            if self._matrix == "ggn"
            else "fs.quadratic_forms needs no backward pass, and float64 makes differences exact"
        )
        return NoPathError(f"no path multiplies with the {_WORDS[self._matrix]} of this model: {tried}; {advice}")


def block_key(count: int) -> int:
    """Blocks of as many vectors, or more, share a choice."""
    return min(max(count, 1), BLOCK)
