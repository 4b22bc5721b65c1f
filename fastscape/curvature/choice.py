"""Which way of multiplying is fastest on the user's model, under a memory cap; tried once, on a few vectors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from fastscape._checks import first_line
from fastscape._deadline import check_deadline
from fastscape._heap import fit, give_back
from fastscape.curvature.compiled import CompiledPath
from fastscape.curvature.gradient_difference import InaccurateDifferenceError
from fastscape.curvature.paths import Product, ProductPath
from fastscape.curvature.point import UnsoundProductError
from fastscape.curvature.program import Parts, Program
from fastscape.curvature.sketch import TrialProducts, synchronise
from fastscape.curvature.soundness import AsymmetricProductError, Soundness
from fastscape.evaluation.determinism import NondeterministicLossError
from fastscape.evaluation.trial import Trial, timed, told
from fastscape.runs.peak import MemoryCapError, peak_bytes

BLOCK = 8  # vectors of a batched computation: with more the cost per vector no longer falls
_SLOW = 2.0**24  # multiplications by a batch above which a trial takes few products: about 0.01 s for a gradient
_VERY_SLOW = 2.0**29  # and as few runs as it can
_HOPELESS = 2.0  # times the fastest: a path this much slower is not timed again
_ROUNDS = 8  # of timing quick candidates in turn: the least of them is a product undisturbed


class NoPathError(ValueError, RuntimeError):
    """No way to multiply works for a model."""


@dataclass(frozen=True)
class ProductChoice:
    """How products are computed, and why.

    Attributes:
        name: of the path.
        chunk: vectors a computation takes at a time.
        gradients: cost of one product in gradients, as measured in the trial.
        gradient_seconds: seconds of one gradient of the largest batch.
        seconds: seconds of a product with its curvature, by path that was timed.
        peak: bytes of tensors alive in one computation, vectors and results excluded.
        refused: paths that cannot be used, and why.
        error: estimated relative error of a product; 0 for exact paths (rounding apart).
        asymmetry: |u'Hv - v'Hu| relative to the terms of the sums, of random vectors; NaN where memory was too short for two.
        reason: in words.
    """

    name: str
    chunk: int
    gradients: float
    gradient_seconds: float
    seconds: dict[str, float]
    peak: int
    refused: dict[str, str]
    error: float
    asymmetry: float
    reason: str


@dataclass
class Candidate:
    """A path in a trial.

    Attributes:
        path: the way to multiply.
        built: products of batches that were built and are kept.
        held: bytes of what is kept for a batch.
        peak: bytes alive with one vector.
        slope: further bytes for each further vector of a block.
        rerun: times another product, where that is quick.
    """

    path: ProductPath
    built: dict[int, Product] = field(default_factory=dict)
    held: int = 0
    peak: int = 0
    slope: int = 0
    rerun: Callable[[], float] | None = None

    def free(self) -> None:
        """Keep nothing of batches."""
        self.built.clear()
        self.rerun = None


class ProductTrial:
    """Tries paths on the largest batch of a program.

    Args:
        program: the loss.
        batch: the largest batch.
        limit: bytes of tensors that a computation may hold.
        effort: multiplications by the batch: what is checked must not depend on a clock.
        given: a vector to try with, ``[1, *shape]`` by parameter, where memory for others is short; symmetry is not checked then.
        seed: of the vectors.
        borne_out: names of paths whose products were found to be those of the loss before; grows. ``None``: not to be compared.

    Attributes:
        found: candidates that work.
        trial: seconds per product of those, and the reasons of others.
        sound: the checks of their products.
        slow: whether overheads hardly count.
        asymmetric: the last failure of symmetry.
        over_cap: whether one needs more memory.
        rounded: whether one failed as rounding may make it, so that float64 may do better.
    """

    def __init__(
        self,
        program: Program,
        batch: int,
        limit: float,
        effort: float,
        given: Parts | None = None,
        seed: int = 0,
        borne_out: set[str] | None = None,
    ) -> None:
        self._program, self._batch, self._limit = program, batch, limit
        self.slow, self._very_slow = effort > _SLOW, effort > _VERY_SLOW
        self._products = TrialProducts(program, batch, 2 if self.slow else 3, given, seed)
        self.sound = Soundness(self._products, limit, borne_out, slow=self.slow)
        self.trial = Trial[Candidate](self._refused, NondeterministicLossError)
        self.found: list[Candidate] = []
        self.asymmetric: AsymmetricProductError | None = None
        self.over_cap = self.rounded = False
        self._blocks: dict[int, Parts] = {}  # to time, by size
        self._graph = 0  # bytes of the graph that both paths through it share

    @property
    def products(self) -> int:
        """Products that trying took."""
        return self._products.done

    @property
    def size(self) -> float:
        """Norm of the product of the first path that works; 0 before."""
        return 0.0 if self.sound.reference is None else self.sound.reference.norm

    def attempt(self, make: Callable[[], ProductPath], count: int) -> None:
        """Try a path for blocks of ``count`` vectors: ``found`` grows where it works, and ``refused`` says why where not.

        What others keep is freed where the path needs the memory.

        Raises:
            NondeterministicLossError: two products of the same vector differ.
        """
        blocks = sum(part.nbytes for block in self._blocks.values() for part in block)
        kept = sum(other.held for other in self.found if other.built) + blocks
        capped, self.over_cap = self.over_cap, False
        found = self._tried(make(), count, self._limit - kept)
        if found is None and self.over_cap and kept:
            self.over_cap = False
            self._blocks.clear()
            for other in self.found:
                other.free()
            found = self._tried(make(), count, self._limit)
        self.over_cap |= capped
        if found is not None:
            self.trial.refused.pop(found.path.name, None)
            self.found.append(found)
            if self.slow:  # what is not near the fastest goes at once
                self.keep_best(within=_HOPELESS)

    def _tried(self, path: ProductPath, count: int, limit: float) -> Candidate | None:
        found = self.trial.attempt(path.name, lambda: self._attempt(Candidate(path), count, limit))
        if found is None:
            give_back()
        return found

    def _refused(self, _name: str, error: Exception) -> str:
        """The reason in words; notes what may be done about it."""
        self.rounded |= isinstance(error, (AsymmetricProductError, UnsoundProductError))
        if isinstance(error, AsymmetricProductError):
            self.asymmetric = error.with_traceback(None)  # whose frames hold tensors
            return first_line(error).split(";")[0]
        if isinstance(error, MemoryCapError):
            self.over_cap = True
            return f"needs more than {self._limit / 2**20:.3g} MiB"
        if isinstance(error, (InaccurateDifferenceError, UnsoundProductError)):
            return str(error)
        return missing_derivative(error) or told(error, 200)

    def _attempt(self, candidate: Candidate, count: int, limit: float) -> Candidate:
        path, program, products = candidate.path, self._program, self._products
        size = 2 if path.batched and count > 1 else 1
        vector = program.layout.size * program.leaves[0].element_size()
        limit -= (2 * size - 2) * vector  # blocks of the trial, beside the vector that is counted
        if isinstance(path, CompiledPath):  # which a counter would keep from compiling; it holds what the graph does
            product, built = path.build(self._batch), self._graph
            product(products.vectors((0,)))  # compiles
        else:
            product, built = peak_bytes(lambda: path.build(self._batch), limit)
        if path.name.startswith("graph"):
            built = self._graph = max(built, self._graph)
        room = math.inf if isinstance(path, CompiledPath) else limit - built
        found, peak, seconds = products.measured(product, (0, 1)[:size], room)
        candidate.held, candidate.slope = built, peak // size + vector  # a block of them is copied for the trial
        candidate.peak = built + peak - (size - 1) * (peak // size)
        self.sound.check(path, product, found[0], None if size == 1 else found[1], limit - built)
        if not self._very_slow:  # elsewhere the counting of memory, 30 us an operation, does not show
            size = min(count, self.chunk(candidate)) if size > 1 and not self.slow else size
            rerun = candidate.rerun = self._timed(product, size)
            seconds = min(rerun() for _ in range(1 if self.slow else 2))
        if not self.slow or (path.held and not path.name.startswith("graph")):  # a trace may keep state
            self.sound.compare(path, products.again(product, 0))  # runs may leave state behind
        if path.held:
            candidate.built[self._batch] = product
        self.trial.seconds[path.name] = seconds
        return candidate

    def _timed(self, product: Product, size: int) -> Callable[[], float]:
        """Time a block of ``size`` products, in seconds per product."""
        if size not in self._blocks:
            self._blocks[size] = [
                part.repeat((-(-size // 2), *[1] * (part.ndim - 1)))[:size] for part in self._products.vectors((0, 1)[:size])
            ]
        block = self._blocks[size]

        def once() -> float:
            check_deadline()
            fit()
            seconds, _ = timed(lambda: synchronise(product(block)[0]), 1)
            self._products.done += size
            return seconds / size

        return once

    def chunk(self, candidate: Candidate) -> int:
        """Vectors a computation of a candidate takes at a time under the limit."""
        if not candidate.path.batched:
            return 1
        room = self._limit - candidate.peak - candidate.slope  # two blocks of vectors lie beside one another in a trial
        return max(1, min(BLOCK, 1 + int(room / candidate.slope) if candidate.slope else BLOCK))

    def settle(self, limit: float) -> None:
        """Time the quick candidates that are near the fastest again, in turn, so that a busy machine disturbs all alike.

        Kept graphs of all of them are alive meanwhile where they fit in ``limit`` bytes. Then the others free theirs.
        """
        seconds, fastest = self.trial.seconds, self.trial.seconds[self.best().path.name]
        near = [c for c in self.found if c.rerun is not None and seconds[c.path.name] < _HOPELESS * fastest]
        if len(near) > 1 and sum(c.held for c in near) + max(c.peak for c in near) < limit:
            for _ in range(1 if self.slow else _ROUNDS):
                for candidate in near:
                    assert candidate.rerun is not None
                    seconds[candidate.path.name] = min(seconds[candidate.path.name], candidate.rerun())
        for candidate in self.found:
            candidate.rerun = None
        self.keep_best()

    def best(self) -> Candidate:
        """The fastest."""
        name = self.trial.best("")
        return next(candidate for candidate in self.found if candidate.path.name == name)

    def keep_best(self, within: float = 0.0) -> None:
        """Free what candidates keep that are not the fastest, and take ``within`` times its seconds or more."""
        seconds, fastest = self.trial.seconds, self.best()
        for candidate in self.found:
            if candidate is not fastest and seconds[candidate.path.name] >= within * seconds[fastest.path.name]:
                candidate.free()


def missing_derivative(error: Exception) -> str | None:
    """Name of the operation that has no derivative of the order needed, in words; ``None`` for other errors."""
    words = str(error)
    found = re.search(r"derivative for (\S+) is not implemented", words) or re.search(
        r"Trying to use forward AD with (\S+) that does not support it", words
    )
    if found:
        return f"{found[1]} has no second derivative"
    if "once_differentiable" in words or "marked with @once_differentiable" in words:
        return "a custom function is marked @once_differentiable, so that it has no second derivative"
    if "setup_context" in words or ("autograd.Function" in words and "vmap" in words):
        return "a custom autograd.Function does not support torch.func"
    return None
