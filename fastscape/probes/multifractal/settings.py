"""Settings of a multifractal probe."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastscape._checks import amount, integer, one_of
from fastscape.directions.directions import Scale, checked_rank, law
from fastscape.directions.normalise import RULES, OneD, Rule, ZeroNorm
from fastscape.evaluation.losses import checked_radii
from fastscape.ops import Distribution
from fastscape.probes.multifractal.description import AnalysisSettings
from fastscape.probes.multifractal.trust import MIN_SCALES
from fastscape.response.precision import Precision, checked_precision

BankBatches = Literal["all", "rotate"]
MOST_SCALES = 10_000
DEFAULT_RELATIVE = (1e-5, 1e-1, 12)


@dataclass(frozen=True)
class ProbeSettings:
    r"""Directions, scales and arithmetic of a multifractal probe.

    Attributes:
        radii: at least four positive ascending scales in units of ``||d||``; ``None`` for 12 log-spaced from 1e-5 to 1e-1
            of ||w||.
        count: directions per bank (at least 2); ``None`` for 64, or, under a budget, as many as fit.
        banks: blocks of directions with seeds of their own: seed + stride (b + 1), modulo 2^64.
        seed, stride: of the generator.
        distribution, rank, normalize, scale, one_d, zero_norm: see :class:`fastscape.Directions`. Along directions of a rank the
            exponents are those of another law, comparable with themselves alone.
        precision: ``"difference"``, ``"float64"``, ``"float32"`` (see :func:`fastscape.responses`), or ``None`` for the cheapest
            that resolves the scales, measured on the first checkpoint. Which function each measures where the model or the loss
            enters an autocast, or casts: see :func:`fastscape.responses`; ``meta["arithmetic"]`` says it.
        bank_batches: ``"all"``: every bank evaluates all batches of the data, and the banks are pooled; ``"rotate"``: bank b
            evaluates batch b mod n alone, and only banks of one batch are pooled.
    """

    radii: tuple[float, ...] | None = None
    count: int | None = None
    banks: int = 4
    seed: int = 0
    stride: int = 100_000
    distribution: Distribution = "gaussian"
    normalize: Rule = "tensor"
    scale: Scale = "relative"
    one_d: OneD | None = None
    zero_norm: ZeroNorm = "skip"
    precision: Precision | None = None
    bank_batches: BankBatches = "all"
    rank: int | None = field(default=None, metadata={"later": True})

    def __post_init__(self) -> None:
        if self.radii is not None:
            checked = checked_radii(self.radii, minimum=MIN_SCALES)
            amount("len(radii)", len(checked), MIN_SCALES, MOST_SCALES)
            object.__setattr__(self, "radii", tuple(checked.tolist()))
        if self.count is not None:
            object.__setattr__(self, "count", amount("count", self.count, 2, 2**32))
        least_stride = 1 if integer("banks", self.banks, 1) > 1 else 0  # banks of one seed would be the same directions
        object.__setattr__(self, "banks", amount("banks", self.banks, 1))
        for name, least in (("seed", 0), ("stride", least_stride)):
            object.__setattr__(self, name, integer(name, getattr(self, name), least, 2**63))
        for name, value, allowed in (
            ("distribution", self.distribution, get_args(Distribution)),
            ("normalize", self.normalize, RULES),
            ("scale", self.scale, ("unit", "relative")),
            ("one_d", self.one_d, (None, *get_args(OneD))),
            ("zero_norm", self.zero_norm, get_args(ZeroNorm)),
            ("bank_batches", self.bank_batches, get_args(BankBatches)),
        ):
            one_of(name, value, allowed)
        checked_precision(self.precision)
        object.__setattr__(self, "rank", checked_rank(self.rank, self.normalize))

    def grid(self, weight_norm: float) -> NDArray[np.float64]:
        """The radii in units of ||d||, for weights of the given norm."""
        if self.radii is not None:
            return np.array(self.radii)
        low, high, count = DEFAULT_RELATIVE
        relative = np.logspace(math.log10(low), math.log10(high), count)
        usable = math.isfinite(weight_norm) and weight_norm > 0
        return relative * weight_norm if self.scale == "unit" and usable else relative

    @property
    def law(self) -> str:
        """What the directions are drawn from, in words."""
        return law(self.distribution, self.rank)

    def bank_seed(self, bank: int) -> int:
        """Seed of a bank."""
        return (self.seed + self.stride * (bank + 1)) % 2**64


def preset(name: str) -> tuple[ProbeSettings, AnalysisSettings]:
    """Settings of a published protocol, to pass as ``fs.multifractal(objective, *fs.preset(name))``.

    ``"torok2026"`` (Török & Bartha): unit directions, absolute radii logspace(-6.5, -1.9, 12), 8 banks of 128 directions,
    eight index windows, p floored at 1e-10 and the authors' anisotropy test reported. Use one fixed batch of 256.

    Raises:
        ValueError: unknown name.
    """
    one_of("preset", name, ("torok2026",))
    windows = ((5, 9), (6, 10), (7, 11), (8, 12), (5, 10), (6, 11), (7, 12), (5, 11))
    probe = ProbeSettings(radii=tuple(np.logspace(-6.5, -1.9, 12).tolist()), count=128, banks=8, scale="unit")
    return probe, AnalysisSettings(windows=windows, measure_floor=1e-10, authors_trust=True)
