"""Responses of an objective by difference propagation: blocks of directions under a memory cap, cross-checked with the model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, cast, get_args

import numpy as np
import torch

from fastscape._checks import check_memory, one_of, shown
from fastscape._clock import now
from fastscape._state import left_on_failure
from fastscape.differences.checks import CrossCheck
from fastscape.differences.following import Follower
from fastscape.differences.following import FrontEnd as FrontEnd
from fastscape.differences.lanes import Handling as Handling
from fastscape.differences.lanes import Lanes
from fastscape.differences.programs import Kept
from fastscape.differences.propagation import Propagation
from fastscape.differences.sharing import bends, interpolated, shareable
from fastscape.differences.steps import Program
from fastscape.differences.subclass import Dispatched
from fastscape.differences.tracing_errors import UntraceableError
from fastscape.differences.triple import Moved, Products
from fastscape.directions import Directions
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.footprint import Cap, capped_arithmetic, footprint
from fastscape.evaluation.points import Array, Radii
from fastscape.evaluation.trial import PathChoice, activation_bytes, memory_for
from fastscape.objective.objective import Objective, checked_objective

BASE = torch.float64  # of the values at w: one forward, kept for all directions
_COPIES = 6  # a and b of what is alive, and of what an operation makes of them on its way
_CACHED = 48 << 20  # bytes of lanes alive at a time above which larger blocks of directions leave the caches
_FOLLOWED = 2  # forwards that following the model takes: one is recorded, the record is run once
_TRIED = 2  # directions that tell which radii of a smooth network can be shared


class DifferenceEvaluator:
    """Even and odd responses of an objective, as a context manager that restores every global setting on exit.

    Args:
        objective: the function.
        lanes: dtype of the differences.
        products: what the operands of the lanes' matrix products are rounded to.
        memory: bytes that the private copy, lanes, directions and values at w may take; default half of what is available, for
            all but the copy.
        gate: evaluate the loss twice and refuse one that differs; compare one response with float64 subtraction.
        front_end: ``"graph"``, ``"dispatch"``, ``None`` for the first that follows the model, or an earlier :class:`PathChoice`,
            whose directions and radii at a time and shared radii are taken as they are.

    Raises:
        ValueError: other dtypes of lanes or front ends; a memory that does not hold a lane, with what is enough.
        UntraceableError: the model cannot be followed, or disagrees with what was followed.
        NondeterministicLossError: on entry, if gated.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        lanes: torch.dtype = torch.float32,
        products: Products = "float32",
        memory: int | None = None,
        gate: bool = True,
        front_end: FrontEnd | PathChoice | None = None,
    ) -> None:
        obeyed = front_end if isinstance(front_end, PathChoice) else None
        wanted = front_end.name if isinstance(front_end, PathChoice) else front_end
        checked_objective(objective)
        one_of("method", wanted, (*get_args(FrontEnd), None), "with precision='difference'")
        if not isinstance(lanes, torch.dtype) or lanes not in (torch.float32, torch.float64):
            raise ValueError(f"lanes must be torch.float32 or torch.float64, got {shown(lanes)}")
        if products == "bfloat16" and not _multiplies_bfloat16(objective.device):
            raise ValueError(
                "precision must be 'difference' on this device, got 'difference-bf16': it has no bfloat16 matrix products"
            )
        check_memory(memory)
        self.objective, self.dtype, self.products, self.gate = objective, lanes, products, gate
        self.cap = Cap(memory)
        self.memory = memory_for(memory, objective.device)
        self._lanes = Lanes(objective, lanes, products)
        self.choice: PathChoice | None = None
        self.rounding = ""
        self._front_end = cast("FrontEnd | None", wanted)
        self._obeyed = obeyed
        self._responses = 0
        self._shared: tuple[float, ...] = ()
        self._base = math.nan
        self.forward_seconds = 0.0
        self._arithmetic = capped_arithmetic(BASE, memory)

    @property
    def program(self) -> Program | None:
        """The first batch's operations, once the model has been followed as a graph."""
        first = next(iter(self._lanes.propagations), None)
        return first.program if isinstance(first, Propagation) else None

    @property
    def handling(self) -> Handling:
        """What the rules could not follow so far."""
        return self._lanes.handling

    @property
    def operations(self) -> int:
        """Floating-point operations of the lanes so far."""
        return self._lanes.operations

    @property
    def forwards(self) -> float:
        """Cost so far in forwards: those of the set-up, and operations of the lanes relative to one; NaN where unknown."""
        one = sum(propagation.operations for propagation in self._lanes.propagations)
        done = self.replica.forwards / len(self.replica.batches) + _FOLLOWED
        return done + self.operations / one if one else math.nan

    @property
    def seen(self) -> Counter[Any]:
        """Operations by how they were followed."""
        return self._lanes.seen

    @property
    def base(self) -> float:
        """L(w), once the model has been followed."""
        return self._base

    @property
    def evaluations(self) -> int:
        """Loss values at displaced weights that the responses so far stand for, and evaluations at w."""
        return self.replica.evaluations + 2 * self._responses

    def __enter__(self) -> DifferenceEvaluator:
        with left_on_failure(self._arithmetic):
            if self.cap.memory is not None:
                found = footprint(self.objective, BASE)
                self._arithmetic.hold(found.alone, "an evaluation of the loss")
                self.memory = max(1, int(self.cap.room() - found.copy))
            self.replica = self.objective.replica(BASE)
            if self.gate:
                start = now()
                unperturbed_loss(self.replica)
                self.forward_seconds = (now() - start) / self.replica.gate
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lanes.propagations = []
        self._arithmetic.__exit__(kind, error, trace)

    # ------------------------------------------------------------------ responses

    def choose(self, directions: Directions, radii: Radii) -> PathChoice:
        """Follow the model, once, and size the blocks of directions."""
        if self.choice is None:
            directions.check(self.objective)
            start = now()
            size = self._follow(directions, radii)
            if self._obeyed is not None:
                size, self._lanes.parts = self._obeyed.chunk, self._obeyed.parts or self._lanes.parts
            reason = f"{size} directions of {len(radii)} radii at a time"
            if self._obeyed is not None and self._obeyed.shared is not None:
                self._shared = self._obeyed.shared
            elif self.program is not None and self.program.smooth and min(radii) > 0:
                reason += self._share(directions, np.asarray(radii), size)
            if self.products == "bfloat16":
                self.rounding = self._products_made(directions, max(radii))
                reason += f"; {self.rounding}"
            name = "dispatch" if self.program is None else "graph"
            self.choice = PathChoice(name, size, {"check": now() - start}, reason, self._lanes.parts, self._shared)
            self.cap.settle()
        return self.choice

    def _follow(self, directions: Directions, radii: Radii) -> int:
        """Follow the model, anew where kept programs respond otherwise than it does; how many directions fit in memory."""
        follower = Follower(self.replica, self._front_end, self.memory, Kept(self.replica))
        check = CrossCheck(self.replica, self._lanes)
        for anew in (False, True):
            self._lanes.propagations, self._base = follower.bound(anew=anew)
            size, self._lanes.parts = self._block(directions, len(radii))
            if not self.gate:
                break
            try:
                check.response(directions, max(radii), several=self.cap.memory is None or size * self._lanes.parts > 1)
                if min(radii) == 0:
                    check.jets(directions)
                break
            except UntraceableError:
                if anew or not follower.kept.used:
                    raise
        return size

    def _products_made(self, directions: Directions, radius: float) -> str:
        """Whether products were rounded to bfloat16, in words: some processors and shapes ignore the request without a word."""
        moved = self._lanes.block(directions, (0,))
        plain, asked = (self._lanes.at(moved, [radius], products) for products in get_args(Products))
        if not np.isfinite(plain).all():
            return "whether products were rounded to bfloat16 is not known: the responses are not finite"
        if not np.array_equal(asked, plain):
            return "operands of matrix products were rounded to bfloat16"
        return "no product was rounded to bfloat16: torch makes them in float32 here, and the responses are those of 'difference'"

    def _share(self, directions: Directions, radii: Array, size: int) -> str:
        """Find the small radii at which a smooth network's responses follow from two of them."""
        moved = self._lanes.block(directions, range(min(_TRIED, size)))
        count = shareable(self._lanes.everywhere(moved, [0.0, *radii]), radii)
        self._shared = tuple(radii[:count])
        return f"; the {count} smallest follow from two of them, the network is smooth" if count else ""

    def responses(
        self, directions: Directions, indices: Sequence[int], radii: Radii, lanes: torch.dtype | None = None
    ) -> tuple[Array, Array, Array]:
        """Even and odd responses ``[S, n]`` and the loss at w ``[n]``; ``lanes`` is another dtype for this call."""
        slope, curvature = self.derivatives(directions, indices, radii, lanes)
        e = np.asarray(radii, dtype=np.float64)[:, None]
        with np.errstate(invalid="ignore", over="ignore"):
            return e * e * curvature, e * slope, np.full(len(indices), self._base)

    def derivatives(
        self, directions: Directions, indices: Sequence[int], radii: Radii, lanes: torch.dtype | None = None
    ) -> tuple[Array, Array]:
        r"""Divided differences :math:`\Delta_1 / e` and :math:`\Delta_2 / e^2`, ``[S, n]``; at e = 0, the derivatives."""
        choice = self.choose(directions, radii)
        out = np.zeros((2, len(radii), len(indices)))
        size, parts = choice.chunk, self._lanes.parts
        if self.cap.memory is not None and lanes == torch.float64 != self.dtype:  # twice the bytes
            size, self._lanes.parts = max(1, size // 2), parts if size > 1 else max(1, parts // 2)
        for start in range(0, len(indices), size):
            block = indices[start : start + size]
            moved = self._lanes.block(directions, block, lanes)
            values = self._shared_lanes(moved, radii) if lanes is None else self._lanes.everywhere(moved, radii)
            out[:, :, start : start + len(block)] = values.transpose(1, 2, 0)
        self._lanes.parts = parts
        self._responses += len(indices) * len(radii)
        return out[0], out[1]

    def _shared_lanes(self, moved: Moved, radii: Radii) -> Array:
        """Lanes at all radii; the small ones of a smooth network from zero and the largest of them."""
        count = len(self._shared)
        if not count or tuple(radii[:count]) != self._shared:
            return self._lanes.everywhere(moved, radii)
        values = self._lanes.everywhere(moved, [0.0, *radii[count - 1 :]])
        if bends(values[:, :, :2]):  # for some direction of this block
            return self._lanes.everywhere(moved, radii)
        small = interpolated(values[:, :, :1], values[:, :, 1:2], np.asarray(self._shared))
        return np.concatenate((small[:, :, :-1], values[:, :, 1:]), axis=2)

    def mean_curvature(self, directions: Directions, indices: Sequence[int]) -> float:
        r"""Mean of :math:`d^T H d` over some directions, whose second derivatives are carried as one."""
        size, total = self.choose(directions, [0.0]).chunk, 0.0
        for start in range(0, len(indices), size):
            block = indices[start : start + size]
            total += len(block) * self._lanes.curvature(self._lanes.block(directions, block), len(block))
        return total / len(indices)

    # ------------------------------------------------------------------ memory

    def _block(self, directions: Directions, radii: int) -> tuple[int, int]:
        """Directions in a block, and radii at a time, that fit in memory and, as far as they can, in the caches."""
        width = self.dtype.itemsize
        lane = _COPIES * width * max(self._peak(propagation) for propagation in self._lanes.propagations)
        direction = 2 * width * directions.elements
        room = self.memory // 2
        if self.cap.memory is not None:  # lanes in float64, half as many at a time, tell the rounding of the others
            found = footprint(self.objective, BASE)
            lane += found.workspace
            self.cap.hold(found.copy + 2 * (direction + lane), "a direction and its lanes")
        parts = max(1, min(radii, int((room - direction) // max(lane, 1))))
        wanted = min(room, _CACHED) // (lane * parts + direction)
        size = max(1, min(len(directions), int(wanted)))
        if self.cap.memory is not None:
            self._arithmetic.hold(found.copy + size * (lane * parts + direction))
        return size, parts

    def _peak(self, propagation: Propagation | Dispatched) -> int:
        """Elements that move and are alive at a time; by dispatch, all outputs of modules."""
        if isinstance(propagation, Propagation):
            return propagation.peak
        return activation_bytes(self.replica) // BASE.itemsize


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether float32 operands can be rounded to bfloat16 within the products of a device."""
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
