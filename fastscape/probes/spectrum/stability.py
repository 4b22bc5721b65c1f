r"""Edge of stability: the sharpness beside the largest at which the optimizer's own step still contracts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, Unpack, cast

import numpy as np
import torch
from torch import Tensor

from fastscape._checks import counted, integer, one_of, real, shown
from fastscape._keeping import keeps_result
from fastscape.curvature.operator import CurvatureOperator, ggn, hessian
from fastscape.curvature.paths import PathName
from fastscape.numerics.estimate import Estimate
from fastscape.numerics.lanczos import extreme_pairs, least_capacity
from fastscape.numerics.spectra import Stability
from fastscape.numerics.student import mean_estimate
from fastscape.objective.objective import Objective, checked_objective, untrained
from fastscape.probes.spectrum.critical import relation
from fastscape.probes.spectrum.memory import BESIDE, room_for_basis
from fastscape.probes.spectrum.recursions import Recursion, recursion
from fastscape.runs.checkpoints import read_optimizer
from fastscape.runs.evaluations import Evaluations, opened
from fastscape.runs.optimizers import OptimizerState
from fastscape.runs.run import Resumed, Seeded, settled

Optimizer = torch.optim.Optimizer | OptimizerState | Mapping[str, Any]
Once = Callable[[int, Callable[[], float]], float]
_INACCURATE = 1e-2  # residual over eigenvalue above which float32 products have not told the eigenvalue
_UNKNOWN = 0.1  # above which there is none: the first blocks' value was up to 80 times too small in a small CNN


class Products(Protocol):
    """Interface that is needed of a curvature operator."""

    @property
    def shape(self) -> tuple[int, int]:
        """(D, D)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of its vectors."""
        ...

    @property
    def device(self) -> torch.device:
        """Of its vectors."""
        ...

    def matmat(self, vectors: Tensor, /) -> Tensor:
        """H V for V ``[D, K]``."""
        ...


@dataclass(frozen=True)
class Top:
    """Largest eigenvalue, with the norm of its residual ||H v - lambda v||, and whether time ended its computation."""

    value: float
    residual: float
    stopped: bool = False

    @property
    def resolved(self) -> float:
        """The value where its residual is at most a tenth of it, else NaN."""
        return math.nan if self.residual > _UNKNOWN * abs(self.value) else self.value


class Preconditioned:
    r""":math:`P^{-1/2} (H + \mathrm{diag}(wd)) P^{-1/2}`, with the eigenvalues of :math:`P^{-1} (H + \mathrm{diag}(wd))`.

    Args:
        products: H.
        preconditioner: P, positive ``[D]``; infinite for what does not move. ``None`` for the identity.
        weight_decay: wd, a number or ``[D]``.
    """

    def __init__(self, products: Products, preconditioner: Tensor | None, weight_decay: Tensor | float) -> None:
        self.products, self.shape, self.dtype, self.device = products, products.shape, products.dtype, products.device
        self._scale = None if preconditioner is None else self._column(preconditioner.rsqrt())
        self._decay = self._column(weight_decay) if isinstance(weight_decay, Tensor) else weight_decay

    def _column(self, values: Tensor) -> Tensor:
        return values.to(self.device, self.dtype)[:, None]

    def matmat(self, vectors: Tensor) -> Tensor:
        """The product with V ``[D, K]``; one product of H."""
        scaled = vectors if self._scale is None else self._scale * vectors
        found = self.products.matmat(scaled) + self._decay * scaled
        return found if self._scale is None else self._scale * found


class StabilityKeywords(Seeded, Resumed, total=False):
    """Keywords of how products are made."""

    memory: int | None
    method: PathName | None


@keeps_result
def edge_of_stability(
    objective: Objective,
    optimizer: Optimizer | str | Path,
    *,
    operator: Literal["hessian", "ggn"] = "hessian",
    tolerance: float = 1e-3,
    max_products: int = 300,
    **keywords: Unpack[StabilityKeywords],
) -> Stability:
    r"""Sharpness relative to the critical value of an optimizer, read from its state.

    .. math:: \text{ratio} = \lambda_1\bigl(P^{-1/2} (H + wd) P^{-1/2}\bigr) \big/ a^*, \qquad
              \text{batch sharpness} = \mathrm{E}_B\left[\frac{g_B^T H_B g_B}{\|g_B\|^2}\right]

    with P the preconditioner of Adam, RMSprop ... (1 for SGD), wd the weight decay that enters as a gradient, and a* the
    curvature at which the optimizer's recursion stops contracting (:mod:`fastscape.probes.spectrum.critical`): 2 / eta for
    gradient descent, 38 / eta for Adam with beta_1 = 0.9. A ratio near 1 is the edge of stability of *full-batch* training.
    Minibatch training stays below it and is judged by the batch sharpness, for which the batches of the objective must have
    the size of the training's. The loss is the one that was trained (:meth:`fastscape.Objective.trained`): batch norm takes
    the statistics of each batch. Asked for running ones, there is no ratio.

    Args:
        objective: the loss at the weights that the optimizer has reached.
        optimizer: a ``torch.optim`` optimizer (SGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad, Adadelta), its
            ``state_dict()``, or a torch file of it. A state without names holds the model's parameters in order.
        operator: ``"hessian"`` or ``"ggn"``.
        tolerance: residual of the eigenvalue relative to it.
        max_products: products per eigenvalue at most; what is known then is returned with its residual.
        seed: of the starting vector.
        memory: bytes that the call may take, half of them the basis's.
        method: of the products, see :func:`fastscape.hessian`.
        resume: a folder for a journal of all products, as for :func:`fastscape.spectrum`.
        run: seed, memory, method, resume, or some of them, in a :class:`fastscape.Run`.

    Returns:
        A :class:`Stability` in units of the loss over squared parameters (preconditioned: loss over squared steps). The ratio is
        NaN, and ``reason`` says why, where it would mean nothing: before and in the first steps of an adaptive optimizer, at
        learning rate 0, where the eigenvalue's residual exceeds a tenth of it (then ``at_least`` bounds the ratio).

    Raises:
        TypeError, ValueError: an optimizer that is unknown, maximizes, or does not hold the probed parameters; a ``resume``
            folder of another run.

    What ends it midway leaves nothing: an eigenvalue that has not converged is no ratio. ``fs.spectrum(optimizer=)`` keeps all.

    Cost: 20 to 100 products for each of the raw and the preconditioned eigenvalue; a gradient and a product per batch.

    Source: Cohen et al. (2021, 2022); Andreyev & Beneventano, "Edge of stochastic stability" (2024), for the batch sharpness.
    """
    work = settled(edge_of_stability, keywords)
    memory, method = work.memory, cast("PathName | None", work.method)
    objective = checked_objective(objective)
    one_of("operator", operator, ("hessian", "ggn"))
    if not (real(tolerance) and 0 < tolerance < 1):
        raise ValueError(f"tolerance must lie in (0, 1), got {shown(tolerance)}")
    integer("seed", work.seed, 0, 2**64)
    integer("max_products", max_products, 1)
    state = read_optimizer(Path(optimizer)) if isinstance(optimizer, (str, Path)) else optimizer
    moves = recursion(objective, state)
    settings = {"operator": operator, "seed": work.seed, "method": method}
    with opened(work.resume, "edge_of_stability", [lambda: objective], settings) as evaluations:
        function = objective.trained()
        if evaluations.journal is not None:
            evaluations.same_loss(function.loss())

        basis = memory
        if memory is not None:
            room = room_for_basis(function, memory, least_capacity(function.size, 1, 1, "largest"), 1)
            memory, basis = memory - room, room - BESIDE * function.size * (8 if function.dtype == torch.float64 else 4)

        def top(matrix: Products) -> Top:
            return largest(matrix, tolerance=tolerance, max_products=max_products, seed=work.seed, memory=basis)

        found = _with_products(function, moves, operator, memory, method, top, evaluations)
        return dataclasses.replace(found, notes=(*found.notes, *evaluations.notes))


def _with_products(
    objective: Objective,
    moves: Recursion,
    operator: str,
    memory: int | None,
    method: PathName | None,
    top: Callable[[Products], Top],
    evaluations: Evaluations,
) -> Stability:
    make = {"hessian": hessian, "ggn": ggn}[operator]
    whole: Products = make(objective, memory=memory, method=method, distributed=False)
    if isinstance(whole, CurvatureOperator):
        whole.recorded(evaluations)

    def products(of: Objective) -> Products:
        """Of one batch, by the path that was chosen on all: another choice for each would cost more than the products."""
        chosen = whole.choice.name if isinstance(whole, CurvatureOperator) and whole.choice is not None else method
        return make(of, memory=memory, method=cast(PathName | None, chosen), distributed=False)

    def once(index: int, number: Callable[[], float]) -> float:
        value = evaluations.taken("batch sharpness", (index, moves.weight_decay), lambda: {"value": number()})["value"]
        return float(value)

    return stability(objective, moves, products, top, whole=whole, once=once)


def stability(
    objective: Objective,
    moves: Recursion,
    products: Callable[[Objective], Products],
    top: Callable[[Products], Top],
    *,
    whole: Products | None = None,
    raw: Top | None = None,
    stop: Callable[[], bool] | None = None,
    once: Once = lambda _, make: make(),
) -> Stability:
    """The stability of one recursion, from products with the Hessian of any objective and a solver for the largest eigenvalue.

    Args:
        objective: the loss.
        moves: the optimizer's recursion.
        products: makes the operator of an objective.
        top: largest eigenvalue of a symmetric operator.
        whole: the operator of ``objective`` where it is there already.
        raw: largest eigenvalue of H without weight decay where it is known.
        stop: asked before the products of every batch; true leaves out those that are not done.
        once: gives the number of a batch, by its index, from a journal or from what makes it.
    """
    whole = products(objective) if whole is None else whole
    decay = moves.weight_decay
    if raw is not None and not isinstance(decay, Tensor):
        sharpness = Top(raw.value + decay, raw.residual)
    else:
        sharpness = top(Preconditioned(whole, None, decay))
    judged, preconditioned = sharpness, None
    if moves.preconditioner is not None:
        judged = top(Preconditioned(whole, moves.preconditioner, decay))
        preconditioned = None if judged.stopped and math.isnan(judged.value) else judged.resolved
    other = untrained(objective)
    batch, words = (None, ()) if other else batch_sharpness(objective, products, decay, stop, once)
    reason = other or moves.reason or _unresolved(judged)
    ratio = math.nan if reason else judged.value / moves.critical
    resolved = other or moves.reason or math.isnan(judged.value)
    return Stability(
        optimizer=moves.optimizer,
        learning_rate=moves.learning_rate,
        critical=moves.critical,
        sharpness=sharpness.resolved,
        preconditioned=preconditioned,
        ratio=ratio,
        eta_lambda=math.nan if other or not moves.learning_rate else moves.learning_rate * sharpness.resolved,
        residual=judged.residual,
        batch_sharpness=batch,
        notes=(*_verdict(ratio, judged, moves.critical, reason), *words, *moves.notes, *getattr(whole, "notes", ())),
        reason=reason,
        at_least=judged.value / moves.critical if reason and not resolved else math.nan,
    )


def _unresolved(judged: Top) -> str:
    """Reason why an eigenvalue gives no ratio; empty where it does."""
    if math.isnan(judged.value):
        return (
            "the run ended before the largest eigenvalue was computed"
            if judged.stopped
            else "no largest eigenvalue: a product is not finite"
        )
    if math.isnan(judged.resolved):
        return f"the residual is {_share(judged):.0%} of the eigenvalue: {_remedy(judged)}"
    return ""


def _share(judged: Top) -> float:
    return judged.residual / abs(judged.value) if judged.value else math.inf


def _remedy(judged: Top) -> str:
    return "time ran out" if judged.stopped else "raise max_products, or use dtype=torch.float64"


def batch_sharpness(
    objective: Objective,
    products: Callable[[Objective], Products],
    weight_decay: Tensor | float = 0.0,
    stop: Callable[[], bool] | None = None,
    once: Once = lambda _, make: make(),
) -> tuple[Estimate | None, tuple[str, ...]]:
    r"""Mean over batches of :math:`g_B^T H_B g_B / \|g_B\|^2` of the loss with weight decay, each batch counting once.

    ``None`` for a single batch, or where ``stop`` said so before two. Batches without a finite ratio (no gradient) are counted
    in the notes and left out.

    Cost: one gradient and one product per batch.
    """
    count = len(objective.batches)
    if count < 2:
        return None, ("one batch: no batch sharpness",)
    found: list[float] = []
    for index in range(count):
        if stop is not None and stop():
            break
        found.append(once(index, partial(_along_gradient, objective, index, products, weight_decay)))
    words: tuple[str, ...] = ()
    if len(found) < count:
        if len(found) < 2:
            return None, ("the run ended before the batch sharpness was computed",)
        words = (f"batch sharpness of {len(found)} of {count} batches: the run ended before the others",)
    ratios = np.array(found)
    kept = ratios[np.isfinite(ratios)]
    if len(kept) < len(found):
        words += (f"{counted(len(found) - len(kept), 'batch')} without a finite batch sharpness left out",)
    return mean_estimate(kept, method=""), words


def _along_gradient(
    whole: Objective, index: int, products: Callable[[Objective], Products], weight_decay: Tensor | float
) -> float:
    objective = whole.on(index)
    gradient = torch.cat([tensor.flatten() for tensor in objective.gradient().values()])
    weights = torch.cat([tensor.flatten() for tensor in objective.base.values()])
    decay = weight_decay.to(weights.dtype) if isinstance(weight_decay, Tensor) else weight_decay
    matrix = products(objective)
    along = (gradient + decay * weights).to(matrix.dtype)
    length = float(torch.linalg.vector_norm(along.double()))
    if not (math.isfinite(length) and length > 0):
        return math.nan
    unit = (along.double() / length).to(matrix.dtype)[:, None]  # a late gradient's square underflows in half precision
    product = Preconditioned(matrix, None, weight_decay).matmat(unit)
    return float((unit.double() * product.double()).sum() / unit.double().square().sum())


def largest(
    matrix: Products,
    *,
    tolerance: float,
    max_products: int,
    seed: int,
    block: int = 1,
    memory: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> Top:
    """Largest eigenvalue of a symmetric operator and its residual, by block Lanczos.

    NaN where a product is not finite, or where ``stop`` is true before the first.
    """
    if stop is not None and stop():
        return Top(math.nan, math.nan, stopped=True)
    wide = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    found = extreme_pairs(
        matrix.matmat,
        matrix.shape[0],
        1,
        block=block,
        tolerance=tolerance,
        which="largest",
        max_products=max_products,
        memory=memory,
        dtype=wide,
        device=matrix.device,
        seed=seed,
        stop=None if stop is None else _after_first(stop),
    )
    if found.nan_products or not len(found.largest.values):
        return Top(math.nan, math.nan)
    stopped = found.stop_reason == "stopped"
    return Top(float(found.largest.values[0]), float(found.largest.residuals[0]), stopped)


def _after_first(stop: Callable[[], bool]) -> Callable[[], bool]:
    """The question from its second time on: the first block is paid for by whoever asked before."""
    asked = iter((False,))
    return lambda: next(asked, True) and stop()


def _verdict(ratio: float, judged: Top, critical: float, reason: str) -> tuple[str, ...]:
    """Place of the ratio, or why there is none, and what its eigenvalue lacks."""
    if reason:
        return (f"unknown: {reason}",)
    words = [f"{relation(ratio, judged.residual / critical)}; minibatch training is judged by its batch sharpness"]
    if judged.residual > _INACCURATE * abs(judged.value):
        words.append(f"the residual is {_share(judged):.1%} of the eigenvalue: {_remedy(judged)}")
    return tuple(words)
