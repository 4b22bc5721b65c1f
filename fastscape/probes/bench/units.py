"""Units that the benchmark of probes times: each made ready, with the numbers that show that it computes the right thing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastscape._checks import counted
from fastscape._clock import now
from fastscape._state import exact_arithmetic, plain_arithmetic
from fastscape.curvature.flat import Layout, norm
from fastscape.curvature.forms.quadratic import quadratic_forms
from fastscape.curvature.operator import CurvatureOperator, ggn, hessian
from fastscape.curvature.plain import double_backward
from fastscape.curvature.program import Program
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.differences.triple import Products
from fastscape.directions import Directions
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.displacement import Displacement
from fastscape.evaluation.evaluator import Evaluator, PathChoice, activation_bytes
from fastscape.evaluation.losses import DTYPES
from fastscape.evaluation.rounding import rounding_model
from fastscape.numerics.arrays import Array
from fastscape.objective.batches import available_memory
from fastscape.objective.objective import Objective
from fastscape.probes.bench.result import COPY, FORWARD, GRADIENT, PERTURB

RADII = np.geomspace(1e-3, 1e-1, 4)  # relative to ||w||
_BATCHED = 12.0  # times the loop's operations: what convolutions with weights of their own may take, and two runs
_SOON = 0.5  # seconds of the responses of all directions beyond which one direction has to do
_STEP = 1e-6  # of the differences of outputs that Gauss-Newton forms are compared with: float64 leaves 1e-9
_CLOSE = 1e-2  # relative deviation of forms and responses from the reference; float32 and its rounding leave 1e-5
_CANCELLED = 3e3  # roundings of |v| |Hv| in v'Hv, whose terms cancel: a ResNet-18 leaves 4e-3 of the form in float32
_ROUGH = 0.2  # the same of bfloat16 products
ROUNDINGS = 30.0  # times the rounding noise of a loss


@dataclass
class Ready:
    """A unit that can be timed.

    Attributes:
        run: does ``items`` of them.
        context: what a run happens in, outside the clock.
        items: units in a call.
        loss: L(w) as the unit computed it, NaN where it computes none.
        values: numbers to hold against the reference of the unit's kind, ``[...]``.
        expected: of them, where they have a reference of their own.
        tolerance: of them, relative to their RMS.
        absolute: of them, in their own units.
        remark: path and why.
        moved: bytes read and written by one.
        peak: bytes alive in a call where that is known without counting.
        dtype: the arithmetic, for the rounding of ``loss``.
    """

    run: Callable[[], object]
    context: Callable[[], AbstractContextManager[None]]
    items: int = 1
    loss: float = math.nan
    values: Array | None = None
    expected: Array | None = None
    tolerance: float = _CLOSE
    absolute: float = 0.0
    remark: str = ""
    moved: int = 0
    peak: int | None = None
    dtype: torch.dtype = torch.float64


@dataclass(frozen=True)
class Unit:
    """A unit before it is made ready.

    Attributes:
        name, meaning: of it.
        kind: whose values are compared with one another; the first that works is the reference.
        forwards: expected cost of making it ready and of one run, in forwards.
        make: makes it ready; whatever it raises is why it has no timings.
        rank: in the order of making ready: what a short budget can do without comes last.
    """

    name: str
    meaning: str
    kind: str
    forwards: float
    make: Callable[[], Ready]
    rank: int = 0


class Workshop:
    """Makes units ready; what they hold lives until ``stack`` is closed.

    Args:
        objective: the function.
        count: directions of a block of responses, vectors of a block of products.
        memory: bytes for each way to evaluate.
        seed: of directions.
        stack: to enter contexts in.

    Attributes:
        loss: L(w) in the objective's dtype.
        forward_seconds: of one, as the determinism gate took.
        noise: rounding noise of the loss, by dtype.
    """

    def __init__(self, objective: Objective, count: int, memory: int | None, seed: int, stack: ExitStack) -> None:
        self.objective, self.count, self.memory, self._stack = objective, count, memory, stack
        self.dtype = objective.dtype
        stack.enter_context(exact_arithmetic(self.dtype))
        self.replica = objective.replica(self.dtype)
        start = now()
        self.loss = unperturbed_loss(self.replica)
        self.forward_seconds = (now() - start) / self.replica.gate
        self.replica.reset()
        self._rounding = rounding_model(self.replica)
        self.directions = Directions(objective, count, seed=seed)
        self._seeds = itertools.count(seed + 1)
        points = 2 * len(RADII) + 1
        self._few = count if points * count * self.forward_seconds < _SOON else 1

    def noise(self, dtype: torch.dtype) -> float:
        """Rounding noise of a loss in a dtype, or in the model's own where that is wider spaced."""
        return self._rounding * max(1.0, torch.finfo(dtype).eps / torch.finfo(self.dtype).eps)

    def units(self) -> Iterator[Unit]:
        """All units, in order."""
        yield Unit(FORWARD, "L(w) over all batches, without gradients", "", 2, self._within(self._forward))
        yield Unit(GRADIENT, "gradient of L, its forward included", "", 8, self._within(self._gradient))
        yield from self._responses()
        yield from self._forms()
        yield from self._products()
        yield Unit(PERTURB, "w + r d written to a second copy, d drawn anew", "", 1, self._within(self._perturb))
        yield Unit(COPY, "w written to a second copy: the least that moving it takes", "", 1, self._within(self._copy))

    # ------------------------------------------------------------------ forward, gradient, weights

    def _plain(self) -> AbstractContextManager[None]:
        return plain_arithmetic(self.dtype)

    def _within(self, make: Callable[[], Ready]) -> Callable[[], Ready]:
        """``make`` in the model's own arithmetic, whatever evaluators are open."""

        def made() -> Ready:
            with self._plain():
                return make()

        return made

    def _forward(self) -> Ready:
        return Ready(self.replica.loss, self._plain, loss=float(self.replica.loss()), dtype=self.dtype)

    def _gradient(self) -> Ready:
        return Ready(self.replica.gradient, self._plain, loss=self.replica.loss_and_gradient()[0], dtype=self.dtype)

    def _scratch(self) -> tuple[list[Tensor], list[Tensor], int]:
        base = self.replica.base
        scratch = [torch.empty_like(tensor) for tensor in base]
        return base, scratch, sum(tensor.nbytes for tensor in (*base, *scratch))

    def _perturb(self) -> Ready:
        base, scratch, moved = self._scratch()
        displacement = Displacement(base, scratch)
        radius = float(RADII[-1])

        def run() -> None:
            displacement.select(self.directions.with_seed(next(self._seeds)), 0)
            displacement.write(radius)

        run()
        squares = (float((a.double() - b.double()).square().sum()) for a, b in zip(scratch, base, strict=True))
        length = radius * self.directions.length(0)
        values = np.array([math.sqrt(math.fsum(squares)) / length if length else 1.0])
        return Ready(run, self._plain, values=values, expected=np.ones(1), moved=moved, dtype=self.dtype)

    def _copy(self) -> Ready:
        base, scratch, moved = self._scratch()

        def run() -> None:
            torch._foreach_copy_(scratch, base)

        return Ready(run, self._plain, moved=moved, dtype=self.dtype)

    # ------------------------------------------------------------------ responses

    def _responses(self) -> Iterator[Unit]:
        meaning = f"one direction at one radius, of {self._few} x {len(RADII)} in a call; directions drawn anew"
        each = 2.0 * len(RADII) * self._few
        for precision in ("float64", "float32"):
            for path in ("loop", "vmap"):
                cost = (2 if precision == "float64" else 1) * each * (2 if path == "loop" else _BATCHED)
                make = partial(self._subtracted, precision, path)
                yield Unit(f"even response: {precision}, {path}", meaning, "response", cost, make, 3 * (path == "vmap"))
        products: dict[str, Products] = {"difference": "float32", "difference-bf16": "bfloat16"}
        for rank, (name, rounded) in enumerate(products.items(), start=1):
            yield Unit(f"even response: {name}", meaning, "response", 6 * each, partial(self._propagated, rounded), rank)

    def _subtracted(self, precision: Literal["float64", "float32"], path: Literal["loop", "vmap"]) -> Ready:
        dtype = DTYPES[precision]
        evaluator = self._stack.enter_context(
            Evaluator(self.objective, dtype, path=PathChoice(path, 1, {}, "asked for"), gate=False, memory=self.memory)
        )
        remark = ""
        if path == "vmap":
            evaluator.choice, remark = self._batched(evaluator)
        return self._response(evaluator, dtype, remark)

    def _batched(self, evaluator: Evaluator) -> tuple[PathChoice, str]:
        """Batches of as many directions as fit in memory; raises where one does not."""
        points, width = 2 * len(RADII) + 1, torch.finfo(evaluator.dtype).bits // 8
        with plain_arithmetic(evaluator.dtype):
            each = points * (3 * self.objective.size * width + activation_bytes(evaluator.replica))
        limit = self.memory or available_memory(self.objective.device) // 2
        size = min(self._few, limit // each)
        if size < 1:
            raise ValueError(f"{points} copies of parameters and activations take {each / 2**20:.3g} MiB, above the memory given")
        return PathChoice("vmap", size, {}, "asked for"), f"{counted(size, 'direction')} at a time"

    def _propagated(self, products: Products) -> Ready:
        evaluator = DifferenceEvaluator(self.objective, products=products, memory=self.memory)
        self._stack.enter_context(evaluator)
        with plain_arithmetic(torch.float64):
            choice = evaluator.choose(self.directions, RADII.tolist())
        ready = self._response(evaluator, torch.float32, f"{choice.name}: {choice.reason}")
        ready.tolerance = _CLOSE if products == "float32" else _ROUGH
        return ready

    def _response(self, evaluator: Evaluator | DifferenceEvaluator, dtype: torch.dtype, remark: str) -> Ready:
        radii, own = RADII.tolist(), dtype if isinstance(evaluator, Evaluator) else torch.float64
        indices = range(self._few)

        def run() -> object:
            return evaluator.responses(self.directions.with_seed(next(self._seeds)), indices, radii)

        with plain_arithmetic(own):
            even, _, base = evaluator.responses(self.directions, indices, radii)
        return Ready(
            run,
            lambda: plain_arithmetic(own),
            items=even.size,
            loss=float(base[0]),
            values=even,
            absolute=4 * ROUNDINGS * self.noise(dtype) if isinstance(evaluator, Evaluator) else 0.0,
            remark=remark,
            dtype=own,
        )

    # ------------------------------------------------------------------ quadratic forms

    def _forms(self) -> Iterator[Unit]:
        words = f"d'Hd of one direction, of {self._few} in a call"
        cost = 6.0 * self._few + 60
        yield Unit("quadratic form: exact", words, "form", 12.0 * self._few, self._exact, 1)
        yield Unit("quadratic form: two forwards", f"{words}, set-up included", "form", cost, self._two_forwards, 2)

    def _exact(self) -> Ready:
        evaluator = self._stack.enter_context(DifferenceEvaluator(self.objective, memory=self.memory))
        indices = range(self._few)

        def run() -> object:
            return evaluator.derivatives(self.directions.with_seed(next(self._seeds)), indices, [0.0])

        with plain_arithmetic(torch.float64):
            choice = evaluator.choose(self.directions, [0.0])
            curvature = evaluator.derivatives(self.directions, indices, [0.0])[1][0]
        if evaluator.handling.frozen:
            raise ValueError(f"decisions of the forward depend on the weights: {', '.join(evaluator.handling.frozen)}")
        words = f"{choice.name}: {choice.reason}"
        return Ready(run, lambda: plain_arithmetic(torch.float64), len(indices), evaluator.base, curvature, remark=words)

    def _two_forwards(self) -> Ready:
        chosen = [self.directions[index] for index in range(self._few)]
        directions = Directions.given(self.objective, chosen, scale="none") if self._few < self.count else self.directions

        def run() -> object:
            return quadratic_forms(self.objective, directions, path="forwards")

        found = quadratic_forms(self.objective, directions, path="forwards")
        size = math.sqrt(float(np.mean(found.curvature**2))) or 1.0
        error = float(np.max(found.error)) if found.error is not None else 0.0
        return Ready(
            run,
            self._plain,
            items=self._few,
            loss=found.base,
            values=found.curvature,
            tolerance=max(_CLOSE, 3 * error / size),
            remark=found.path.reason,
            dtype=torch.promote_types(self.dtype, torch.float32),
        )

    # ------------------------------------------------------------------ products

    def _products(self) -> Iterator[Unit]:
        block, chosen = self._vectors(), "path chosen by measuring"
        plain = self._within(self._double_backward)
        one, several = partial(self._hessian, 1), partial(self._hessian, block)
        yield Unit("Hessian product: torch double backward", "H v of one vector, graph built anew", "form", 20, plain, 1)
        yield Unit("Hessian product: one vector", f"H v, {chosen}", "form", 60, one, 1)
        if block > 1:
            words = f"H v of one of {block} vectors at a time, {chosen}"
            yield Unit(f"Hessian product: block of {block}", words, "form", 30.0 * block, several, 2)
        if self.objective.criterion is not None:
            yield Unit("GGN product: one vector", f"G v, {chosen}", "gauss-newton", 60, self._gauss_newton, 1)

    def _vectors(self) -> int:
        """Vectors of a block: as many as were asked for and an eighth of the memory holds."""
        limit = (self.memory or available_memory(self.objective.device) // 2) // 8
        return max(1, min(self.count, limit // (8 * self.objective.size)))

    def _rows(self, count: int, dtype: torch.dtype) -> Tensor:
        """Directions as rows ``[count, D]``."""
        return torch.cat([part.reshape(count, -1) for part in self.directions.block(range(count), dtype)], 1).contiguous()

    def _double_backward(self) -> Ready:
        layout = Layout(self.objective.names, [tensor.shape for tensor in self.objective.base.values()])
        rows = self._rows(1, self.dtype)
        vector = [part[0] for part in layout.views(rows)]
        products = double_backward(self.replica, vector)
        loss, found = products()
        values = np.array([_dot(found, vector)])
        absolute = _CANCELLED * torch.finfo(self.dtype).eps * norm(found) * norm(vector)
        words = "loss, gradient with create_graph=True, gradient of its product with v; in the arithmetic of the others"
        return Ready(products, self._plain, 1, loss, values, absolute=absolute, remark=words, dtype=self.dtype)

    def _operator(self, matrix: str) -> CurvatureOperator:
        operator = ggn(self.objective, memory=self.memory) if matrix == "ggn" else hessian(self.objective, memory=self.memory)
        self._stack.callback(operator.release)
        return operator

    def _hessian(self, count: int) -> Ready:
        if not hasattr(self, "_held"):
            self._held = self._operator("hessian")
        return self._product(self._held, count)

    def _gauss_newton(self) -> Ready:
        ready = self._product(self._operator("ggn"), 1)
        assert ready.values is not None
        try:
            expected = self._gauss_newton_form()
        except Exception as error:  # whatever a criterion does twice: the products are symmetric all the same
            ready.values, ready.remark = None, f"{ready.remark}; not compared ({type(error).__name__})"
            return ready
        ready.expected = np.array([expected])
        return ready

    def _product(self, operator: CurvatureOperator, count: int) -> Ready:
        rows = self._rows(count, operator.dtype)
        found = operator.rows(rows)
        values = (found.double() * rows.double()).sum(1).cpu().numpy()
        choice = operator.choice
        assert choice is not None
        words = f"{choice.name}: {choice.reason}"
        return Ready(
            lambda: operator.rows(rows),
            operator.session,
            count,
            values=values,
            tolerance=max(_CLOSE, 10 * choice.error),
            absolute=float(_CANCELLED * torch.finfo(operator.dtype).eps * (found.norm(dim=1) * rows.norm(dim=1)).max()),
            remark=words,
            peak=choice.peak,
            dtype=operator.dtype,
        )

    def _gauss_newton_form(self) -> float:
        """The form v'G v of the first direction: the criterion's curvature along a difference of outputs, in float64."""
        with exact_arithmetic(torch.float64):
            program = Program(self.objective, torch.float64)
            steps = [part[0] for part in program.layout.views(self._rows(1, torch.float64))]
            total = 0.0
            for batch, weight in enumerate(program.weights):
                moved = [
                    program.outputs(batch, [w + sign * _STEP * d for w, d in zip(program.leaves, steps, strict=True)]).detach()
                    for sign in (1.0, -1.0)
                ]
                tangent = (moved[0] - moved[1]) / (2 * _STEP)
                outputs = program.outputs(batch).detach().requires_grad_(True)
                with torch.enable_grad():
                    slope = torch.autograd.grad(program.criterion(batch)(outputs), outputs, create_graph=True)[0]
                    second = torch.autograd.grad((slope * tangent).sum(), outputs, materialize_grads=True)[0]
                total += weight * float((second * tangent).sum())
        return total


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return math.fsum(float((a.double() * b.double()).sum()) for a, b in zip(left, right, strict=True))
