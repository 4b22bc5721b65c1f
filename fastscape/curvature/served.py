"""Products of a curvature matrix whose batches are dealt to several processes: rank 0 commands, all multiply.

The path is chosen on rank 0, on the largest batch, and obeyed by the others, and products are summed exactly
(:mod:`fastscape.curvature.exact_sum`), so that they have the same bits by any number of processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscape._heap import give_back
from fastscape.curvature.choice import Candidate, NoPathError, ProductChoice
from fastscape.curvature.exact_sum import disjoint, largest, limbs_for, summed
from fastscape.curvature.paths import Matrix, PathName
from fastscape.curvature.plan import Plan
from fastscape.curvature.products import Products, Take, forms_of
from fastscape.curvature.program import Parts
from fastscape.curvature.selection import Selection, block_key
from fastscape.evaluation.group import Group, uninterrupted
from fastscape.evaluation.points import Array
from fastscape.objective.objective import Objective

_STOP, _PREPARE, _MULTIPLY, _RELEASE = range(4)  # commands of rank 0
_STORED = 1 << 28  # bytes of products, one of each batch, that a process holds before they are summed; at least of one vector
_REASON = "the same on any number of processes; method= names another"
_SHORT = ("not enough memory", "can't allocate memory", "out of memory")


def dealt(costs: Sequence[float], ranks: int) -> list[int]:
    """Rank of each piece of work: the largest first, each to the rank that has least (longest processing time first)."""
    load, owners = [0.0] * ranks, [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        owners[piece] = min(range(ranks), key=lambda rank: (load[rank], rank))
        load[owners[piece]] += costs[piece]
    return owners


class ServedProducts(Products):
    """Products over the batches of all processes of a group: all call a method, or rank 0 does while the others :meth:`serve`.

    Args:
        objective: the loss, the same on all ranks.
        matrix, memory: see :class:`Products`; bytes of each process.
        path: a path by name; ``None`` for ``"graph"``, and for the one that rank 0 finds fastest where that does not run.
        ranks: the processes.

    Attributes:
        mine: batches of this process; it holds one where it has none.
        short: how often a process ran out of memory and went on with fewer vectors at a time, the most of any.
        machines: host and processor of every rank.
    """

    impatient = False

    def __init__(self, objective: Objective, matrix: Matrix, path: PathName | None, memory: int | None, ranks: Group) -> None:
        self.ranks, self.whole, self._settings = ranks, objective, (matrix, memory)
        self.owners = dealt([objective.count(batch) for batch in objective.batches], ranks.size)
        self.mine = [batch for batch, owner in enumerate(self.owners) if owner == ranks.rank]
        super().__init__(objective.on(*(self.mine or [0])), matrix, path or "graph", memory)
        self._free = path is None
        self._weights = [objective.batch_weights[batch] / objective.samples for batch in self.mine]
        self._earlier = self.short = 0
        self._threads = torch.get_num_threads()
        self._shrunk = 1  # what vectors at a time are divided by
        self._held: list[Tensor] = []  # products of one call, whose memory the next one takes
        self.machines: list[str] = []

    @property
    def products(self) -> int:
        """Vectors multiplied so far, and tried by this process."""
        return super().products + self._earlier

    @property
    def workers(self) -> dict[str, Any]:
        """Who multiplied, for the record of a result."""
        shares = [[batch for batch, owner in enumerate(self.owners) if owner == rank] for rank in range(self.ranks.size)]
        return {
            "engine": self.ranks.engine,
            "size": self.ranks.size,
            "batches": shares,
            "machines": self.machines,
            "out_of_memory": self.short,
        }

    # ------------------------------------------------------------------ commands

    def _command(self, *words: int) -> None:
        """Tell the others what comes next, where they were not called for something else."""
        if self.ranks.common(words) is None:
            raise ValueError(
                "ranks must make the same calls of an operator, got another call or number of vectors on some; work with it on "
                "rank 0 alone: with fs.serve(objective) as H"
            )

    def serve(self) -> None:
        """Do what rank 0 commands until it stops; what fails is raised there."""
        while True:
            said = self.ranks.common((None,) * 4)
            if said is None or said[0] == _STOP:
                return
            try:
                self._follow(*said)
            except Exception:  # rank 0 raises it as well, and decides what follows; a lost peer ends the next command
                continue

    def stop(self) -> None:
        """End what the others serve; called by rank 0 alone."""
        self.ranks.common((_STOP, 0, 0, 0))

    def _follow(self, kind: int, count: int, first: int, second: int) -> None:
        if kind == _PREPARE:
            self._settle(count, None, thorough=bool(first))
        elif kind == _MULTIPLY:
            vectors = torch.empty(count, self.space.program.layout.size, dtype=self.space.dtype, device=self.whole.device)
            self._together(vectors, keep=bool(first), with_forms=bool(second))
        elif kind == _RELEASE:
            self._forget()

    # ------------------------------------------------------------------ the path

    def prepare(self, count: int, rows: Tensor | None = None, *, thorough: bool = False) -> ProductChoice:
        """See :meth:`Selection.prepare`; chosen on rank 0."""
        key, selection = block_key(count), self.selection
        if key not in selection.chosen or (thorough and key not in selection.thorough):
            with uninterrupted():
                self._command(_PREPARE, count, int(thorough), 0)
                self._settle(count, rows, thorough=thorough)
        return self.selection.choices[key]

    def obey(self, key: int, plan: Plan) -> None:
        """See :meth:`Products.obey`; on all ranks."""
        with uninterrupted():
            self._command(_PREPARE, key, int(plan.thorough), 0)
            self._settle(key, None, thorough=plan.thorough, given=plan)

    def _settle(self, count: int, rows: Tensor | None, *, thorough: bool, given: Plan | None = None) -> None:
        plan: Plan = self.ranks.led(lambda: given or self._plan(count, rows, thorough=thorough))
        self.ranks.agreed(lambda: self._obey(block_key(count), plan, given=given is not None))
        self.machines = self.machines or self.ranks.machines()

    def _plan(self, count: int, rows: Tensor | None, *, thorough: bool) -> Plan:
        try:
            choice = self.selection.prepare(count, rows, thorough=thorough)
        except (ValueError, NoPathError):
            if not self._free:
                raise
            self._earlier += self.selection.products
            self.selection = Selection(self.space, self._settings[0], None, self._settings[1])
            self._free = False
            choice = self.selection.prepare(count, rows, thorough=thorough)
        if self._free:
            self.selection.choices[block_key(count)] = dataclasses.replace(choice, reason=_REASON)
        return Plan.made(self.space, self.selection, block_key(count))

    def _obey(self, key: int, plan: Plan, *, given: bool) -> None:
        self._threads = plan.threads
        if self.ranks.rank == 0 and not given:
            return
        plan.obeyed(self.space, self.selection, key)
        if self.ranks.rank:
            self.space.gradient_seconds = plan.gradient_seconds

    # ------------------------------------------------------------------ products

    def multiply(self, rows: Tensor) -> Tensor:
        """See :meth:`Products.multiply`; the rows are those of rank 0."""
        found = self._commanded(rows, keep=True, with_forms=False)[0]
        assert found is not None
        return found

    def forms(self, rows: Tensor, *, keep: bool) -> tuple[Tensor | None, Array]:
        """See :meth:`Products.forms`; the rows are those of rank 0."""
        found, forms = self._commanded(rows, keep=keep, with_forms=True)
        assert forms is not None
        return found, forms

    def release(self) -> None:
        """Free what is kept of batches, on every rank."""
        with uninterrupted():
            self._command(_RELEASE, 0, 0, 0)
            self._forget()

    def _forget(self) -> None:
        self._held = []
        super().release()

    def _commanded(self, rows: Tensor, *, keep: bool, with_forms: bool) -> tuple[Tensor | None, Array | None]:
        self.prepare(len(rows), rows)
        with uninterrupted():
            self._command(_MULTIPLY, len(rows), int(keep), int(with_forms))
            own = rows.to(self.space.dtype, copy=True, memory_format=torch.contiguous_format)  # which rank 0's overwrite
            return self._together(own, keep=keep, with_forms=with_forms)

    def _together(self, rows: Tensor, *, keep: bool, with_forms: bool) -> tuple[Tensor | None, Array | None]:
        """Products with rank 0's rows, a few vectors at a time: each rank's own, and their sums."""
        rows, choice = self.ranks.broadcast(rows), self.selection.choices[block_key(len(rows))]
        candidate = self.selection.chosen[block_key(len(rows))]
        out = torch.empty_like(rows) if keep else None
        forms = np.zeros((len(self.owners), len(rows)))
        most = max(self.owners.count(rank) for rank in range(self.ranks.size))
        fitting = _STORED // (most * rows.shape[1] * rows.element_size())
        step = max(choice.chunk, fitting // choice.chunk * choice.chunk)  # whole blocks: their size shows in the last bits
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            own: _Own | None = None
            failure = None
            try:
                own = self._own(candidate, rows[part].to(self.space.work), choice.chunk, keep=keep)
            except Exception as error:
                failure = error
            if out is not None:
                out[part] = self._summed([] if own is None else own.products, failure, rows[part])
            else:
                self._checked(torch.zeros(0, dtype=torch.float64), failure)
            if own is not None:
                forms[self.mine, part] = own.forms
        if with_forms:
            forms = disjoint(forms, self.ranks, self.ranks.device)
        self._count(len(rows), out, forms if with_forms else None)
        return out, forms if with_forms else None

    def _checked(self, top: Tensor, failure: Exception | None) -> Tensor:
        """Largest terms of all ranks, once none has failed; what failed is raised on all."""
        facts = torch.cat([top.flatten(), top.new_tensor([float(failure is not None), float(self.short)])])
        facts = self.ranks.maximum(facts)
        self.short = int(facts[-1])
        if facts[-2] > 0:
            self.ranks.check(failure)
        return facts[:-2].view_as(top)

    def _summed(self, products: list[Tensor], failure: Exception | None, rows: Tensor) -> Tensor:
        """The sum over the batches of all ranks."""
        terms, weights = (products, self._weights) if products else ([torch.zeros_like(rows)], [1.0])
        parts, count = self.space.program.layout.slices, len(self.owners)
        top = self._checked(largest(terms, weights, parts), failure)
        limbs, dtype = limbs_for(self.space.dtype, count), rows.dtype
        return summed(terms, weights, parts, top, count=count, limbs=limbs, over=self.ranks, dtype=dtype)

    def _own(self, candidate: Candidate, rows: Tensor, chunk: int, *, keep: bool) -> _Own:
        """Products and forms of this rank's batches; where memory is short, of fewer vectors at a time from then on."""
        again = False
        while True:
            own = _Own(self._room(rows) if keep else [], np.zeros((len(self.mine), len(rows))))
            if not self.mine:
                return own
            size = max(1, chunk // self._shrunk)
            try:
                with self.space.arithmetic(), _threads(self._threads):
                    self._over_batches(candidate, size, self.space.limit, rows, self._kept(own))
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or (size == 1 and again):
                    raise
            else:
                return own
            again = True
            del own
            self._held = []
            self.short += 1
            self._shrunk *= 2
            super().release()
            give_back()

    def _room(self, rows: Tensor) -> list[Tensor]:
        """Memory for the products of every batch, of which each is written; kept, unless there is a cap, to be mapped once."""
        held, self._held = self._held, []
        if not held or held[0].shape[1:] != rows.shape[1:] or len(held[0]) < len(rows) or held[0].dtype != rows.dtype:
            del held
            held = [torch.empty_like(rows) for _ in self.mine]
        if self.space.cap.memory is None:
            self._held = held
        return [one[: len(rows)] for one in held]

    def _kept(self, own: _Own) -> Take:
        program = self.space.program

        def take(batch: int, start: int, vectors: Parts, found: Parts) -> None:
            whole, share, stop = program.whole[batch], program.shares[batch], start + len(vectors[0])
            own.forms[whole, start:stop] += share * forms_of(vectors, found)
            if own.products:
                first = program.whole.index(whole) == batch
                program.layout.gather(own.products[whole][start:stop], found, share, first=first)

        return take


@dataclass
class _Own:
    """What one rank has multiplied.

    Attributes:
        products: ``[K, D]`` of each of its batches; none where they are not wanted.
        forms: v'H_b v ``[batches, K]``.
    """

    products: list[Tensor]
    forms: Array


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in _SHORT)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads of torch, which round as many do."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
