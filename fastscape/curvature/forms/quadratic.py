"""Quadratic forms of the Hessian, forward only: exact, or by two forwards per direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fastscape._checks import check_progress, counted, first_line
from fastscape._clock import now
from fastscape._keeping import keeps_result
from fastscape._renamed import METHOD, renamed
from fastscape.curvature.exact_sum import disjoint
from fastscape.curvature.forms.forwards import by_forwards
from fastscape.differences.evaluator import DifferenceEvaluator, FrontEnd, Handling
from fastscape.differences.propagation import MissingRuleError
from fastscape.differences.tracing_errors import UntraceableError
from fastscape.directions import Directions, checked_directions
from fastscape.evaluation.agreement import DtypeDependentLossError
from fastscape.evaluation.arithmetic import replica_arithmetic
from fastscape.evaluation.determinism import NarrowLossError
from fastscape.evaluation.group import Distributed, ranks_of
from fastscape.evaluation.points import Array, blocks
from fastscape.evaluation.trial import PathChoice
from fastscape.objective.objective import Objective, checked_objective
from fastscape.runs.anytime import Anytime, PartialResultError
from fastscape.runs.memory import out_of_memory

FormsPath = FrontEnd | Literal["forwards"]


@dataclass(frozen=True)
class QuadraticForms:
    r"""Derivatives of a loss along directions, arrays ``[N]`` in float64; ``numpy.asarray`` gives the curvature.

    Attributes:
        curvature: :math:`d^T H d`.
        slope: :math:`g^T d`.
        base: L(w).
        lengths: ||d||.
        path: how they were computed.
        fallbacks: operations without a rule, which were differentiated locally in float64: name -> calls.
        seconds: wall time.
        error: estimated absolute error of ``curvature`` by two forwards, made to bound it in 95 % of directions, and of the exact
            path around values that the model rounds to less than float32; else ``None``: the rounding of the lanes.
        law: what the directions are drawn from; forms along others have the same mean at most.
        forwards: cost in forwards of the loss, set-up included; of the exact path, the operations of its matrix products beside
            those of one forward, NaN where these are not known.
        stop_reason: ``"complete"``, ``"interrupted"`` or ``"failed: ..."``, with the first of the N directions.
    """

    curvature: Array
    slope: Array
    base: float
    lengths: Array
    path: PathChoice
    fallbacks: dict[str, int]
    seconds: float
    error: Array | None = None
    law: str = ""
    forwards: float = math.nan
    stop_reason: str = "complete"

    def __array__(self, dtype: np.dtype[np.generic] | None = None, copy: bool | None = None) -> NDArray[np.generic]:
        return np.array(self.curvature, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.curvature)


@renamed(METHOD)
@keeps_result
def quadratic_forms(
    objective: Objective,
    directions: Directions,
    *,
    lanes: torch.dtype = torch.float32,
    method: FormsPath | None = None,
    memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> QuadraticForms:
    r"""Slope and curvature of the loss along every direction, without a backward pass: exactly, or by two forwards.

    .. math:: g^T d = \left.\frac{\partial}{\partial e} L(w + e d)\right|_{e=0}, \qquad
              d^T H d = \left.\frac{\partial^2}{\partial e^2} L(w + e d)\right|_{e=0}

    The 2-jet (value, first and second derivative along the line) of every activation is carried through the network, for a block
    of directions at a time. A kink counts as smooth: the branch taken at w. ``method="forwards"`` takes second differences of
    the loss in the model's own dtype instead, on the same branches, at a step chosen from its rounding and truncation: less
    work and memory, and an error near 1e-3 in float32, reported for every direction (:mod:`fastscape.curvature.forms.forwards`).

    Args:
        objective: the loss L.
        directions: N directions d, of any length: the forms are those of d itself, not of d / ||d||.
        lanes: dtype of the derivatives; values at w are float64. float32 gives a relative error near 1e-6.
        method: ``"graph"``, ``"dispatch"``, ``"forwards"``, or ``None`` for the first that follows the model or fits in memory.
        memory: bytes that the private copy, lanes, directions and values at w may take; too little is refused.
        progress: called with (directions done, N).

    Returns:
        A :class:`QuadraticForms`; NaN and inf are kept. Ctrl-C gives the first directions, ``stop_reason == "interrupted"``; by
        two forwards, whose step and errors are of all directions together, there is nothing to give.

    Raises:
        ValueError: bad arguments, a model that cannot be followed (names the module and the operation), two forwards whose
            estimated error exceeds 10 % of the RMS form, or a piecewise operation that they have no rule for (named).
        NondeterministicLossError: two evaluations at w differ.
        PartialResultError: the exact path raised midway; its ``partial`` holds the directions before.

    Cost: 4 N + 1 forwards' operations, less those of the first layer, and no graph for a backward pass; memory of a block of
    directions and twice the widest activations for each. By two forwards 2 N + 18 to 44 forwards, at most 10 N for given
    directions, and the memory of one.

    Source: Taylor mode, Griewank & Walther, "Evaluating derivatives" (2008), chapter 13. Nested forward mode of torch is not
    used: it is silently wrong through layer and batch norm (pytorch issues 196700, 196699).

    Example:
        >>> import torch, fastscape as fs
        >>> objective = fs.Objective(torch.nn.Linear(4, 3), [(torch.ones(2, 4), torch.tensor([0, 2]))],
        ...                          criterion=torch.nn.functional.cross_entropy)
        >>> fs.quadratic_forms(objective, fs.Directions(objective, count=8)).curvature.shape
        (8,)
    """
    check_progress(progress, "(done, total)")
    checked_directions(directions)
    if isinstance(method, str) and method == "forwards":
        return _two_forwards(objective, directions, "", progress)
    try:
        return _exact(objective, directions, lanes, method, memory, progress)
    except (UntraceableError, MissingRuleError, NarrowLossError, DtypeDependentLossError) as error:
        if method is not None:
            raise
        why = f"the exact path cannot follow the model ({first_line(error)[:160]}): "
    except PartialResultError:
        raise
    except (MemoryError, RuntimeError) as error:
        if method is not None or not out_of_memory(error):
            raise
        why = "the exact path does not fit in memory: "
    return _two_forwards(objective, directions, why, progress)


def _two_forwards(
    objective: Objective, directions: Directions, why: str, progress: Callable[[int, int], None] | None
) -> QuadraticForms:
    start = now()
    found = by_forwards(checked_objective(objective), directions, why=why, progress=progress)
    return QuadraticForms(
        curvature=found.curvature,
        slope=found.slope,
        base=found.base,
        lengths=found.lengths,
        path=found.choice,
        fallbacks={},
        seconds=now() - start,
        error=found.error,
        law=directions.law,
        forwards=found.forwards,
    )


def _exact(
    objective: Objective,
    directions: Directions,
    lanes: torch.dtype,
    method: FrontEnd | None,
    memory: int | None,
    progress: Callable[[int, int], None] | None,
) -> QuadraticForms:
    start = now()
    columns, run = list[tuple[Array, Array]](), Anytime()
    with DifferenceEvaluator(objective, lanes=lanes, memory=memory, front_end=method) as evaluator:
        choice = evaluator.choose(directions, [0.0])
        with run.ends(lambda: columns, errors=lambda error: columns and not out_of_memory(error)):
            for indices in blocks(len(directions), choice.chunk):
                columns.append(evaluator.derivatives(directions, indices, [0.0]))
                if progress is not None:
                    progress(indices[-1] + 1, len(directions))
        handled, base, forwards = evaluator.handling, evaluator.base, evaluator.forwards
        around = replica_arithmetic(evaluator.replica).error_around(smooth=True)  # on the branches at w
        _refuse_frozen(handled)
    slope, curvature = (np.concatenate([column[part][0] for column in columns]) for part in (0, 1))
    found = QuadraticForms(
        curvature=curvature,
        slope=slope,
        base=base,
        lengths=np.array([directions.length(index) for index in range(len(curvature))]),
        path=choice,
        fallbacks=handled.fallbacks,
        seconds=now() - start,
        error=None if around <= torch.finfo(torch.float32).eps else around * np.abs(curvature),
        law=directions.law,
        forwards=forwards,
        stop_reason=run.reason,
    )
    return run.whole(found, f"the quadratic forms failed after {counted(len(curvature), 'direction')}")


def group_means(
    objective: Objective,
    directions: Directions,
    groups: int,
    *,
    lanes: torch.dtype = torch.float32,
    memory: int | None = None,
    distributed: Distributed = None,
    run: Anytime | None = None,
) -> Array:
    r"""Means of :math:`d^T H d` over consecutive groups of the directions, ``[groups]``, each carried as one second derivative.

    Cost: (3 K + 2) / (4 K + 1) of the operations of the forms one by one, for groups of K.

    ``distributed``: whether processes share the groups. ``run``: what ends it, with two groups at least; else it is raised.

    Raises:
        ValueError: fewer directions than groups, or a number of directions that is no multiple of the groups'.
    """
    checked_directions(directions).check(checked_objective(objective))
    size, rest = divmod(len(directions), max(groups, 1))
    if groups < 1 or rest or not size:
        fitting = max(g for g in range(1, min(8, len(directions)) + 1) if len(directions) % g == 0)
        raise ValueError(f"groups must divide the number of directions {len(directions)}, got {groups}; pass groups={fitting}")

    run, ranks = Anytime() if run is None else run, ranks_of(distributed, objective)

    def means(of: range) -> list[float]:
        found: list[float] = []

        def known(_error: Exception | None = None) -> bool:
            return ranks is None and len(found) > 1  # processes end together

        with DifferenceEvaluator(objective, lanes=lanes, memory=memory) as evaluator:
            with run.ends(known, errors=known):
                for group in of:
                    found.append(  # noqa: PERF401 - an error leaves those before
                        evaluator.mean_curvature(directions, range(group * size, (group + 1) * size))
                    )
            _refuse_frozen(evaluator.handling)
        return found

    if ranks is None:
        return np.array(means(range(groups)))
    ranks.check_same(objective)
    ranks.check_equal("directions", (directions.seed, len(directions), directions.law, directions.normalize))
    mine, found = range(ranks.rank, groups, ranks.size), np.zeros(groups)
    found[mine] = ranks.agreed(lambda: means(mine) if mine else [])
    return disjoint(found, ranks, ranks.device)


def _refuse_frozen(handling: Handling) -> None:
    """Refuse derivatives of a forward that takes numbers out of torch."""
    if handling.frozen:
        raise UntraceableError(
            f"model must compute with tensors to be differentiated along a line, but its forward takes values that depend on the "
            f"weights out of torch ({', '.join(handling.frozen)}); keep them tensors, without .item(), float() or NumPy"
        )
