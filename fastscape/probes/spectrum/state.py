"""Targets and state of a spectral run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fastscape.curvature.choice import ProductChoice
from fastscape.numerics.arrays import Array


class Curvature(Protocol):
    """Interface that is needed of a curvature operator."""

    @property
    def shape(self) -> tuple[int, int]:
        """(D, D)."""
        ...

    @property
    def layers(self) -> dict[str, slice]:
        """Range of each parameter in the flat vector."""
        ...

    @property
    def batch_weights(self) -> tuple[float, ...]:
        """Weight of each batch."""
        ...

    @property
    def choice(self) -> ProductChoice | None:
        """Path of the last products, with the reason."""
        ...

    @property
    def products(self) -> int:
        """Vectors multiplied so far, trials included."""
        ...

    @property
    def nan_products(self) -> int:
        """Of them, those with NaN or inf."""
        ...

    dtype: torch.dtype
    device: torch.device

    def matmat(self, block: Tensor, /) -> Tensor:
        """H V for V ``[D, K]``."""
        ...

    def forms(self, block: Tensor, /) -> tuple[Tensor, Array]:
        """H V, and v'H_b v of every batch ``[B, K]``."""
        ...


@dataclass(frozen=True)
class Goals:
    """Targets of a run: relative residual of the largest eigenvalues, relative half-width of the trace's interval, nodes."""

    eigenvalues: float
    trace: float | None
    nodes: int
    products: int


@dataclass
class Sums:
    """Sums over an orthonormal basis that the trace of each layer and of each batch needs: exact parts."""

    layers: Array  # [L]
    batches: Array  # [B]
    dimension: int = 0  # vectors summed; not those of the basis after a restart or an interrupt, and then the sums are of no use


@dataclass
class Started:
    """Forms of the vectors that the first block started from: the probes', and g'Hg / g'g."""

    forms: Array  # [p]
    squares: Array  # [p]
    layers: Array  # [L, p]
    along_gradient: float


@dataclass
class Fresh:
    """Probes of the complement: their forms by kind, grown block by block."""

    forms: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    layers: list[Array] = field(default_factory=list)  # [L] each
    batches: list[Array] = field(default_factory=list)  # [B] each

    def __len__(self) -> int:
        return len(self.forms)

    def restart(self) -> None:
        """Forget what belonged to a smaller basis; whole probes remain."""
        for part in (self.forms, self.squares, self.layers, self.batches):
            part.clear()
