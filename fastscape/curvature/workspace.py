"""The loss on a private copy, and the arithmetic and memory in which products with its curvature are computed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from fastscape._heap import Heap
from fastscape._state import exact_arithmetic, plain_arithmetic
from fastscape.curvature.program import Program
from fastscape.curvature.sketch import synchronise
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.effort import multiplications
from fastscape.evaluation.footprint import Cap, enough, footprint
from fastscape.evaluation.trial import memory_for, timed
from fastscape.objective.objective import Objective
from fastscape.objective.structures import tensors_of
from fastscape.runs.peak import MemoryCapError, peak_bytes

SLOW = 0.01  # seconds per gradient above which overheads hardly count
_GRADIENTS, _VECTORS = 6, 24  # that a product and its checks hold at most: graphs, what is differentiated in them, a block
_HEAPED = 1 << 20  # bytes of a gradient from which memory is worth keeping: switching takes tens of microseconds
_CAP = 0.9  # of the memory cap for tensors: kernels have workspace of their own


class Workspace:
    """An objective at the weights it has when this is made, ready to be differentiated.

    Args:
        objective: the loss.
        memory: bytes that a computation may hold, the private copy, vectors and products included.

    Attributes:
        program: the loss on a private copy.
        dtype: of the products: the objective's, float32 for half precision; float64 where they overflow in float32.
        work: dtype that they are computed in.
        limit: bytes for a computation beside the private copy and a vector.
        largest: the batch of the most bytes.
        gradient_seconds, gradient_peak: seconds of a gradient of it, and bytes alive in it.
        keeping: whether the heap may keep what is freed, within a cap.
        notes: what a reader must know of the products, in words.
    """

    def __init__(self, objective: Objective, memory: int | None) -> None:
        self.objective = objective
        half = objective.dtype in (torch.float16, torch.bfloat16)
        self.dtype = self.work = torch.float32 if half else objective.dtype
        self.cap = Cap(memory)
        self._available = memory_for(memory, objective.device)
        self.limit = self._room(self.work)
        self.notes: tuple[str, ...] = ()
        self.gradient_seconds, self.gradient_peak, self.largest = math.nan, 0, 0
        self.keeping = False
        self._inside: torch.dtype | None = None
        with self.arithmetic():
            self.program = Program(objective, self.work)
            unperturbed_loss(self.program.replica)
            if self.program.narrow is not None and self.work == torch.float32:
                self._drop_autocast(self.program.narrow[0])

    def _room(self, dtype: torch.dtype) -> float:
        """Bytes for a computation beside the private copy and a vector."""
        if self.cap.memory is not None:
            found = footprint(self.objective, dtype)
            vector = self.objective.size * torch.finfo(dtype).bits // 8
            self.cap.hold(found.copy + max(found.copy, vector) + found.forward, "a copy of the parameters and a forward pass")
            return self.cap.room() - found.copy - vector
        copies = self.objective.size * torch.finfo(dtype).bits // 8
        room = _CAP * self._available - 2 * copies
        if room <= 0:
            least = math.ceil(2 * copies / _CAP)
            raise ValueError(
                f"memory must hold a copy of the parameters and a vector, {least} bytes, and what a gradient takes, got "
                f"{self._available:.0f}; raise memory="
            )
        return room

    def _drop_autocast(self, narrow: torch.dtype) -> None:
        """Go on in float64 where that takes the rounding inside away: torch's autocast casts float32, and never float64."""
        with plain_arithmetic(torch.float64):
            wide = Program(self.objective, torch.float64)
        if wide.narrow is None:
            self.widen(
                wide, f"curvature in float64, without your autocast to {str(narrow)[6:]}, whose rounding has no derivatives"
            )

    def widen(self, program: Program, note: str) -> None:
        """Multiply with a program in float64 from now on."""
        self.limit = self._room(torch.float64)
        self.work, self.program = torch.float64, program
        self.notes = (*self.notes, note)
        self.gradient_seconds = math.nan

    @property
    def effort(self) -> float:
        """Multiplications by the largest batch, which do not depend on the machine."""
        return multiplications(self.objective, max(self.objective.batch_weights))

    @contextmanager
    def arithmetic(self, *, draws: bool = True) -> Iterator[None]:
        """Plain arithmetic of the dtype and the process as it was afterwards; nested blocks cost nothing.

        Without ``draws``, random generators are not kept (half of the 0.1 ms): for what runs no code of the user's.
        """
        outer = self._inside
        if outer == self.work:
            yield
            return
        self._inside = self.work
        try:
            heap = self.heap(kept=self.keeping) if outer is None else nullcontext()
            with heap, exact_arithmetic(self.work) if draws and outer is None else plain_arithmetic(self.work):
                yield
        finally:
            self._inside = outer

    def hold(self, products: int, beside: float) -> None:
        """Refuse a cap below so many products that are returned, and ``beside`` bytes for what computes them.

        Raises:
            ValueError: it is; names how many bytes are enough.
        """
        copy, vector = footprint(self.objective, self.work).copy, self.objective.size * torch.finfo(self.work).bits // 8
        self.cap.hold(copy + products * vector + beside, f"{products} products (fewer vectors at a time take less)")

    def enough(self) -> int:
        """Bytes of memory in which a product of one vector can be computed."""
        found, vector = footprint(self.objective, self.work), self.objective.size * torch.finfo(self.work).bits // 8
        return enough(2 * found.copy + _GRADIENTS * found.gradient + _VECTORS * vector)

    def heap(self, *, kept: bool) -> AbstractContextManager[None]:
        """A block of computations, of which one keeps its memory for the next, where that is worth it or there is a cap."""
        large = self.gradient_peak > _HEAPED and self.objective.device.type == "cpu"
        return Heap(self.cap.memory, kept=kept) if large or self.cap.memory is not None else nullcontext()

    def widened(self) -> bool:
        """Whether memory and model allow to go on in float64, which is done."""
        try:
            with plain_arithmetic(torch.float64):
                program = Program(self.objective, torch.float64)
            self.widen(program, "products in float64: float32 does not hold them")
        except Exception:  # a model that is bound to float32
            return False
        return True

    def halve(self) -> bool:
        """Whether batches could be cut in two, which is done."""
        self.gradient_seconds = math.nan
        return self.program.halve()

    def note(self, words: str) -> None:
        """Add to the notes, once."""
        if words and words not in self.notes:
            self.notes = (*self.notes, words)

    def opened(self) -> Program:
        """The program; on first use a gradient is timed."""
        program = self.program
        if math.isnan(self.gradient_seconds):
            self.largest = max(range(len(program.weights)), key=lambda index: _input_bytes(program, index))
            self.gradient_peak = self._measured_gradient()
            self.gradient_seconds, _ = timed(
                lambda: synchronise(program.gradient(self.largest)[0]), most=5, more=lambda times: times[0] < SLOW
            )
        return program

    def _measured_gradient(self) -> int:
        """Bytes alive in a gradient of the largest batch, which is cut in two while it does not fit.

        Raises:
            ValueError: it does not fit, with what is enough.
        """
        limit = None if self.cap.memory is None else self.limit
        while True:
            try:
                return peak_bytes(lambda: self.program.gradient(self.largest), limit)[1]
            except MemoryCapError:
                pass
            if not self.program.halve():
                found = footprint(self.objective, self.work)
                self.cap.hold(2 * found.copy + found.gradient, "a gradient")
                raise AssertionError(found)
            self.largest = max(range(len(self.program.weights)), key=lambda index: _input_bytes(self.program, index))


def _input_bytes(program: Program, batch: int) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(program.replica.batches[batch]))
