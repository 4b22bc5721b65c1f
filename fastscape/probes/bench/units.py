"""The units that a benchmark of probes times, each made ready with the numbers that show that it computes the right thing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastscape.evaluation.displacement import Displacement
from fastscape.probes.bench.curvature import form_units, product_units
from fastscape.probes.bench.responses import response_units
from fastscape.probes.bench.result import COPY, FORWARD, GRADIENT, PERTURB
from fastscape.probes.bench.setting import RADII, Ready, Setting, Unit


def bench_units(setting: Setting) -> Iterator[Unit]:
    """All units, in order."""
    yield Unit(FORWARD, "L(w) over all batches, without gradients", "", 2, setting.within(partial(_forward, setting)))
    yield Unit(GRADIENT, "gradient of L, its forward included", "", 8, setting.within(partial(_gradient, setting)))
    yield from response_units(setting)
    yield from form_units(setting)
    yield from product_units(setting)
    yield Unit(PERTURB, "w + r d written to a second copy, d drawn anew", "", 1, setting.within(partial(_perturb, setting)))
    yield Unit(COPY, "w written to a second copy: the least that moving it takes", "", 1, setting.within(partial(_copy, setting)))


def _forward(setting: Setting) -> Ready:
    return Ready(setting.replica.loss, setting.plain, loss=float(setting.replica.loss()), dtype=setting.dtype)


def _gradient(setting: Setting) -> Ready:
    return Ready(
        setting.replica.gradient,
        setting.plain,
        loss=setting.replica.loss_and_gradient()[0],
        dtype=setting.dtype,
    )


def _scratch(setting: Setting) -> tuple[list[Tensor], list[Tensor], int]:
    base = setting.replica.base
    scratch = [torch.empty_like(tensor) for tensor in base]
    return base, scratch, sum(tensor.nbytes for tensor in (*base, *scratch))


def _perturb(setting: Setting) -> Ready:
    base, scratch, moved = _scratch(setting)
    displacement = Displacement(base, scratch)
    radius = float(RADII[-1])

    def run() -> None:
        displacement.select(setting.fresh(), 0)
        displacement.write(radius)

    run()
    squares = (float((a.double() - b.double()).square().sum()) for a, b in zip(scratch, base, strict=True))
    length = radius * setting.directions.length(0)
    values = np.array([math.sqrt(math.fsum(squares)) / length if length else 1.0])
    return Ready(run, setting.plain, values=values, expected=np.ones(1), moved=moved, dtype=setting.dtype)


def _copy(setting: Setting) -> Ready:
    base, scratch, moved = _scratch(setting)

    def run() -> None:
        torch._foreach_copy_(scratch, base)

    return Ready(run, setting.plain, moved=moved, dtype=setting.dtype)
