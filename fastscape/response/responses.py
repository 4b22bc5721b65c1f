"""Even and odd finite-scale responses of the loss, with their noise."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastscape._checks import check_progress, counted
from fastscape._clock import now
from fastscape._keeping import keeps_result
from fastscape._renamed import METHOD, renamed
from fastscape._state import torch_threads
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.differences.propagation import MissingRuleError
from fastscape.differences.tracing_errors import UntraceableError
from fastscape.directions import Directions, checked_directions
from fastscape.evaluation.arithmetic import measured_in
from fastscape.evaluation.losses import checked_radii
from fastscape.evaluation.trial import PathChoice
from fastscape.objective.objective import Objective, checked_objective
from fastscape.response.blocks import Made, evaluated, here, in_units, journal_of, loss_at, planned_in
from fastscape.response.precision import (
    AnyPath,
    Noise,
    Precision,
    PrecisionChoice,
    checked_precision,
    choose_precision,
    chosen_by,
    measure_noise,
    refused_precision,
    responder,
    way_of,
)
from fastscape.response.shared import hired, shared
from fastscape.response.standouts import with_largest
from fastscape.runs.anytime import Anytime
from fastscape.runs.journal import Journal
from fastscape.runs.making import Making, check_executor, made, making
from fastscape.runs.plan import Plan, same_as_planned
from fastscape.runs.ranks import Distributed


class Repeated(TypedDict, total=False):
    """Keywords that repeat a call, or go on with it."""

    plan: Plan | Responses | None
    resume: str | Path | None
    distributed: Distributed
    executor: Any


class PrecisionWarning(UserWarning):
    """Some of the requested scales are rounding noise in the requested precision."""


@dataclass(frozen=True)
class Responses:
    r"""Responses of a loss to symmetric perturbations, arrays ``[K radii, N directions]`` in float64.

    Attributes:
        even: :math:`\Delta_2 = L(w + \epsilon d) - 2 L(w) + L(w - \epsilon d)`, signed.
        odd: :math:`\Delta_1 = (L(w + \epsilon d) - L(w - \epsilon d)) / 2`.
        base: L(w).
        radii: the radii as given, ``[K]``.
        eps_abs: distances in parameter space, ``radii * ||d||`` (its mean over directions under ``scale="none"``).
        eps_rel: ``eps_abs / ||w||``.
        weight_norm: ||w||.
        noise: RMS rounding error of ``even`` at each radius, ``[K]``.
        trusted: radii where at least 90 % of the directions stand 10 times above the noise, ``[K]`` bool. An even response that
            is exactly zero counts as such beside an odd one that is not, of a loss that is linear there, and where the gradient
            is exactly zero too; else the direction may leave out what moves the loss, or the loss be saturated.
        precision: the arithmetic: ``"float64"`` or ``"float32"`` subtraction, or ``"difference"`` propagation.
        reason: why this one.
        fallbacks: operations without a difference rule, which were evaluated locally in float64: name -> calls.
        frozen: decisions of the forward that depend on the weights and were taken as at w: name -> calls.
        narrow: an operation of the model that is narrower than float64 and sets the noise; empty if none.
        path: the evaluation path, its measured alternatives and the reason.
        evaluations: loss evaluations done, calibration included.
        seconds: wall time.
        arithmetic: what was measured, in one sentence, such as ``"float64, without your autocast to bfloat16"``.
        notes: what to beware of, in words.
        plan: what was chosen by timing and by free memory, to repeat it.
        stop_reason: ``"complete"``, ``"interrupted"`` or ``"failed: ..."``, with the first of the N directions.
        workers: ``"workers"``, who evaluated, where several processes did; ``"bitwise"``, false where the last bits may not be
            those of the plan; ``"lanes"``, directions at a time since memory ran out.
        law: what the directions are drawn from.
    """

    even: NDArray[np.float64]
    odd: NDArray[np.float64]
    base: float
    radii: NDArray[np.float64]
    eps_abs: NDArray[np.float64]
    eps_rel: NDArray[np.float64]
    weight_norm: float
    noise: NDArray[np.float64]
    trusted: NDArray[np.bool_]
    precision: str
    reason: str
    fallbacks: dict[str, int]
    frozen: dict[str, int]
    narrow: str
    path: PathChoice
    evaluations: int
    seconds: float
    arithmetic: str = ""
    notes: tuple[str, ...] = ()
    plan: Plan | None = None
    workers: dict[str, Any] = field(default_factory=dict)
    law: str = ""
    stop_reason: str = "complete"

    @property
    def meta(self) -> dict[str, Any]:
        """Entries for the ``meta`` of other results: precision and arithmetic, with the reason for the choice, and the law."""
        return {"precision": self.precision, "precision_reason": self.reason, "arithmetic": self.arithmetic, "law": self.law}


def warn_if_noise(precision: str, radii: NDArray[np.float64], trusted: NDArray[np.bool_], alone: str = "") -> None:
    """Warn about the radii that a precision below float64 cannot resolve; ``alone``: why no other arithmetic can."""
    if precision == "float32" and not trusted.all():
        lost = radii[~trusted]
        remedy = f"pass larger radii; {alone}" if alone else "use precision='difference', or 'float64'"
        warnings.warn(
            f"precision={precision!r}: {len(lost)} of {len(radii)} radii ({lost.min():.1e} .. {lost.max():.1e}) are rounding "
            f"noise on this model; {remedy}",
            PrecisionWarning,
            stacklevel=4,  # the caller of fs.responses, which is decorated
        )


@renamed(METHOD)
@keeps_result
def responses(
    objective: Objective | Making,
    directions: Directions,
    radii: ArrayLike,
    *,
    precision: Precision | None = None,
    method: AnyPath | None = None,
    memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    **keywords: Unpack[Repeated],
) -> Responses:
    r"""Even and odd responses of the loss along every direction at every radius.

    .. math:: \Delta_2 = L(w + \epsilon d) - 2 L(w) + L(w - \epsilon d), \qquad
              \Delta_1 = \tfrac12 \left( L(w + \epsilon d) - L(w - \epsilon d) \right)

    As :math:`\epsilon \to 0`, :math:`\Delta_2 / \epsilon^2 \to d^T H d` and :math:`\Delta_1 / \epsilon \to g^T d`
    (below the first kink, for piecewise linear networks).

    Args:
        objective: the loss L, or a :class:`fastscape.Source` that makes it.
        directions: N directions d.
        radii: K positive, strictly ascending radii, in units of ``||d||``.
        precision: ``"difference"`` propagates the difference itself through the network, in float32 beside values at w in
            float64: its relative error is the same at every radius. ``"float64"`` and ``"float32"`` subtract losses; float32 is
            rounding noise over most radii of interest (measured on four directions; untrusted radii are named in a warning).
            ``"difference-bf16"`` asks torch to round the operands of matrix products to bfloat16, which some processors do not
            do; ``reason`` says whether any was. ``None`` tries them on this model and takes the cheapest whose noise gate passes
            at every radius (bfloat16 is never taken by itself). Where the model or the loss enters an autocast, ``"float32"``
            measures the function with it, and the others the one without: torch casts no float64. A cast written out (``.to``,
            ``.half()``) is part of the function in every arithmetic; its roundings set the noise of subtraction, and difference
            propagation follows the function without them, around rounded values. An autocast around the call is taken off.
            ``arithmetic`` of the result says what was measured.
        method: ``"loop"``, ``"vmap"`` or ``"stream"`` of subtraction, ``"graph"`` or ``"dispatch"`` of difference propagation, or
            ``None`` for what measures faster on this model. ``"stream"`` has the numbers of ``"loop"`` and makes the displaced
            parameters of a module when the forward comes to it: memory of the largest module in place of a copy of all; it is
            taken without asking where copies do not fit in ``memory``, or in what is free.
        memory: bytes that the call may take beside what was there: private copies, data in another dtype, checks, trials and
            batched evaluation; default half of what is available, for batches. What cannot be held is refused before the work.
        progress: called with (directions done, N).
        plan: an earlier result along the same directions, or its :class:`fastscape.Plan`: what was chosen there is not tried
            again, and the numbers are the same, bit for bit.
        distributed: whether the processes that torchrun started share the directions, as for :func:`fastscape.multifractal`;
            ``progress`` is called on rank 0. Blocks are then small, and ``plan=`` of the result gives the same bits without them.
        executor: whose workers evaluate the directions, as for :func:`fastscape.multifractal`.
        resume: a folder for the journal of the call. Every block of directions is written there; the same call goes on with what
            it holds, whatever ended the process, and gives the same numbers.

    Returns:
        A :class:`Responses`; NaN and inf are kept. Ctrl-C gives the first directions, ``stop_reason == "interrupted"``.

    Raises:
        PartialResultError: the model raised midway; its ``partial`` holds the directions before.
        ValueError: bad radii, precision or method; a model that cannot be followed with ``precision="difference"``.
        NondeterministicLossError: two evaluations at w differ.

    Warns:
        PrecisionWarning: radii that the precision cannot resolve.

    Cost: subtraction takes 2 K N forwards over the data (batched path: (2 K + 1) N) and one copy of the probed parameters;
    difference propagation the operations of about 4 K N forwards, in float32, less those of first layers, and for each direction
    in a block a copy of the parameters and two of the activations for every radius.

    Source: the even response is the quantity that Török & Bartha's multifractal probe analyses. Divided differences of programs:
    Reps & Rall, "Computational divided differencing and divided-difference arithmetics" (2003).
    """
    check_progress(progress, "(done, total)")
    checked_objective(objective, sharded=True)
    unknown = next((name for name in keywords if name not in Repeated.__annotations__), None)
    if unknown is not None:
        raise TypeError(f"responses() got an unexpected keyword argument {unknown!r}")
    steps, given = checked_radii(radii), checked_precision(precision)
    checked_directions(directions)
    distributed, resume = keywords.get("distributed"), keywords.get("resume")
    if resume is not None and keywords.get("plan") is not None:
        raise ValueError("plan must be left out with resume=, whose folder has the plan of the call")

    check_executor(keywords.get("executor"), distributed)
    whole = made(objective)

    def work(workers: Made, room: int | None, bitwise: bool) -> Responses:
        found = _responses(whole, directions, steps, given, method, room, progress, keywords, workers)
        return found if bitwise else dataclasses.replace(found, workers={**found.workers, "bitwise": False})

    if keywords.get("executor") is not None:
        return hired(keywords["executor"], directions, steps, making(objective), memory, work)
    return shared(distributed, directions, steps, whole, memory, resume, work)


def _responses(
    objective: Objective,
    directions: Directions,
    steps: NDArray[np.float64],
    precision: Precision | None,
    method: AnyPath | None,
    memory: int | None,
    progress: Callable[[int, int], None] | None,
    repeated: Repeated,
    workers_of: Made,
) -> Responses:
    """The call of the process that decides."""
    start = now()
    settings = directions.settings | {"radii": steps.tolist()}
    journal, given = _repeated(objective, settings, repeated.get("plan"), repeated.get("resume"))
    obeyed = None if given is None else _obeyed(given, objective, settings, precision, method)
    way = None if obeyed is None else obeyed.ways[0]
    chosen = _chosen(objective, directions, steps, precision, method, memory) if way is None else chosen_by(way)
    threads = torch_threads(None if obeyed is None else obeyed.threads)
    with threads, responder(objective, chosen.name, chosen.path or method, memory) as evaluator:
        try:
            choice = evaluator.choose(directions, steps.tolist())
        except (UntraceableError, MissingRuleError) as error:
            raise refused_precision(chosen.name, error) from error
        if workers_of is not here and way is None:  # all directions at once would be one process's
            evaluator.choice = choice = in_units(choice)
        measured = measure_noise(evaluator, directions, steps, zeros=True) if way is None else Noise.of(way.noise)
        base = math.nan if journal is None and obeyed is None else loss_at(evaluator, directions)
        if obeyed is not None:
            obeyed.check_loss(base)
        used = obeyed or Plan.made(objective, settings, steps, base).having(way_of(0, chosen, choice, measured))
        done = evaluated(evaluator, directions, steps, journal, used, progress, workers_of)
        even, odd, base, lanes, workers, elsewhere, left_out, run = done
        noise = run.analysed(lambda: with_largest(measured, evaluator, directions, steps, even, odd), measured)
        evaluations = chosen.evaluations + evaluator.evaluations + noise.evaluations + elsewhere
        norms = [directions.length(index) for index in range(len(directions))] if directions.scale == "none" else []
        handled = evaluator.handling if isinstance(evaluator, DifferenceEvaluator) else None
    trusted = noise.trusted(even, odd)
    warn_if_noise(chosen.name, steps, trusted, noise.how)
    arithmetic = measured_in(objective, chosen.name)
    length = float(np.mean(norms)) if norms else {"unit": 1.0, "relative": directions.weight_norm}[directions.scale]
    eps_abs, weight_norm = steps * length, objective.norm
    short = {} if lanes is None and not workers.get("workers", {}).get("oom") else {"lanes": lanes, "bitwise": False}
    found = Responses(
        even=even,
        odd=odd,
        base=base,
        radii=steps,
        eps_abs=eps_abs,
        eps_rel=relative(eps_abs, weight_norm),
        weight_norm=weight_norm,
        noise=noise.sigma,
        trusted=trusted & (not (handled is not None and handled.frozen)),
        precision=chosen.name,
        reason="; ".join(filter(None, (chosen.reason, getattr(evaluator, "rounding", ""), noise.how))),
        fallbacks=handled.fallbacks if handled is not None else {},
        frozen=handled.frozen if handled is not None else {},
        narrow=noise.narrow,
        path=choice,
        evaluations=evaluations,
        seconds=now() - start,
        arithmetic=arithmetic.meta["arithmetic"],
        notes=(*arithmetic.notes, *noise.notes, *left_out, *_cut(run, even.shape[1], len(directions))),
        plan=obeyed or dataclasses.replace(used, loss=base),
        workers={**workers, **short},
        law=directions.law,
        stop_reason=run.reason,
    )
    return run.whole(found, f"the responses failed after {counted(even.shape[1], 'direction')}")


def _cut(run: Anytime, done: int, count: int) -> tuple[str, ...]:
    return (f"the first {done} of {count} directions were evaluated ({run.reason})",) if done < count else ()


def _repeated(
    objective: Objective,
    settings: dict[str, Any],
    plan: Plan | Responses | None,
    resume: str | Path | None,
) -> tuple[Journal | None, Plan | None]:
    """The journal and the plan that a call goes on with."""
    if resume is None:
        return None, None if plan is None else Plan.of(plan)
    journal = journal_of(resume, checked_objective(objective), settings)
    return journal, planned_in(journal)


def _obeyed(
    plan: Plan, objective: Objective, settings: dict[str, Any], precision: Precision | None, path: AnyPath | None
) -> Plan:
    """A plan that fits what it is to be used for."""
    plan.check(objective, settings)
    if not plan.ways:
        raise ValueError(f"plan must say how to evaluate, got {plan!r}; leave it out")
    same_as_planned("precision", precision, plan.ways[0].precision)
    same_as_planned("method", path, plan.ways[0].path)
    return plan


def _chosen(
    objective: Objective,
    directions: Directions,
    radii: NDArray[np.float64],
    precision: Precision | None,
    method: AnyPath | None,
    memory: int | None,
) -> PrecisionChoice:
    """The precision asked for, or the one that measures best."""
    if precision is not None:
        return PrecisionChoice(precision, "asked for")
    return choose_precision(objective, directions, radii, method=method, memory=memory)


def relative(eps_abs: NDArray[np.float64], weight_norm: float) -> NDArray[np.float64]:
    """Distances relative to ||w||; NaN where all weights are zero."""
    with np.errstate(invalid="ignore"):
        return eps_abs / weight_norm if weight_norm else np.full(len(eps_abs), np.nan)
