"""Which way of multiplying is fastest on the user's model, under a memory cap; tried once, on a few vectors."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastscape._checks import first_line
from fastscape.evaluation.curvature.flat import norm
from fastscape.evaluation.curvature.gradient_difference import DifferencePath, InaccurateDifferenceError
from fastscape.evaluation.curvature.paths import Product, ProductPath
from fastscape.evaluation.curvature.peak import MemoryCapError, peak_bytes
from fastscape.evaluation.curvature.program import Parts, Program
from fastscape.evaluation.determinism import NondeterministicLossError

BLOCK = 8  # vectors of a batched computation: with more the cost per vector no longer falls
_SLOW = 0.05  # seconds per gradient above which overheads no longer count, and a trial takes as few products as it can
_HOPELESS = 1.7  # times the best: a path this much slower on one run is not timed again
_CAP = 0.75  # of the memory cap for tensors: kernels have workspace of their own
_ASYMMETRY = {torch.float32: 1e-3, torch.float64: 1e-8}  # measured 1e-7 to 1e-5, and 1e-16


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
        asymmetry: |u'Hv - v'Hu| relative to the terms of the sums, of two random vectors.
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
    """

    path: ProductPath
    built: dict[int, Product] = field(default_factory=dict)
    held: int = 0
    peak: int = 0
    slope: int = 0
    seconds: float = math.inf


class Trial:
    """Try paths on the largest batch of a program.

    Args:
        program: the loss.
        batch: the largest batch.
        limit: bytes of tensors that a computation may hold.
        gradient_seconds: seconds of one gradient.
        seed: of the vectors.
    """

    def __init__(self, program: Program, batch: int, limit: float, gradient_seconds: float, seed: int = 0) -> None:
        self.program, self.batch, self.limit = program, batch, limit
        self.gradient_seconds = gradient_seconds
        self.refused: dict[str, str] = {}
        self.asymmetry = math.nan
        self.asymmetric: AsymmetricProductError | None = None
        self.products = 0
        self._reference: Parts | None = None
        generator = torch.Generator().manual_seed(seed)
        leaf = program.leaves[0]
        self._pair = [
            (torch.randint(0, 2, (2, *shape), generator=generator) * 2 - 1).to(leaf.device, leaf.dtype)
            for shape in program.layout.shapes
        ]

    def attempt(self, path: ProductPath, count: int) -> Candidate | None:
        """Try a path for blocks of ``count`` vectors; ``None`` where it fails, and ``refused`` says why.

        Raises:
            NondeterministicLossError: two products of the same vector differ.
        """
        candidate = Candidate(path)
        try:
            return self._attempt(candidate, count)
        except NondeterministicLossError:
            raise
        except AsymmetricProductError as error:
            self.asymmetric = error
            self.refused[path.name] = first_line(error).split(";")[0]
        except (MemoryCapError, InaccurateDifferenceError) as error:
            self.refused[path.name] = str(error)
        except Exception as error:  # whatever a model does on another path
            self.refused[path.name] = missing_derivative(error) or f"{type(error).__name__}: {first_line(error)[:200]}"
        return None

    def _attempt(self, candidate: Candidate, count: int) -> Candidate | None:
        path, one = candidate.path, [part[:1] for part in self._pair]
        product, built = peak_bytes(lambda: path.build(self.batch), self.limit)
        start = time.perf_counter()
        first, peak = peak_bytes(lambda: product(one), self.limit - built)
        candidate.seconds = time.perf_counter() - start
        candidate.held, candidate.peak = built, built + peak
        self.products += 1
        if not self._agrees(path, first):
            return None
        if self._reference is None:
            self._check(path, product, first)
        if path.batched and count > 1:
            both, twice = peak_bytes(lambda: product(self._pair), self.limit - built)
            self.products += 2
            candidate.slope = max(twice - peak, 0)
            del both
        del first
        last = self._time(candidate, product, count)
        if last is not None and not self._agrees(path, [part[:1] for part in last]):  # state that the first run left behind
            return None
        if path.held:
            candidate.built[self.batch] = product
        return candidate

    def _agrees(self, path: ProductPath, found: Parts) -> bool:
        """Whether a product is the reference's; the first is taken as it is."""
        if self._reference is None:
            return True
        tolerance = {torch.float32: 3e-3, torch.float64: 1e-7}[found[0].dtype]
        if isinstance(path, DifferencePath):
            tolerance = max(10 * (path.error or 0.0), tolerance)
        difference = norm([f - r for f, r in zip(found, self._reference, strict=True)])
        size = norm(self._reference)
        if difference <= tolerance * size or not math.isfinite(size):
            return True
        self.refused[path.name] = (
            f"its products differ from those before by {difference / size if size else math.inf:.1g}: the model reaches its "
            "parameters by more than their registered names"
        )
        return False

    def _check(self, path: ProductPath, product: Product, first: Parts) -> None:
        """Repeat the first product, and compare u'Hv with v'Hu."""
        u, v = ([part[index : index + 1] for part in self._pair] for index in (0, 1))
        again, other = product(u), product(v)
        self.products += 2
        change, size = norm([a - f for a, f in zip(again, first, strict=True)]), norm(first)
        exact = 0.0 if path.exact else 1e-3
        if change > max(1e-4, exact) * size:
            raise NondeterministicLossError(
                f"products must be deterministic, got two of the same vector that differ by {change / size:.1g}: the loss is the "
                "same twice, its gradient is not (an operation without a deterministic backward, or a hook that keeps state); "
                "try torch.use_deterministic_algorithms(True)"
            )
        self.asymmetry = asymmetry(u, v, first, other)
        if self.asymmetry > (_ASYMMETRY[first[0].dtype] if path.exact else 0.3):
            raise AsymmetricProductError(
                f"products must be those of a symmetric matrix, got u'Hv and v'Hu that differ by {self.asymmetry:.1g} of their "
                f"terms on the path {path.name!r}; is a custom backward of the model wrong, or marked @once_differentiable, which torch "
                "takes for a constant? Its double backward must differentiate what its backward computes "
                "(torch.autograd.gradgradcheck tells)"
            )
        self._reference = first

    def _time(self, candidate: Candidate, product: Product, count: int) -> Parts | None:
        """Time a product: one run where it is slow (the first counts), else the fastest of three; returns the last products."""
        batched = candidate.path.batched and count > 1
        slow = self.gradient_seconds > _SLOW
        size = (2 if slow else min(count, self.chunk(candidate))) if batched else 1
        if slow and not batched:
            return None
        block = [part.repeat((-(-size // 2), *[1] * (part.ndim - 1)))[:size] for part in self._pair]
        times = []
        for _ in range(1 if slow else 3):
            start = time.perf_counter()
            last = product(block)
            synchronise(block[0])
            times.append(time.perf_counter() - start)
            self.products += size
        candidate.seconds = min(times) / size
        return last

    def chunk(self, candidate: Candidate) -> int:
        """Vectors a computation of a candidate takes at a time under the limit."""
        if not candidate.path.batched:
            return 1
        room = self.limit - candidate.peak
        return max(1, min(BLOCK, 1 + int(room / candidate.slope) if candidate.slope else BLOCK))


def asymmetry(u: Parts, v: Parts, hu: Parts, hv: Parts) -> float:
    """|u'Hv - v'Hu| relative to the root of the sum of squares of the terms of both."""
    left = [(a.double() * b.double()).flatten() for a, b in zip(u, hv, strict=True)]
    right = [(a.double() * b.double()).flatten() for a, b in zip(v, hu, strict=True)]
    difference = sum(float(part.sum()) for part in left) - sum(float(part.sum()) for part in right)
    scale = norm(left) + norm(right)
    return abs(difference) / scale if scale else 0.0


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


def best(candidates: Sequence[Candidate]) -> Candidate:
    """The fastest."""
    return min(candidates, key=lambda candidate: candidate.seconds)
