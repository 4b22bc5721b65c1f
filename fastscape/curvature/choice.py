"""Which way of multiplying is fastest on the user's model, under a memory cap; tried once, on a few vectors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from fastscape._checks import first_line
from fastscape._clock import now
from fastscape.curvature.compiled import CompiledPath
from fastscape.curvature.flat import norm
from fastscape.curvature.gradient_difference import DifferencePath, InaccurateDifferenceError
from fastscape.curvature.paths import Product, ProductPath
from fastscape.curvature.peak import MemoryCapError, give_back, peak_bytes
from fastscape.curvature.point import DETACHED, LossCurvature, UnsoundProductError
from fastscape.curvature.program import Parts, Program
from fastscape.evaluation.determinism import NondeterministicLossError

BLOCK = 8  # vectors of a batched computation: with more the cost per vector no longer falls
SLOW = 0.01  # seconds per gradient above which overheads hardly count, and a trial takes few products
VERY_SLOW = 0.25  # and as few runs as it can
HOPELESS = 2.0  # times the fastest: a path this much slower is not timed again
_WRONG = 1e-2  # relative difference from a difference of gradients above which a custom backward is not trusted
ROUNDS = 8  # of timing quick candidates in turn: the least of them is a product undisturbed
CAP = 0.9  # of the memory cap for tensors: kernels have workspace of their own
_ASYMMETRY = {torch.float32: 1e-3, torch.float64: 1e-5}  # measured 1e-7 to 1e-5; 1e-16, or 1e-7 of float32 steps inside


class AsymmetricProductError(ValueError):
    """Products are not those of a symmetric matrix."""


class NoPathError(RuntimeError):
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
        seconds: measured per product.
        rerun: times another product, where that is quick.
    """

    path: ProductPath
    built: dict[int, Product] = field(default_factory=dict)
    held: int = 0
    peak: int = 0
    slope: int = 0
    seconds: float = math.inf
    rerun: Callable[[], float] | None = None


@dataclass(frozen=True)
class Sketch:
    """A product seen through its norm and its products with the trial's vectors: enough to tell it from another.

    The projections of a difference of two products on random signs are as large as the difference itself, in the mean.
    """

    norm: float
    dots: tuple[float, ...]

    def distance(self, other: Sketch) -> float:
        """Size of the difference of two products, relative to the larger; 0 where both are not numbers."""
        size = max(self.norm, other.norm)
        if not math.isfinite(size):
            return 0.0 if math.isnan(self.norm) == math.isnan(other.norm) else math.inf
        change = max(abs(a - b) for a, b in zip((self.norm, *self.dots), (other.norm, *other.dots), strict=True))
        return change / size if size else 0.0


class Trial:
    """Try paths on the largest batch of a program.

    Beside what a path computes, a trial holds one vector, or none where one is given.

    Args:
        program: the loss.
        batch: the largest batch.
        limit: bytes of tensors that a computation may hold.
        gradient_seconds: seconds of one gradient.
        given: a vector to try with, ``[1, *shape]`` by parameter, where memory for others is short; symmetry is not checked then.
        seed: of the vectors.
        borne_out: names of paths whose products were found to be those of the loss before; grows. ``None``: not to be compared.

    Attributes:
        refused: paths that failed, and why.
        rounded: whether one failed as rounding may make it, so that float64 may do better.
        note: what the losses near w say of products that they cannot judge.
    """

    def __init__(
        self,
        program: Program,
        batch: int,
        limit: float,
        gradient_seconds: float,
        given: Parts | None = None,
        seed: int = 0,
        borne_out: set[str] | None = None,
    ) -> None:
        self.program, self.batch, self.limit = program, batch, limit
        self.slow, self.very_slow = gradient_seconds > SLOW, gradient_seconds > VERY_SLOW
        self.refused: dict[str, str] = {}
        self.asymmetry = math.nan
        self.asymmetric: AsymmetricProductError | None = None
        self.rounded, self.note = False, ""
        self._borne_out = borne_out
        self.products = 0
        self._reference: Sketch | None = None
        self.over_cap = False
        self._blocks: dict[int, Parts] = {}  # to time, by size
        self._peak = 0  # of the last products
        self._graph = 0  # bytes of the graph that both paths through it share
        self._seed, self._given = seed, given
        size = program.layout.size
        self._used = range(2 if self.slow else 3)
        self._rms = (1.0 if given is None else norm(given) / math.sqrt(size), 1.0, 1.0)

    @property
    def size(self) -> float:
        """Norm of the product of the first path that works; 0 before."""
        return 0.0 if self._reference is None else self._reference.norm

    def attempt(self, make: Callable[[], ProductPath], count: int, others: Sequence[Candidate]) -> Candidate | None:
        """Try a path for blocks of ``count`` vectors; ``None`` where it fails, and ``refused`` says why.

        What others keep is freed where the path needs the memory.

        Raises:
            NondeterministicLossError: two products of the same vector differ.
        """
        blocks = sum(part.nbytes for block in self._blocks.values() for part in block)
        kept = sum(other.held for other in others if other.built) + blocks
        if kept:
            refused, capped, self.over_cap = dict(self.refused), self.over_cap, False
            found = self._tried(make(), count, self.limit - kept)
            if found is not None or not self.over_cap:
                self.over_cap |= capped
                return found
            self.refused, self.over_cap = refused, capped
            self._blocks.clear()
            for other in others:
                other.built.clear()
                other.rerun = None
        return self._tried(make(), count, self.limit)

    def _tried(self, path: ProductPath, count: int, limit: float) -> Candidate | None:
        try:
            return self._attempt(Candidate(path), count, limit)
        except NondeterministicLossError:
            raise
        except AsymmetricProductError as error:
            self.asymmetric = error.with_traceback(None)  # whose frames hold tensors
            self.refused[path.name] = first_line(error).split(";")[0]
            self.rounded = True
        except MemoryCapError:
            self.over_cap = True
            self.refused[path.name] = f"needs more than {self.limit / 2**20:.3g} MiB"
        except (InaccurateDifferenceError, UnsoundProductError) as error:
            self.refused[path.name] = str(error)
            self.rounded |= isinstance(error, UnsoundProductError)
        except Exception as error:  # whatever a model does on another path
            self.refused[path.name] = missing_derivative(error) or f"{type(error).__name__}: {first_line(error)[:200]}"
        give_back()
        return None

    def _attempt(self, candidate: Candidate, count: int, limit: float) -> Candidate | None:
        path, program = candidate.path, self.program
        size = 2 if path.batched and count > 1 else 1
        vector = program.layout.size * program.leaves[0].element_size()
        limit -= (2 * size - 2) * vector  # blocks of the trial, beside the vector that is counted
        if isinstance(path, CompiledPath):  # which a counter would keep from compiling; it holds what the graph does
            product, built = path.build(self.batch), self._graph
            product(self._vectors((0,)))  # compiles
        else:
            product, built = peak_bytes(lambda: path.build(self.batch), limit)
        if path.name.startswith("graph"):
            built = self._graph = max(built, self._graph)
        room = math.inf if isinstance(path, CompiledPath) else limit - built
        found, peak, candidate.seconds = self._measured(product, (0, 1)[:size], room)
        candidate.held, candidate.slope = built, peak // size + vector  # a block of them is copied for the trial
        candidate.peak = built + peak - (size - 1) * (peak // size)
        self._check_finite(found[0])
        if self._reference is None:
            if not path.exact:  # first: of what is asymmetric it may name the cause
                self._compare_with_losses(path, product, limit - built)
            self._check(path, product, found[0], None if size == 1 else found[1])
            if path.exact:
                self._compare_with_losses(path, product, limit - built)
            self._reference = found[0]
        elif not self._agrees(path, found[0]):
            return None
        if not self.very_slow:  # elsewhere the counting of memory, 30 us an operation, does not show
            size = min(count, self.chunk(candidate)) if size > 1 and not self.slow else size
            rerun = candidate.rerun = self._timed(product, size)
            candidate.seconds = min(rerun() for _ in range(1 if self.slow else 2))
        again = not self.slow or (path.held and not path.name.startswith("graph"))  # a trace may keep state
        if again and not self._agrees(path, self._measured(product, (0,), math.inf)[0][0]):
            return None  # runs left state behind
        if path.held:
            candidate.built[self.batch] = product
        return candidate

    def _vectors(self, which: Sequence[int]) -> Parts:
        """Some of the vectors, ``[len(which), *shape]`` by parameter."""
        if which == (0,) and self._given is not None:
            return self._given
        return [torch.cat(rows) for rows in zip(*(list(self._rows(index)) for index in which), strict=True)]

    def _rows(self, which: int) -> Iterator[Tensor]:
        """One of the vectors, parameter by parameter, ``[1, *shape]``: the one given, or signs."""
        if which == 0 and self._given is not None:
            yield from self._given
            return
        generator = torch.Generator().manual_seed(self._seed + which)
        leaf = self.program.leaves[0]
        for shape in self.program.layout.shapes:
            signs = torch.randint(0, 2, (1, *shape), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
            yield signs.to(leaf.device, leaf.dtype)

    def _measured(self, product: Product, which: Sequence[int], limit: float) -> tuple[list[Sketch], int, float]:
        """Sketches of products with some of the vectors, the most bytes alive meanwhile, and seconds per product."""
        block = self._vectors(which)
        start = now()
        # what has been counted once, or compiles, is run without the counter: 30 us an operation
        found, peak = (product(block), self._peak) if limit == math.inf else peak_bytes(lambda: product(block), limit)
        self._peak = peak
        synchronise(found[0])
        seconds = (now() - start) / len(which)
        self.products += len(which)
        return [self._sketch([part[row] for part in found]) for row in range(len(which))], peak, seconds

    def _timed(self, product: Product, size: int) -> Callable[[], float]:
        """Time a block of ``size`` products, in seconds per product."""
        if size not in self._blocks:
            self._blocks[size] = [
                part.repeat((-(-size // 2), *[1] * (part.ndim - 1)))[:size] for part in self._vectors((0, 1)[:size])
            ]
        block = self._blocks[size]

        def timed() -> float:
            start = now()
            synchronise(product(block)[0])
            self.products += size
            return (now() - start) / size

        return timed

    def _sketch(self, parts: Parts) -> Sketch:
        dots = (
            math.fsum(float((part * row[0]).sum(dtype=torch.float64)) for part, row in zip(parts, self._rows(which), strict=True))
            for which in self._used
        )
        return Sketch(norm(parts), tuple(dot / self._rms[which] for which, dot in enumerate(dots)))

    def _agrees(self, path: ProductPath, found: Sketch) -> bool:
        """Whether a product is that of the first path."""
        assert self._reference is not None
        tolerance = {torch.float32: 3e-3, torch.float64: 1e-5}[self.program.leaves[0].dtype]
        if isinstance(path, DifferencePath):
            tolerance = max(10 * (path.error or 0.0), tolerance)
        distance = found.distance(self._reference)
        if distance > tolerance:
            self.refused[path.name] = (
                f"its products differ from those before by {distance:.1g}: the model reaches its parameters by more than their "
                "registered names, or writes into what it keeps"
            )
        return distance <= tolerance

    def _check(self, path: ProductPath, product: Product, first: Sketch, second: Sketch | None) -> None:
        """Repeat the first product where that is quick, compare u'Hv with v'Hu, and custom backwards with differences."""
        if second is None and self._given is None:
            second = self._measured(product, (1,), math.inf)[0][0]
        if not self.slow or path.name == "replay":
            change = self._measured(product, (0,), math.inf)[0][0].distance(first)
            if change > (1e-4 if path.exact else 1e-3):
                raise NondeterministicLossError(
                    f"products must be deterministic, got two products of a vector that differ by {change:.1g}: the loss is "
                    "the same twice, its gradient is not (an operation without a deterministic backward, or a hook that keeps "
                    "state: try torch.use_deterministic_algorithms(True); in a replay, an operation in place: use path=None)"
                )
        if second is not None:  # else there is no memory for a second vector
            self._check_symmetry(path, product, first, second)
        if path.exact and self.program.differentiates_by_hand(self.batch):
            self._compare_with_differences(first)

    def _check_finite(self, found: Sketch) -> None:
        """Refuse NaN and inf in a product where the gradient has none.

        Raises:
            UnsoundProductError: as it says.
        """
        if math.isfinite(found.norm) or (self._reference is not None and not math.isfinite(self._reference.norm)):
            return
        if math.isfinite(norm(self.program.gradient(self.batch))):
            raise UnsoundProductError(
                "its products hold NaN or inf where the gradient has none: an operation has no finite second derivative at these "
                "weights as torch computes it (a norm or a root at zero), or it overflows"
            )

    def _compare_with_losses(self, path: ProductPath, product: Product, limit: float) -> None:
        """Compare v'Hv with second differences of the loss, once for a path.

        Raises:
            UnsoundProductError: they differ, or a product that is zero is not borne out.
        """
        if self._borne_out is None or path.name in self._borne_out:
            return
        vector = self._vectors((0,)) if self._given is not None else self._gaussian()
        found = product(vector)
        self.products += 1
        words, agrees = self._judged(vector, found, getattr(path, "error", 0.0) or 0.0, limit)
        nothing = not any(bool(part.any()) for part in found)
        if words == DETACHED and not path.exact:  # what differences of it make is not symmetric
            raise UnsoundProductError(
                f"differences of gradients do not give a Hessian here: {words}; quadratic_forms and responses use the loss itself"
            )
        if agrees is False or (nothing and agrees is None and (words or not path.exact)):
            raise UnsoundProductError(words or "its products are zero, and no losses near w bear that out")
        self.note = self.note or words
        self._borne_out.add(path.name)

    def _gaussian(self) -> Parts:
        """A vector along which nothing is still by chance, as it is along signs where two of them cancel."""
        generator = torch.Generator().manual_seed(self._seed)
        leaf = self.program.leaves[0]
        return [torch.randn(1, *shape, generator=generator).to(leaf.device, leaf.dtype) for shape in self.program.layout.shapes]

    def _judged(self, vector: Parts, found: Parts, error: float, limit: float) -> tuple[str, bool | None]:
        first = [[part[0] for part in parts] for parts in (vector, found)]

        def judge() -> tuple[str, bool | None]:
            return LossCurvature(self.program, self.batch).contradiction(first[0], first[1], error)

        try:
            return peak_bytes(judge, limit)[0]
        except Exception:  # no memory, no float64, a kink without a rule: nothing to compare with
            return "", None

    def _check_symmetry(self, path: ProductPath, product: Product, first: Sketch, second: Sketch) -> None:
        """Compare u'Hv with v'Hu.

        Raises:
            AsymmetricProductError: they differ.
        """
        found = [first, second, *(self._measured(product, (which,), math.inf)[0][0] for which in self._used[2:])]
        self.asymmetry = max(self._skew(found, i, j) for i, j in combinations(self._used, 2))
        if self.asymmetry > (_ASYMMETRY[self.program.leaves[0].dtype] if path.exact else 0.3):
            raise AsymmetricProductError(
                f"products must be those of a symmetric matrix, got u'Hv and v'Hu that differ by {self.asymmetry:.1g} of their "
                f"terms on the path {path.name!r}; is a custom backward of the model wrong, or marked @once_differentiable, "
                "which torch takes for a constant? Its double backward must differentiate what its backward computes "
                f"(check it with torch.autograd.gradgradcheck){self._inside()}"
            )

    def _inside(self) -> str:
        narrow = self.program.narrow
        return "" if narrow is None else f"; or the rounding to {str(narrow[0])[6:]} inside the model ({narrow[1]})"

    def _compare_with_differences(self, first: Sketch) -> None:
        """Compare a product through a custom backward with a difference of gradients, which only needs those.

        Raises:
            AsymmetricProductError: they differ.
        """
        path = DifferencePath(self.program)
        try:
            distance = self._measured(path.build(self.batch), (0,), self.limit)[0][0].distance(first)
        except (InaccurateDifferenceError, MemoryCapError):
            return
        if distance > max(_WRONG, 10 * (path.error or 0.0)):
            raise AsymmetricProductError(
                f"products through a custom backward must be those of the Hessian, got one that differs by {distance:.1g} from a "
                "difference of gradients: the backward keeps a part of its input as a constant; "
                "torch.autograd.gradgradcheck shows where"
            )

    def _skew(self, found: Sequence[Sketch], i: int, j: int) -> float:
        """|u'Hv - v'Hu| relative to the terms of the sums, whose signs are random, for vectors i and j scaled to signs."""
        scale = found[i].norm / self._rms[i] + found[j].norm / self._rms[j]
        return abs(found[i].dots[j] / self._rms[i] - found[j].dots[i] / self._rms[j]) / scale if scale else 0.0

    def chunk(self, candidate: Candidate) -> int:
        """Vectors a computation of a candidate takes at a time under the limit."""
        if not candidate.path.batched:
            return 1
        room = self.limit - candidate.peak - candidate.slope  # two blocks of vectors lie beside one another in a trial
        return max(1, min(BLOCK, 1 + int(room / candidate.slope) if candidate.slope else BLOCK))


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


def synchronise(tensor: Tensor) -> None:
    """Wait for a device that works asynchronously."""
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)


def settle(candidates: Sequence[Candidate], limit: float, rounds: int) -> None:
    """Time the quick candidates that are near the fastest again, in turn, so that a busy machine disturbs all alike.

    Args:
        candidates: that work; kept graphs of all of them are alive meanwhile where they fit in ``limit`` bytes.
        limit: bytes.
        rounds: how often each is timed.
    """
    fastest = best(candidates)
    near = [c for c in candidates if c.rerun is not None and c.seconds < HOPELESS * fastest.seconds]
    if len(near) > 1 and sum(c.held for c in near) + max(c.peak for c in near) < limit:
        for _ in range(rounds):
            for candidate in near:
                assert candidate.rerun is not None
                candidate.seconds = min(candidate.seconds, candidate.rerun())
    for candidate in candidates:
        candidate.rerun = None


def best(candidates: Sequence[Candidate]) -> Candidate:
    """The fastest."""
    return min(candidates, key=lambda candidate: candidate.seconds)
