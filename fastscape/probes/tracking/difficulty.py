"""Optimisation difficulty, summed up while a network trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Unpack, cast, get_args

import numpy as np
import torch
from torch import Tensor

from fastscape._checks import counted, flag, integer, one_of, real, shown
from fastscape._clock import now
from fastscape.curvature.flat import square
from fastscape.curvature.operator import ggn, hessian
from fastscape.curvature.paths import PathName
from fastscape.evaluation.arithmetic import measured_in
from fastscape.numerics.arrays import Array
from fastscape.objective.objective import Objective, checked_objective, untrained
from fastscape.probes.tracking.davidson import LeadingPair, RitzPairs, leading_pair
from fastscape.probes.tracking.difficulty_sum import RICHARDSON, difficulty, dimensionless
from fastscape.probes.tracking.result import DifficultyResult
from fastscape.runs.optimizers import AnyOptimizer, groups_of
from fastscape.runs.provenance import Provenance, objective_meta
from fastscape.runs.run import Seeded, settled

GradientKind = Literal["minibatch", "full"]
Square = Sequence[Tensor]  # norms by parameter, on their device: squared and summed when they are asked for


class DifficultyKeywords(Seeded, total=False):
    """Keywords of how products are made, and the run's name."""

    method: str | None
    memory: int | None
    name: str


class GradientSquares:
    """Squared norms of the gradients of a training run, step by step, on their device until they are asked for.

    Args:
        objective: whose model holds the gradients.
        kind: see :class:`Difficulty`.

    Attributes:
        given: whether any was passed in place of the gradients.
    """

    def __init__(self, objective: Objective, kind: GradientKind) -> None:
        self.objective, self.kind, self.given = objective, kind, False
        self._squares: list[float | Square] = []
        self._parameters: list[torch.nn.Parameter] = []  # looking them up takes as long as their norms
        self._full = math.nan  # ||g||^2 of the full data at the weights of the last call

    def add(self, given: float | Tensor | None) -> None:
        """Take in the gradient of the step just done: a squared norm, or what the model and the last weights hold.

        Raises:
            ValueError: no gradients.
        """
        self._squares.append(self._square(given))

    def _square(self, given: float | Tensor | None) -> float | Square:
        if given is not None:
            self.given = True
            return (given.detach().sqrt(),) if isinstance(given, Tensor) else float(given)
        if self.kind == "full":
            return self._full
        kept = [gradient for gradient in self._held() if gradient is not None]
        if not kept:
            raise ValueError(
                "the model must still have its gradients, got None in every .grad; call step() before zero_grad(), or pass "
                "gradient_squared="
            )
        with torch.no_grad():
            return torch._foreach_norm(kept, 2, dtype=torch.promote_types(kept[0].dtype, torch.float32))

    def at_weights(self) -> None:
        """Compute what the next step takes: the gradient of the full data at the weights that are."""
        if self.kind == "full":
            self._full = square(self.objective.gradient().values())

    def _held(self) -> list[Tensor | None]:
        """The last minibatch's, as the model has them."""
        if not self._parameters:
            known = dict(self.objective.model.named_parameters())
            self._parameters = [known[name] for name in self.objective.names]
        return [parameter.grad for parameter in self._parameters]

    def forget_parameters(self) -> None:
        """Look them up anew: a model may have got new ones."""
        self._parameters = []

    def minibatch(self) -> Tensor | None:
        """The last minibatch's gradient as one vector, where it is there."""
        parts = [gradient.detach().flatten() for gradient in self._held() if gradient is not None]
        return torch.cat(parts) if sum(map(len, parts)) == self.objective.size else None

    def fetched(self) -> Array:
        """Squares of all steps; what waits on a device is fetched."""
        for index, value in enumerate(self._squares):
            if not isinstance(value, float):
                self._squares[index] = math.fsum(float(norm) ** 2 for norm in value)
        return np.array(self._squares, dtype=np.float64)


class Difficulty:
    r"""Streaming sum :math:`O(w_0) = \sum_t \eta_t \|g_t\|^2 \|H_t\|_2` of one training run.

    Call :meth:`step` once with 0 before training and then after every ``optimizer.step()``, before the gradients are cleared and
    the learning rate changes. The gradient found at call t was taken at w_{t-1} and counts for step t - 1, and the spectral norm,
    every k-th call, is that of w_t, so that both factors belong to the same weights. Between them the norm is interpolated
    linearly; :attr:`DifficultyResult.discretisation` compares with every 2k-th.

    Args:
        objective: the loss whose Hessian is taken, as it was trained (:meth:`fastscape.Objective.trained`); it follows the
            weights of its model.
        every: k, calls between spectral norms.
        gradient: ``"minibatch"`` sums the norms of the gradients in ``.grad``, which exceed those of the full data on average,
            :math:`E\|g_B\|^2 = \|g\|^2 + \mathrm{tr}\,\Sigma / B`; ``"full"`` computes the objective's gradient at every step.
        tolerance: residual of the norm relative to it.
        operator: ``"hessian"`` or ``"ggn"``.
        warm: start from the Ritz pairs of the last norm; about half the products
            (:func:`fastscape.probes.tracking.davidson.leading_pair`).
        max_products: of one norm.
        method: of the products, see :func:`fastscape.hessian`; ``None`` to choose by measuring at the first norm.
        memory: bytes that products may hold.
        seed: of the random vectors.
        name: of the run.
        run: path, memory, seed, name, or some of them, in a :class:`fastscape.Run`.

    Attributes:
        norm_seconds: that the last spectral norm took, the choice of a path left out.

    Raises:
        TypeError, ValueError: bad arguments.

    Cost: at every step the norm of the gradients (40 µs for six tensors on a CPU), no synchronisation; every k steps 3 to 10
        products and a loss.

    Source: the descent lemma, Nesterov, "Introductory lectures on convex optimization" (2004), section 1.2.3.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        every: int = 10,
        gradient: GradientKind = "minibatch",
        tolerance: float = 1e-2,
        operator: Literal["hessian", "ggn"] = "hessian",
        warm: bool = True,
        max_products: int = 200,
        **keywords: Unpack[DifficultyKeywords],
    ) -> None:
        work = settled(Difficulty.__init__, keywords, name="run")
        self.objective = checked_objective(objective).trained()
        self.every = integer("every", every, 1)
        one_of("gradient", gradient, get_args(GradientKind))
        one_of("operator", operator, ("hessian", "ggn"))
        if not (real(tolerance) and 0 < tolerance < 1):
            raise ValueError(f"tolerance must lie in (0, 1), got {shown(tolerance)}")
        self.gradient, self.tolerance, self.operator, self.warm = gradient, float(tolerance), operator, flag("warm", warm)
        self.max_products = integer("max_products", max_products, 1)
        self.seed, self.name = integer("seed", work.seed, 0, 2**64), work.name
        self._path, self._memory = work.method, work.memory
        self._pairs: RitzPairs | None = None
        self._first = self._last = -1
        self._rates: list[float] = []
        self._gradients = GradientSquares(self.objective, gradient)
        self._nodes: list[tuple[int, LeadingPair, float]] = []
        self._seconds = 0.0
        self.norm_seconds = 0.0
        self._meta = Provenance()

    def step(
        self,
        step: int,
        *,
        lr: float | None = None,
        optimizer: AnyOptimizer | None = None,
        gradient_squared: float | Tensor | None = None,
        measure: bool | None = None,
    ) -> None:
        """Take in step ``step``: the gradient that led here, and every k-th time the spectral norm here.

        Args:
            step: optimizer steps done so far: 0 before training, then one more at every call.
            lr: learning rate of the step just done; ``None`` to read it from ``optimizer``.
            optimizer: with the learning rate in its first group.
            gradient_squared: ||g||^2 of the step just done, in place of the gradients in ``.grad``.
            measure: whether the norm is computed here; ``None`` for every k-th step.

        Raises:
            ValueError: a step that does not follow the last, no learning rate, or no gradients.
        """
        number = integer("step", step, 0)
        if self._first < 0:
            self._first = number
            self._meta = objective_meta(self.objective) | measured_in(self.objective, self.objective.dtype).meta
        elif number != self._last + 1:
            raise ValueError(f"step must be {self._last + 1}, one more than the last, got {number}; the sum runs over all steps")
        else:
            rate = _learning_rate(lr, optimizer)
            self._gradients.add(gradient_squared)
            self._rates.append(rate)
        self._last = number
        began = now()
        if gradient_squared is None:
            self._gradients.at_weights()
        if measure or (measure is None and (number - self._first) % self.every == 0):
            self._measure(number)
        self._seconds += now() - began

    def finish(self) -> DifficultyResult:
        """The spectral norm at the last weights, where it is not known yet, and the result."""
        if self._last >= 0 and (not self._nodes or self._nodes[-1][0] != self._last):
            self._measure(self._last)
        return self.result

    @property
    def result(self) -> DifficultyResult:
        """The sum so far.

        Raises:
            ValueError: no step was taken in.
        """
        if not self._nodes:
            raise ValueError("no spectral norm was computed yet: call step(0) before training and step(t) after every step")
        rates, squares = np.array(self._rates), self._gradients.fetched()
        nodes = np.array([node for node, _, _ in self._nodes])
        norms = np.array([abs(pair.value) for _, pair, _ in self._nodes])
        losses = np.array([loss for _, _, loss in self._nodes])
        found = difficulty(rates, squares, nodes - self._first, norms)
        ratio = dimensionless(found.cost, float(losses[0]), float(losses[-1]))
        return DifficultyResult(
            name=self.name,
            step=self._last,
            value=found.value,
            coarse=found.coarse,
            discretisation=found.discretisation,
            dimensionless=ratio,
            cost=found.cost,
            first_loss=float(losses[0]),
            last_loss=float(losses[-1]),
            gradient="given" if self._gradients.given else self.gradient,
            steps=self._first + np.arange(len(rates), dtype=np.float64),
            learning_rates=rates,
            gradient_squares=squares,
            nodes=nodes.astype(np.float64),
            sharpness=norms,
            residuals=np.array([pair.residual for _, pair, _ in self._nodes]),
            products=np.array([pair.products for _, pair, _ in self._nodes], dtype=np.float64),
            losses=losses,
            meta=self._meta
            | {
                "seed": self.seed,
                "every": self.every,
                "tolerance": self.tolerance,
                "operator": self.operator,
                "warm": self.warm,
                "path": self._path,
                "seconds": self._seconds,
            },
            notes=self._notes(found.value, found.discretisation, losses),
        )

    # ------------------------------------------------------------------ private

    def _measure(self, step: int) -> None:
        make = {"hessian": hessian, "ggn": ggn}[self.operator]
        with torch.inference_mode(False):
            matrix = make(self.objective, method=cast("PathName | None", self._path), memory=self._memory, distributed=False)
            if self._path is None:
                self._path = matrix.prepare(1).name
            began = now()
            pair = leading_pair(
                matrix.matmat,
                matrix.shape[0],
                recycled=self._pairs,
                probe=self._gradients.minibatch(),
                tolerance=self.tolerance,
                max_products=min(self.max_products, matrix.shape[0]),
                dtype=matrix.dtype,
                device=matrix.device,
                seed=self.seed,
                draw=len(self._nodes),
            )
        if self.warm:
            self._pairs = pair.pairs
        self._nodes.append((step, pair, self.objective.loss()))
        self.norm_seconds = now() - began
        self._gradients.forget_parameters()
        self._gradients.fetched()

    def _notes(self, value: float, error: float, losses: Array) -> tuple[str, ...]:
        notes = []
        which = {
            "minibatch": "minibatch gradients: E||g_B||^2 = ||g||^2 + tr Sigma / B, so that small batches raise O(w0)",
            "full": "gradients of all data of the objective",
        }
        notes.append("squared gradient norms as given" if self._gradients.given else which[self.gradient])
        if words := untrained(self.objective):
            notes.append(words)
        if value and error > 0.1 * abs(value):
            notes.append(
                f"O_k and O_2k differ by {error / abs(value):.0%}: the norm changes within {self.every} steps; lower every "
                f"(where it is smooth, the error of O_k is about {error / RICHARDSON:.2g})"
            )
        far = sum(not pair.converged for _, pair, _ in self._nodes)
        if far:
            notes.append(f"{counted(far, 'spectral norm')} not converged to {self.tolerance:g}: lower bounds; raise max_products")
        if not losses[-1] < losses[0]:
            notes.append("the loss has not fallen: no dimensionless difficulty")
        if self._last > self._nodes[-1][0]:
            notes.append(f"the norm after step {self._nodes[-1][0]} is taken as constant; call finish() for the last one")
        return tuple(notes)


def _learning_rate(lr: float | None, optimizer: AnyOptimizer | None) -> float:
    if lr is not None:
        return float(lr)
    groups = groups_of(optimizer)
    if not groups or "lr" not in groups[0]:
        raise ValueError("lr must be given, or an optimizer that has it; got neither")
    return float(groups[0]["lr"])
