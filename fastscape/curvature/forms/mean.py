"""Averages of the Hessian over random directions."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from fastscape._checks import amount, counted
from fastscape._keeping import keeps_result
from fastscape.curvature.forms.quadratic import group_means
from fastscape.directions import Directions
from fastscape.evaluation.group import Distributed
from fastscape.numerics.estimate import Estimate, widened
from fastscape.numerics.student import around
from fastscape.objective.objective import Objective
from fastscape.runs.anytime import Anytime

_ROUNDING = 4.0  # units of the lanes, of a mean: directions round alike


@keeps_result
def mean_quadratic_form(
    objective: Objective,
    directions: Directions,
    *,
    groups: int = 8,
    lanes: torch.dtype = torch.float32,
    memory: int | None = None,
    distributed: Distributed = None,
) -> Estimate:
    r"""Mean of :math:`d^T H d` over directions: the trace of H over D for ``normalize="none", scale="unit"``.

    The directions fall into consecutive groups; within one only the mean second derivative is carried through the network,
    and the spread between the means gives the interval (Student's t with groups - 1 degrees of freedom), with the rounding of the
    lanes beside it.

    Args:
        objective: the loss.
        directions: N directions.
        groups: at least 2, and a divisor of N; 8 or more for an interval worth having.
        lanes: dtype of the derivatives.
        memory: bytes that the private copy, lanes, directions and values at w may take; too little is refused.
        distributed: whether the processes of torch.distributed share the groups, as for :func:`fastscape.hessian`; each gets all
            of them, with the bits that one process gives.

    Returns:
        An :class:`Estimate` with ``n`` the number of directions. Ctrl-C gives that of the groups so far, of two at least, which
        ``method`` says; several processes that share the groups have nothing to give.

    Raises:
        PartialResultError: the model raised midway; its ``partial`` is the estimate of the groups before.
        ValueError: groups that do not divide N, or a model that cannot be followed.

    Cost: (3 K + 2) / (4 K + 1) of the operations of :func:`fastscape.quadratic_forms`, for groups of K = N / groups.

    Source: Dangel et al., "Collapsing Taylor mode automatic differentiation" (2025).
    """
    groups = amount("groups", groups, 2)  # one has no standard error
    run = Anytime()
    means = group_means(objective, directions, groups, lanes=lanes, memory=memory, distributed=distributed, run=run)
    count = len(means)
    value, stderr = float(means.mean()), float(means.std(ddof=1)) / math.sqrt(count)
    method = "" if count == groups else f"{count} of {groups} groups ({run.reason})"
    found = replace(around(value, stderr, count, method), n=len(directions) // groups * count)
    found = widened(found, _ROUNDING * torch.finfo(lanes).eps * math.hypot(value, stderr * math.sqrt(count)))
    return run.whole(found, f"the mean form failed after {counted(count, 'group')}")
