"""Responses of an objective by difference propagation: blocks of directions under a memory cap, cross-checked with the model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fastscape._checks import check_memory
from fastscape._clock import now
from fastscape._state import exact_arithmetic
from fastscape.differences.program import trace
from fastscape.differences.programs import Kept, held
from fastscape.differences.propagation import Propagation
from fastscape.differences.refusals import UntraceableError
from fastscape.differences.sharing import bends, interpolated, shareable
from fastscape.differences.steps import Program
from fastscape.differences.subclass import Dispatched
from fastscape.differences.triple import Frame, Products
from fastscape.directions import Directions
from fastscape.evaluation.arithmetic import replica_arithmetic
from fastscape.evaluation.branches import Branches
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.displacement import Displacement
from fastscape.evaluation.evaluator import PathChoice, activation_bytes
from fastscape.evaluation.nearby import Verdict, judged
from fastscape.evaluation.paths import LoopPath
from fastscape.evaluation.points import Array, Radii, blocks
from fastscape.evaluation.rounding import rounding_model
from fastscape.objective.batches import available_memory
from fastscape.objective.objective import Objective, checked_objective
from fastscape.objective.replica import Replica
from fastscape.objective.structures import map_tensors, tensors_of

FrontEnd = Literal["graph", "dispatch"]
BASE = torch.float64  # of the values at w: one forward, kept for all directions
_COPIES = 6  # a and b of what is alive, and of what an operation makes of them on its way
_CACHED = 48 << 20  # bytes of lanes alive at a time above which larger blocks of directions leave the caches
_TRIED = 2  # directions that tell which radii of a smooth network can be shared
_AGREEMENT = {"float32": 1e-3, "bfloat16": 5e-2}  # relative difference of a response from subtraction that is not rounding
_BESIDE = 1e-2  # of that, relative to the larger of the even and the odd response
_CHECKED = 1e-3  # radius relative to ||w|| at which derivatives are compared with subtraction
_SAME = 1e-9  # relative difference of the traced loss from the model's


@dataclass(frozen=True)
class Handling:
    """Operations that difference propagation could not follow by its rules.

    Attributes:
        fallbacks: operations evaluated locally in float64: name -> calls.
        frozen: decisions of the forward that depend on the weights and were taken at w: name -> calls.
    """

    fallbacks: dict[str, int] = field(default_factory=dict)
    frozen: dict[str, int] = field(default_factory=dict)


class KinkError(ValueError):
    """A loss has no second derivative at its weights."""


class DifferenceEvaluator:
    """Even and odd responses of an objective, as a context manager that restores every global setting on exit.

    Args:
        objective: the function.
        lanes: dtype of the differences.
        products: what the operands of the lanes' matrix products are rounded to.
        memory: bytes that lanes, directions and values at w may take; default half of what is available.
        gate: evaluate the loss twice and refuse one that differs; compare one response with float64 subtraction.
        front_end: ``"graph"``, ``"dispatch"`` or ``None`` for the first that follows the model.

    Raises:
        ValueError: other dtypes of lanes, front ends or sizes of memory.
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
        front_end: FrontEnd | None = None,
    ) -> None:
        checked_objective(objective)
        if front_end not in (None, *get_args(FrontEnd)):
            raise ValueError(f"path must be 'graph', 'dispatch' or None with precision='difference', got {front_end!r}")
        if lanes not in (torch.float32, torch.float64):
            raise ValueError(f"lanes must be torch.float32 or torch.float64, got {lanes}")
        if products == "bfloat16" and not _multiplies_bfloat16(objective.device):
            raise ValueError(
                "precision must be 'difference' on this device, got 'difference-bf16': it has no bfloat16 matrix products"
            )
        check_memory(memory)
        self.objective, self.dtype, self.products, self.gate = objective, lanes, products, gate
        self.memory = memory or available_memory(objective.device) // 2
        self.handling = Handling()
        self.operations = 0
        self.seen: Counter[Any] = Counter()
        self.choice: PathChoice | None = None
        self.rounding = ""
        self._front_end = front_end
        self._responses = 0
        self._shared: tuple[float, ...] = ()
        self._base = math.nan
        self.forward_seconds = 0.0
        self._stack = ExitStack()
        self._propagations: list[Propagation | Dispatched] = []

    @property
    def program(self) -> Program | None:
        """The first batch's operations, once the model has been followed as a graph."""
        first = next(iter(self._propagations), None)
        return first.program if isinstance(first, Propagation) else None

    @property
    def base(self) -> float:
        """L(w), once the model has been followed."""
        return self._base

    @property
    def evaluations(self) -> int:
        """Loss values at displaced weights that the responses so far stand for, and evaluations at w."""
        return self.replica.evaluations + 2 * self._responses

    def __enter__(self) -> DifferenceEvaluator:
        with ExitStack() as stack:
            stack.enter_context(exact_arithmetic(BASE))
            self.replica = self.objective.replica(BASE)
            if self.gate:
                start = now()
                unperturbed_loss(self.replica)
                self.forward_seconds = (now() - start) / self.replica.gate
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._propagations = []
        self._stack.close()

    # ------------------------------------------------------------------ responses

    def choose(self, directions: Directions, radii: Radii) -> PathChoice:
        """Follow the model, once, and size the blocks of directions."""
        if self.choice is None:
            directions.check(self.objective)
            start = now()
            size = self._follow(directions, radii)
            reason = f"{size} directions of {len(radii)} radii at a time"
            if self.program is not None and self.program.smooth and min(radii) > 0:
                reason += self._share(directions, np.asarray(radii), size)
            if self.products == "bfloat16":
                self.rounding = self._products_made(directions, max(radii))
                reason += f"; {self.rounding}"
            name = "dispatch" if self.program is None else "graph"
            self.choice = PathChoice(name, size, {"check": now() - start}, reason)
        return self.choice

    def _follow(self, directions: Directions, radii: Radii) -> int:
        """Follow the model, anew where kept programs respond otherwise than it does; how many directions fit in memory."""
        kept = Kept(self.replica)
        for anew in (False, True):
            self._propagations, self._base = self._bound(kept, anew=anew)
            size, self._parts = self._block(len(directions), len(radii))
            if not self.gate:
                break
            try:
                self._cross_check(directions, max(radii))
                if min(radii) == 0:
                    self._check_jets(directions)
                break
            except UntraceableError:
                if anew or not kept.used:
                    raise
        return size

    def _products_made(self, directions: Directions, radius: float) -> str:
        """Whether products were rounded to bfloat16, in words: some processors and shapes ignore the request without a word."""
        moved = self._directions(directions, (0,))
        plain, asked = (self._lanes(moved, [radius], products) for products in get_args(Products))
        if not np.isfinite(plain).all():
            return "whether products were rounded to bfloat16 is not known: the responses are not finite"
        if not np.array_equal(asked, plain):
            return "operands of matrix products were rounded to bfloat16"
        return "no product was rounded to bfloat16: torch makes them in float32 here, and the responses are those of 'difference'"

    def _share(self, directions: Directions, radii: Array, size: int) -> str:
        """Find the small radii at which a smooth network's responses follow from two of them."""
        moved = self._directions(directions, range(min(_TRIED, size)))
        count = shareable(self._all_lanes(moved, [0.0, *radii]), radii)
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
        for start in range(0, len(indices), choice.chunk):
            block = indices[start : start + choice.chunk]
            moved = self._directions(directions, block, lanes)
            values = self._shared_lanes(moved, radii) if lanes is None else self._all_lanes(moved, radii)
            out[:, :, start : start + len(block)] = values.transpose(1, 2, 0)
        self._responses += len(indices) * len(radii)
        return out[0], out[1]

    def _shared_lanes(self, moved: dict[str, Tensor], radii: Radii) -> Array:
        """Lanes at all radii; the small ones of a smooth network from zero and the largest of them."""
        count = len(self._shared)
        if not count or tuple(radii[:count]) != self._shared:
            return self._all_lanes(moved, radii)
        values = self._all_lanes(moved, [0.0, *radii[count - 1 :]])
        if bends(values[:, :, :2]):  # for some direction of this block
            return self._all_lanes(moved, radii)
        small = interpolated(values[:, :, :1], values[:, :, 1:2], np.asarray(self._shared))
        return np.concatenate((small[:, :, :-1], values[:, :, 1:]), axis=2)

    def _all_lanes(self, moved: dict[str, Tensor], radii: Radii) -> Array:
        """Lanes of the loss, ``[K, 2, S]``, as many radii at a time as fit in memory."""
        return np.concatenate([self._lanes(moved, [radii[i] for i in part]) for part in blocks(len(radii), self._parts)], axis=2)

    def mean_curvature(self, directions: Directions, indices: Sequence[int]) -> float:
        r"""Mean of :math:`d^T H d` over some directions, whose second derivatives are carried as one."""
        size, total = self.choose(directions, [0.0]).chunk, 0.0
        for start in range(0, len(indices), size):
            block = indices[start : start + size]
            lanes = self._loss_lanes(self._directions(directions, block), [0.0], len(block) + 1, 1, collapsed=True)
            total += len(block) * float(lanes[-1, 0, 0])
        return total / len(indices)

    def _lanes(self, moved: dict[str, Tensor], radii: Radii, products: Products | None = None) -> Array:
        """Lanes of the loss over all batches, ``[K, 2, S]``."""
        return self._loss_lanes(moved, radii, len(next(iter(moved.values()))), 2, products=products)

    def _loss_lanes(
        self,
        moved: dict[str, Tensor],
        radii: Radii,
        rows: int,
        parts: int,
        *,
        collapsed: bool = False,
        products: Products | None = None,
    ) -> Array:
        objective, rounding = self.objective, products or self.products
        steps = torch.tensor(radii, dtype=torch.float64, device=objective.device)
        total = torch.zeros(rows, parts, len(radii), dtype=torch.float64, device=objective.device)
        frame = Frame(steps, next(iter(moved.values())).dtype, rounding, collapsed)
        with rounded_products(rounding):
            for propagation, weight in zip(self._propagations, objective.batch_weights, strict=True):
                lanes = propagation.lanes(frame, moved)
                if lanes is not None:
                    total[:, : lanes.shape[1]] += weight * lanes.double()
        self.operations += frame.operations
        self.seen.update(frame.seen)
        for mine, found in ((self.handling.fallbacks, frame.fallbacks), (self.handling.frozen, frame.frozen)):
            for name, calls in found.items():
                mine[name] = mine.get(name, 0) + calls
        return (total / objective.samples).cpu().numpy()

    def _directions(self, directions: Directions, indices: Sequence[int], lanes: torch.dtype | None = None) -> dict[str, Tensor]:
        """A block of directions, ``[K, *shape]`` by input name, in the dtype of the lanes."""
        block = directions.block(indices, lanes or self.dtype)
        return {_input(name): tensor for name, tensor in zip(self.objective.names, block, strict=True)}

    # ------------------------------------------------------------------ following the model

    def _bound(self, kept: Kept, *, anew: bool) -> tuple[list[Propagation | Dispatched], float]:
        """Every batch's program with the weights of this objective, and the loss at w."""
        replica, objective = self.replica, self.objective
        replica.reset()
        room = self.memory // (2 * len(replica.batches))
        propagations: list[Propagation | Dispatched] = []
        total = 0.0
        for index, weight in enumerate(objective.batch_weights):
            expected = float(replica.batch_loss(index)[0])
            propagation, found = self._checked(index, self._attempts(index, room, kept, anew), expected)
            propagations.append(propagation)
            total += weight * found
        return propagations, total / objective.samples

    def _checked(
        self, index: int, attempts: Iterator[Callable[[], Propagation | Dispatched]], expected: float
    ) -> tuple[Propagation | Dispatched, float]:
        """The first attempt at following a batch that gives the model's loss, and that loss."""
        refusal: UntraceableError | None = None
        for attempt in attempts:
            try:
                propagation = attempt()
                found = float(propagation.loss())
            except UntraceableError as error:
                refusal = refusal or error
                continue
            if math.isclose(found, expected, rel_tol=_SAME, abs_tol=1e-12) or not math.isfinite(expected):
                return propagation, found
        raise refusal or UntraceableError(
            f"model must give the same loss when its operations are replayed, got {found!r} instead of {expected!r} on "
            f"batch {index}: does the forward reach tensors other than its parameters, buffers and inputs?"
        )

    def _attempts(self, index: int, room: int, kept: Kept, anew: bool) -> Iterator[Callable[[], Propagation | Dispatched]]:
        """Ways to follow one batch's loss, in order: a kept program, a new one, dispatch."""
        replica = self.replica
        inputs, probed = _inputs(replica, index), [_input(name) for name in replica.objective.names]

        def of_new() -> Propagation:
            program = traced(replica, index)
            kept.keep(index, program)
            return Propagation(program, inputs, probed, room)

        if self._front_end != "dispatch":
            program = None if anew else kept.find(index)
            if program is not None:
                yield lambda: Propagation(program, inputs, probed, room)
            yield of_new
        if self._front_end != "graph":
            yield lambda: Dispatched(replica.module, _call(replica, index), inputs)

    def _block(self, count: int, radii: int) -> tuple[int, int]:
        """Directions in a block, and radii at a time, that fit in memory and, as far as they can, in the caches."""
        width = self.dtype.itemsize
        lane = _COPIES * width * max(self._peak(propagation) for propagation in self._propagations)
        direction = 2 * width * self.objective.size
        room = self.memory // 2
        parts = max(1, min(radii, int((room - direction) // max(lane, 1))))
        wanted = min(room, _CACHED) // (lane * parts + direction)
        return max(1, min(count, int(wanted))), parts

    def _peak(self, propagation: Propagation | Dispatched) -> int:
        """Elements that move and are alive at a time; by dispatch, all outputs of modules."""
        if isinstance(propagation, Propagation):
            return propagation.peak
        return activation_bytes(self.replica) // BASE.itemsize

    def _cross_check(self, directions: Directions, largest: float) -> None:
        """Compare a response with float64 subtraction of the model's own losses: one of two directions and two radii at once."""
        radius = largest or _CHECKED * (directions.weight_norm or 1.0) / (directions.length(0) or 1.0)
        before = self.handling
        self.handling = Handling()
        last = min(1, len(directions) - 1)
        slope, curvature = self._lanes(self._directions(directions, (0, last)), [radius / 2, radius], "float32")[1, :, 1]
        frozen, self.handling = any(self.handling.frozen.values()), before
        points = LoopPath(self.replica).losses(directions, (last,), (0.0, radius, -radius))[0].numpy()
        self.replica.reset()  # its parameters are the values at w
        with np.errstate(invalid="ignore", over="ignore"):
            even, odd = (points[1] - points[0]) + (points[2] - points[0]), (points[1] - points[2]) / 2
            pairs = {"even": (curvature * np.float64(radius) ** 2, even), "odd": (slope * radius, odd)}
        if not largest and frozen:  # the jet at w holds, whatever the branch at this radius
            return
        differing = self._differing(pairs, 30 * rounding_model(self.replica))
        if differing is not None:
            found, expected = pairs[differing]
            why = "; a branch of the forward depends on the weights" if frozen else ""
            raise UntraceableError(
                f"model must give the response that its operations give, got an {differing} response of {expected:.6g} instead "
                f"of {found:.6g} at radius {radius:.1e}{why}; use fs.responses with precision='float64'"
            )

    def _check_jets(self, directions: Directions) -> None:
        """Hold second derivatives at w against losses nearby, on the pieces that hold at w: along a direction, and along noise.

        Along a direction alone, an operation may stand still by chance.

        Raises:
            UntraceableError: they differ: rules, and torch's derivatives, are not those of operations that are smooth only
                together.
            KinkError: the loss has no second derivative at w.
        """
        size = 0.0
        for along in (directions, Directions(self.objective, 1, normalize="none", scale="unit")):
            form = float(self._lanes(self._directions(along, (0,)), [0.0], "float32")[0, 1, 0])
            size = max(size, abs(form) / (along.length(0) or 1.0) ** 2 if math.isfinite(form) else 0.0)
            try:
                found = self._judged(along, form, size * along.length(0) ** 2)
            except Exception:  # a kink without a rule, a forward that branches: nothing to compare with
                found = Verdict(None)
            self.replica.reset()
            if found.kink:
                raise KinkError(
                    "the loss must have a second derivative at these weights, got one with a kink: its second differences grow "
                    "as the distance, not as its square (a norm that is zero?); use fs.responses at finite radii"
                )
            if found.agrees is False:
                raise UntraceableError(
                    f"model must have the second derivatives of its operations, got d'Hd = {form:.6g} by them and "
                    f"{found.form:.6g} by losses nearby: some are smooth at these weights only together (a norm squared, at 0)"
                )

    def _judged(self, directions: Directions, form: float, size: float) -> Verdict:
        arithmetic = replica_arithmetic(self.replica)
        if arithmetic.narrow is not None or arithmetic.rounds:  # the losses nearby go in steps
            return Verdict(None)
        replica, branches = self.replica, Branches()
        displacement = Displacement(replica.base, replica.scratch)

        def loss(mode: Callable[[int], AbstractContextManager[None]]) -> float:
            total = 0.0
            for batch, weight in enumerate(self.objective.batch_weights):
                with mode(batch):
                    total += weight * float(replica.batch_loss(batch)[0])
            return total / self.objective.samples

        def losses(step: float) -> tuple[float, float]:
            found = []
            for sign in (1, -1):
                displacement.write(sign * step)
                found.append(loss(branches.held))
            return found[0], found[1]

        narrow = replica_arithmetic(replica).narrow
        replica.reset()
        base = branches.settled(loss)[1]
        displacement.select(directions, 0)
        return judged(losses, base, (directions.weight_norm or 1.0) / directions.length(0), form, size, narrow=narrow)

    def _differing(self, pairs: Mapping[str, tuple[float, float]], floor: float) -> str | None:
        """The response that differs from subtraction by more than rounding, if any."""
        part = _AGREEMENT["float32"]
        larger = max(abs(expected) for _, expected in pairs.values())

        def wrong(name: str, least: float) -> bool:
            found, expected = pairs[name]
            allowed = part * (abs(expected) + _BESIDE * larger) + least
            return math.isfinite(expected) and not abs(found - expected) <= allowed

        if not any(wrong(name, floor) for name in pairs):
            return None
        narrow = replica_arithmetic(self.replica).narrow  # rounds subtraction, and not the lanes
        if narrow is not None:
            floor *= torch.finfo(narrow).eps / torch.finfo(BASE).eps
            part = max(part, _AGREEMENT["bfloat16"])
        return next((name for name in pairs if wrong(name, floor)), None)


def _input(name: str) -> str:
    return f"parameter:model.{name}"


def _inputs(replica: Replica, index: int) -> dict[str, Tensor]:
    """Parameters, buffers and batch of a replica by the names that programs use."""
    named = {f"parameter:{name}": tensor.detach() for name, tensor in held(replica).items()}
    return named | {f"batch:{place}": tensor for place, tensor in enumerate(tensors_of(replica.batches[index]))}


def _call(replica: Replica, index: int) -> Callable[[Sequence[Tensor]], Tensor]:
    """The loss of one batch as a function of its tensors."""

    def call(inputs: Sequence[Tensor]) -> Tensor:
        following: Iterator[Tensor] = iter(inputs)
        value: Tensor = replica.module(map_tensors(replica.batches[index], lambda _: next(following)))[0]
        return value

    return call


def traced(replica: Replica, index: int) -> Program:
    """The program of one batch's loss."""
    replica.reset()
    batch = [tensor.clone() for tensor in tensors_of(replica.batches[index])]
    probed = [f"model.{name}" for name in replica.objective.names]
    return trace(replica.module, _call(replica, index), held(replica), batch, probed)


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether float32 operands can be rounded to bfloat16 within the products of a device."""
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def rounded_products(products: Products) -> Iterator[None]:
    """Matrix products of float32 operands in bfloat16 with float32 sums, where the device has them, inside the block."""
    if products == "float32":
        yield
        return
    backends: Any = torch.backends
    leaves = (backends.mkldnn.matmul, backends.mkldnn.conv)
    before = [leaf.fp32_precision for leaf in leaves]
    try:
        for leaf in leaves:
            leaf.fp32_precision = "bf16"
        yield
    finally:
        for leaf, value in zip(leaves, before, strict=True):
            leaf.fp32_precision = value
