"""How products are made where that was chosen elsewhere: by another process, or by the run that began a journal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastscape.curvature.choice import ProductChoice
from fastscape.curvature.selection import Selection
from fastscape.curvature.workspace import Workspace


@dataclass(frozen=True)
class Plan:
    """How blocks of a size are multiplied, for others to obey.

    Attributes:
        choice: path and vectors at a time.
        step: relative step of differences of gradients; ``None`` for other paths.
        held, peak: bytes that a batch keeps, and that are alive in a product.
        cuts: how often batches are cut in two.
        work, dtype: of the computation, of its products.
        gradient_seconds: of the largest batch.
        threads: of torch.
        thorough: whether what takes long to set up has been tried.
        notes: on the products.
    """

    choice: ProductChoice
    step: float | None
    held: int
    peak: int
    cuts: int
    work: torch.dtype
    dtype: torch.dtype
    gradient_seconds: float
    threads: int
    thorough: bool
    notes: tuple[str, ...]

    @classmethod
    def made(cls, space: Workspace, selection: Selection, key: int) -> Plan:
        """What has been chosen for blocks of ``key`` vectors."""
        chosen = selection.chosen[key]
        return cls(
            choice=selection.choices[key],
            step=getattr(chosen.path, "step", None),
            held=chosen.held,
            peak=chosen.peak,
            cuts=space.program.cuts,
            work=space.work,
            dtype=space.dtype,
            gradient_seconds=space.gradient_seconds,
            threads=torch.get_num_threads(),
            thorough=key in selection.thorough,
            notes=space.notes,
        )

    def obeyed(self, space: Workspace, selection: Selection, key: int) -> None:
        """Multiply blocks of ``key`` vectors by it from now on, without trying anything.

        Raises:
            ValueError: the model does not run in its arithmetic.
        """
        if self.work != space.work and not space.widened():
            raise ValueError(f"the model must run in {self.work}, which was chosen for products, got one that does not")
        while space.program.cuts < self.cuts and space.halve():
            pass
        if selection.basis != (self.work, self.cuts):  # earlier choices are void
            selection.basis = self.work, self.cuts
            for kept in (selection.chosen, selection.choices, selection.thorough):
                kept.clear()
        if self.thorough:
            selection.thorough.add(key)
        space.dtype, space.notes = self.dtype, self.notes
        space.gradient_peak = max(space.gradient_peak, self.peak)
        selection.obey(key, self.choice, held=self.held, peak=self.peak, step=self.step)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data; :meth:`of` reads it."""
        return dataclasses.asdict(self) | {"work": str(self.work)[6:], "dtype": str(self.dtype)[6:]}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Plan:
        """What :meth:`to_dict` gave."""
        words = {"choice": ProductChoice(**data["choice"]), "notes": tuple(data["notes"])}
        return cls(**{**data, **words, **{name: getattr(torch, data[name]) for name in ("work", "dtype")}})
