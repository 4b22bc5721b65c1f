"""Products with a few vectors, seen through what tells one from another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscape._deadline import check_deadline
from fastscape._heap import fit
from fastscape.curvature.flat import norm
from fastscape.curvature.paths import Product
from fastscape.curvature.program import Parts, Program
from fastscape.evaluation.trial import timed
from fastscape.runs.peak import peak_bytes


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


class TrialProducts:
    """Products of one batch with the vectors of a trial: signs, and one that is given.

    No more than one vector is held, or none where one is given.

    Args:
        program: the loss.
        batch: whose matrix it is.
        count: vectors.
        given: the first of them, ``[1, *shape]`` by parameter, where memory for another is short.
        seed: of the others.

    Attributes:
        done: products so far.
    """

    def __init__(self, program: Program, batch: int, count: int, given: Parts | None, seed: int) -> None:
        self.program, self.batch, self.given, self._seed = program, batch, given, seed
        self.used = range(count)
        self.rms = (1.0 if given is None else norm(given) / math.sqrt(program.layout.size), 1.0, 1.0)
        self.done = 0
        self._peak = 0  # of the last products

    def vectors(self, which: Sequence[int]) -> Parts:
        """Some of the vectors, ``[len(which), *shape]`` by parameter."""
        if which == (0,) and self.given is not None:
            return self.given
        return [torch.cat(rows) for rows in zip(*(list(self._rows(index)) for index in which), strict=True)]

    def _rows(self, which: int) -> Iterator[Tensor]:
        """One of the vectors, parameter by parameter, ``[1, *shape]``: the one given, or signs."""
        if which == 0 and self.given is not None:
            yield from self.given
            return
        generator = torch.Generator().manual_seed(self._seed + which)
        leaf = self.program.leaves[0]
        for shape in self.program.layout.shapes:
            signs = torch.randint(0, 2, (1, *shape), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
            yield signs.to(leaf.device, leaf.dtype)

    def measured(self, product: Product, which: Sequence[int], limit: float = math.inf) -> tuple[list[Sketch], int, float]:
        """Sketches of products with some of the vectors, the most bytes alive meanwhile, and seconds per product."""
        check_deadline()
        fit()
        block = self.vectors(which)

        def multiplied() -> Parts:
            # what has been counted once, or compiles, is run without the counter: 30 us an operation
            found, self._peak = (product(block), self._peak) if limit == math.inf else peak_bytes(lambda: product(block), limit)
            synchronise(found[0])
            return found

        seconds, found = timed(multiplied, 1)
        self.done += len(which)
        sketches = [self._sketch([part[row] for part in found]) for row in range(len(which))]
        return sketches, self._peak, seconds / len(which)

    def again(self, product: Product, which: int) -> Sketch:
        """The sketch of one product."""
        return self.measured(product, (which,))[0][0]

    def _sketch(self, parts: Parts) -> Sketch:
        dots = (
            math.fsum(float((part * row[0]).sum(dtype=torch.float64)) for part, row in zip(parts, self._rows(which), strict=True))
            for which in self.used
        )
        return Sketch(norm(parts), tuple(dot / self.rms[which] for which, dot in enumerate(dots)))

    def gaussian(self) -> Parts:
        """A vector along which nothing is still by chance, as it is along signs where two of them cancel."""
        generator = torch.Generator().manual_seed(self._seed)
        leaf = self.program.leaves[0]
        return [torch.randn(1, *shape, generator=generator).to(leaf.device, leaf.dtype) for shape in self.program.layout.shapes]

    def skew(self, found: Sequence[Sketch], i: int, j: int) -> float:
        """|u'Hv - v'Hu| relative to the terms of the sums, whose signs are random, for vectors i and j scaled to signs."""
        scale = found[i].norm / self.rms[i] + found[j].norm / self.rms[j]
        return abs(found[i].dots[j] / self.rms[i] - found[j].dots[i] / self.rms[j]) / scale if scale else 0.0


def synchronise(tensor: Tensor) -> None:
    """Wait for a device that works asynchronously."""
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
