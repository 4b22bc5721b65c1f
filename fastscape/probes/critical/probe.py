"""The critical sharpness: how far along an update the loss falls, in a handful of forwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

import torch

from fastscape._checks import counted, flag, positive, real, shown
from fastscape._keeping import keeps_result
from fastscape.evaluation.losses import checked_dtype
from fastscape.objective.objective import Objective, checked_objective
from fastscape.probes.critical.result import CriticalSharpnessResult
from fastscape.probes.critical.run import CriticalRun, Goals
from fastscape.probes.critical.update import AnyUpdate, Asked
from fastscape.runs.optimizers import AnyOptimizer
from fastscape.runs.progress import Progress
from fastscape.runs.run import Work, settled

_OPENING = 14  # forwards before the first step: two of a gradient, the gate, the rounding of the loss


class CriticalKeywords(Work, total=False):
    """Keywords beside those of the update and the search."""

    precision: str | None
    progress: Callable[[Progress], None] | None


@keeps_result
def critical_sharpness(
    objective: Objective,
    update: AnyUpdate = None,
    *,
    optimizer: AnyOptimizer | str | Path | None = None,
    relative_to: Objective | None = None,
    guess: float | None = None,
    tolerance: float = 0.1,
    curvature: bool = True,
    **keywords: Unpack[CriticalKeywords],
) -> CriticalSharpnessResult:
    r"""Smallest step along an update at which the loss exceeds L(w), and the curvature that it amounts to.

    .. math:: \eta_c = \min\{\eta > 0 : L(w + \eta u) > L(w)\}, \qquad \lambda_c = 2 / \eta_c

    With :math:`u = -g` a quadratic loss has :math:`\lambda_c = g^\top H g / g^\top g`, which is :math:`\lambda_1` on its top
    eigenvector: gradient descent at a rate above :math:`2 / \lambda_c` raises the loss. For the step of an optimizer, divided by
    its learning rate, :math:`\eta_c` is the rate at which this step would raise it, and :math:`\lambda_c` compares with 2 / rate.

    From a guess the step is doubled or halved until the loss exceeds L(w) at one end and not at the other, then bisected. A
    rise between two steps that falls back is not seen. Between the ends :math:`(L(w + \eta u) - L(w)) / \eta` is taken to be
    linear, exact for a quadratic loss; the interval is over the samples, whose losses at w + eta u and at w are paired. Signs
    within rounding end the bisection.

    Args:
        objective: the loss, taken as it was trained (:meth:`fastscape.Objective.trained`).
        update: u, along which w + eta u moves: tensors by parameter name (absent ones stay), a tensor ``[D]`` in the order of
            ``objective.names``, or a pair of state dicts (before, after), whose difference it is; ``None`` for the optimizer's,
            or without one for the negative gradient.
        optimizer: a ``torch.optim`` optimizer, its state or a file: u is the step that it would take from its state and the
            gradient of all data, over its learning rate, without gradient clipping. It is made on copies.
        relative_to: another objective at the same weights whose gradient is followed, by the optimizer or directly, while the
            losses are those of ``objective``.
        guess: first step in units of u, such as the last :math:`\eta_c`; ``None`` for the optimizer's rate, 1 for a given
            update, and a hundredth of :math:`\|w\|` along a gradient.
        tolerance: half the width of the bracket over its middle.
        curvature: also measure :math:`u^\top H u / u^\top u` and :math:`g^\top u`, by difference propagation or two forwards.
        seed: has no effect; nothing is random.
        precision: ``"float64"``, ``"float32"``, or ``None`` for the model's dtype.
        budget: seconds, or ``"60s"``; what is known then is returned.
        progress: called after every step with a :class:`fastscape.Progress`.
        name, step: of the checkpoint.
        run: precision, budget, name, step, progress, or some of them, in a :class:`fastscape.Run`.

    Returns:
        A :class:`CriticalSharpnessResult`; its ``outcome`` says where there is no :math:`\eta_c`. Ctrl-C gives what is known.

    Raises:
        TypeError, ValueError: naming the argument, before any work is done; an update that is zero or not finite.
        BudgetError: a budget too small for one step (names what is enough).
        NondeterministicLossError: two evaluations at w differ (at the first call with an objective and dtype).
        PartialResultError: the model raised at a step; its ``partial`` holds those before.

    Cost: 5 to 6 forwards from a guess within a factor of 2 at a tolerance of 0.1, that at w included, and about 6 at the first
    call with an objective; a gradient unless the update is given; for the curvature about ten forwards more.

    Source: Kalra et al., "A scalable measure of loss landscape curvature for analyzing the training dynamics of LLMs"
    (arXiv 2601.16979).

    Example:
        >>> import torch, fastscape as fs
        >>> model = torch.nn.Linear(4, 3)
        >>> objective = fs.Objective(model, [(torch.ones(2, 4), torch.tensor([0, 2]))],
        ...                          criterion=torch.nn.functional.cross_entropy)
        >>> found = fs.critical_sharpness(objective, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        >>> found.bracket[0] <= found.eta_c.value <= found.bracket[1], found.lambda_c.value < found.critical
        (True, True)
    """
    work = settled(critical_sharpness, keywords)
    clock = work.clock()
    objective = checked_objective(objective).trained()
    if not (real(tolerance) and 0 < tolerance < 1):
        raise ValueError(f"tolerance must lie between 0 and 1, got {shown(tolerance)}; 0.1 takes three bisections")
    goals = Goals(
        guess=None if guess is None else positive("guess", guess),
        tolerance=float(tolerance),
        curvature=flag("curvature", curvature),
        dtype=objective.dtype if work.precision is None else checked_dtype(work.precision),
    )
    asked = Asked.of(objective, update, optimizer, relative_to)
    settings: dict[str, Any] = {
        "guess": guess,
        "tolerance": goals.tolerance,
        "curvature": goals.curvature,
        "precision": work.precision,
        "update": None if update is None else type(update).__name__,
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "relative": relative_to is not None,
    }
    found = CriticalRun(objective, goals, clock, work.name, work.progress)
    with torch.inference_mode(False), clock.opening("step", _OPENING * len(objective.batches)):
        found.run(asked)
        result = found.result(settings, work.step)
    return found.work.whole(result, f"the critical sharpness of {work.name} failed after {counted(len(found.tried), 'step')}")
