"""The diagonal of a curvature matrix, by products with random signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Unpack, cast

import torch

from fastscape._checks import amount, check_memory, counted, integer, one_of
from fastscape._keeping import keeps_result
from fastscape.curvature.operator import ggn, hessian
from fastscape.curvature.paths import PathName
from fastscape.objective.objective import Objective, checked_objective
from fastscape.probes.diagonal.assembly import diagonal_result
from fastscape.probes.diagonal.result import DiagonalResult
from fastscape.probes.diagonal.run import DiagonalRun, Goals
from fastscape.runs.evaluations import opened
from fastscape.runs.progress import Progress
from fastscape.runs.run import Resumed, Work, settled

Estimator = Literal["xdiag", "hutchinson", "exact"]
PRODUCTS = 64


class DiagonalKeywords(Work, Resumed, total=False):
    """Keywords beside those of the estimate."""

    memory: int | None
    method: str | None
    progress: Callable[[Progress], None] | None


@keeps_result
def diagonal(
    objective: Objective,
    products: int | None = None,
    *,
    operator: Literal["hessian", "ggn"] = "hessian",
    estimator: Estimator | None = None,
    **keywords: Unpack[DiagonalKeywords],
) -> DiagonalResult:
    r"""Diagonal of the Hessian or Gauss-Newton matrix with standard errors, and its sums over parameters with intervals.

    .. math:: d_i = \mathrm{diag}(P_{(i)} H) + \omega_i \circ (I - P_{(i)}) H \omega_i, \qquad \hat d = \frac1n \sum_i d_i

    with random signs :math:`\omega_i` and the projector :math:`P_{(i)}` on the range of their products without the i-th
    (``"xdiag"``, two products a probe); without projectors (``"hutchinson"``, one product a probe) the error falls as
    :math:`1/\sqrt n` alone: :math:`E \|\hat d - d\|^2 = (\|H\|_F^2 - \|d\|^2) / n`. XDiag takes less where eigenvalues decay, and
    Hutchinson where they are alike, as of an identity with noise. ``"exact"`` multiplies all D columns.

    Standard errors and intervals are of the estimator's own variance: of Hutchinson that over probes, of XDiag, whose terms share
    their bases, the geometric mean of that of the terms and of the jackknife over probes, which of 95 % holds 92 to 99.

    Args:
        objective: the loss; D parameters.
        products: vectors to multiply, at least 4; ``None`` for as many as the budget allows, 64 without one.
        operator: ``"hessian"`` or ``"ggn"`` (needs ``criterion=``).
        estimator: one of these; ``None`` for ``"exact"`` where D is at most ``products`` (64 where that is open), else XDiag.
        seed: of the signs, which depend on nothing else but the parameters' names: at two checkpoints they are the same.
        budget: seconds, or ``"60s"``; at the deadline what is known is returned.
        memory: bytes that the call may take, half of them the basis's; a full basis is kept, and further probes are of what it
            leaves.
        method: of the products, see :func:`fastscape.hessian`.
        progress: called after every block with a :class:`fastscape.Progress`.
        resume: a folder for a journal of all products: whatever ends the run, the same call goes on with it and has the bits of
            a run that nothing disturbed. ``products`` and ``budget`` may be others then. D numbers on disk for every product.
        name, step: of the checkpoint.
        run: budget, memory, seed, method, name, step, progress, resume, or some of them, in a :class:`fastscape.Run`.

    Returns:
        A :class:`DiagonalResult`; ``.tensors()`` has the diagonal by parameter. NaN or inf products end it with what is known;
        so does Ctrl-C, ``meta["stop_reason"] == "interrupted"``.

    Raises:
        TypeError, ValueError: naming the argument; a path that cannot run.
        BudgetError: a budget too small for a block (names what is enough).
        NondeterministicLossError, AsymmetricProductError: products that are not those of one symmetric matrix.
        PartialResultError: the model raised midway; its ``partial`` has what is known.

    Cost: ``products`` of 1 to 3 gradients each, and 10 to 30 gradients to choose how to multiply; of n probes, 10 D n^2
    multiplications; memory of 3 n D numbers, n at most 256, and 4 vectors in float64.

    Source: Bekas, Kokiopoulou & Saad (2007); Epperly, Tropp & Webber, "XTrace: making the most of every sample in stochastic
    trace estimation" (arXiv 2301.07825).

    Example:
        >>> import torch, fastscape as fs
        >>> objective = fs.Objective(torch.nn.Linear(4, 3), [(torch.ones(2, 4), torch.tensor([0, 2]))],
        ...                          criterion=torch.nn.functional.cross_entropy)
        >>> found = fs.diagonal(objective)
        >>> found.estimator, list(found.layers), found.tensors()["weight"].shape
        ('exact', ['weight', 'bias'], torch.Size([3, 4]))
    """
    work = settled(diagonal, keywords)
    clock = work.clock()
    checked_objective(objective)
    one_of("operator", operator, ("hessian", "ggn"))
    one_of("estimator", estimator, ("xdiag", "hutchinson", "exact", None))
    check_memory(work.memory)
    if products is not None:
        amount("products", products, 4)
    if estimator == "exact" and products is not None and products < objective.size:
        raise ValueError(f"products must be at least D = {objective.size} for estimator='exact', got {products}; leave it out")
    wanted = PRODUCTS if products is None and not clock.limited else products
    chosen = estimator or ("exact" if objective.size <= (wanted or PRODUCTS) else "xdiag")
    half = None if work.memory is None else work.memory // 2
    goals = Goals(wanted, chosen, operator, integer("seed", work.seed, 0, 2**64), half)
    settings = {"operator": operator, "estimator": chosen, "method": work.method, "seed": goals.seed}
    make = {"hessian": hessian, "ggn": ggn}[operator]
    with (
        torch.inference_mode(False),
        opened(work.resume, "diagonal", [lambda: objective], settings) as evaluations,
        clock.opening("block of products", 60 * len(objective.batches), begun=evaluations.replaying),
    ):
        matrix = make(objective, memory=half, method=cast("PathName | None", work.method), distributed=False)
        found = DiagonalRun(objective, matrix.recorded(evaluations), goals, clock, evaluations)
        found.run(work.name, work.progress)
        result = diagonal_result(found, work.name, work.step, settings | {"products": products, "memory": work.memory})
    return found.work.whole(result, f"the diagonal of {work.name} failed after {counted(found.products, 'product')}")
