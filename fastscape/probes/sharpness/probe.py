"""The sharpness probe: the largest loss in a ball around the weights, beside what is cheaper and what is typical."""

from __future__ import annotations

import math
from typing import Unpack

import torch

from fastscape._checks import amount, counted, integer, positive, real, shown
from fastscape._keeping import keeps_result
from fastscape.evaluation.losses import checked_dtype
from fastscape.evaluation.samples import samples_of
from fastscape.objective.objective import Objective, checked_objective
from fastscape.probes.sharpness.assembly import sharpness_result
from fastscape.probes.sharpness.balls import Variant
from fastscape.probes.sharpness.result import SharpnessResult
from fastscape.probes.sharpness.run import Goals, SharpnessRun
from fastscape.runs.evaluations import opened
from fastscape.runs.run import Resumed, Work, settled


class SharpnessKeywords(Work, Resumed, total=False):
    """Keywords beside those of the ball and its companions."""

    precision: str | None


@keeps_result
def sharpness(
    objective: Objective,
    epsilon: float = 1e-2,
    *,
    variant: Variant = "normalized",
    m: int | None = None,
    restarts: int = 4,
    steps: int = 20,
    samples: int = 16,
    products: int = 30,
    eta: float = 0.01,
    **keywords: Unpack[SharpnessKeywords],
) -> SharpnessResult:
    r"""Largest rise of the loss within a ball around the weights: a lower bound of the worst case, and its companions.

    .. math:: NS_\epsilon = \max_{\|u_l\|_2 \le 1} L\bigl(w + \epsilon\, (u_l \circ |w_l|)_l\bigr) - L(w)

    with one ball for every parameter tensor l (``variant="normalized"``). A maximum over D dimensions can only be bounded from
    below: ``worst`` is the best of all points evaluated, which are those of projected gradient ascents (step size and momentum of
    auto-PGD) from the first-order maximiser, the maximiser of the quadratic model, and random points. A random u is *not* a
    worst case: its rise is smaller by orders of magnitude, and is reported as ``random``. All companions have the same radius:

    * ``random``: mean rise over u uniform on the sphere of every tensor (average case), in pairs u and -u;
    * ``first_order``: :math:`\epsilon \sum_l \||w_l| \circ g_l\|`, exact where the loss is linear;
    * ``quadratic``: maximum of :math:`\epsilon\, g^\top S u + \tfrac{\epsilon^2}{2} u^\top S H S u` with S = diag(\|w\|), by
      ascent on the model, and ``quadratic_bound`` from the largest eigenvalue of SHS.

    NS is unchanged where a ReLU layer without bias is multiplied by c and the next by 1/c, which changes SAM's sharpness.
    Parameters that are zero never move under ``"normalized"``.

    Args:
        objective: the loss L; D parameters.
        epsilon: radius: relative to \|w\| for ``"normalized"``, in units of the weights (rho) for ``"sam"``.
        variant: ``"normalized"``; ``"sam"``: one ball for all tensors, u not scaled; ``"asam"``: one ball, scaled by
            :math:`|w| + \eta`.
        m: m-sharpness: mean over consecutive groups of m samples (rows of batches) of each group's own maximum, weighted by
            terms; ``None`` for all data as one group.
        restarts: ascents: from the first-order maximiser, from that of the quadratic model, then from random points.
        steps: gradient steps of an ascent.
        samples: random points of the average case, in pairs: even, at least 4.
        products: Hessian products for the quadratic model, at least 6; 0 leaves it out (NaN).
        eta: offset of ``"asam"``.
        seed: of everything random.
        precision: ``"float32"``, ``"float64"``, or ``None``: the model's dtype where the differences stand at least 10 times
            above its rounding noise, else float64. Ascent and average case choose apart; ``meta["precision"]`` says what. An
            autocast that the model or the loss enters counts in float32 alone (``meta["arithmetic"]``); where float32 is asked
            for and such roundings are as large as the average case, that is NaN, with a note.
        budget: seconds, or ``"60s"``; ascents end there with what is known, and a quadratic model that does not fit is left out.
        resume: a folder for the journal of the call. Every loss, gradient and product is written there; the same call goes on
            with what it holds, whatever ended the process, and gives the same numbers.
        name, step: of the checkpoint.
        run: seed, precision, budget, name, step, or some of them, in a :class:`fastscape.Run`.

    Returns:
        A :class:`SharpnessResult`. Points with NaN or infinite loss are counted and flagged; an infinite loss makes ``worst``
        infinite. Ctrl-C gives the partial result, ``meta["stop_reason"] == "interrupted"``: still a lower bound.

    Raises:
        ValueError: epsilon not positive and finite, bad settings, m larger than the number of samples.
        NondeterministicLossError: two evaluations at w differ.

    Cost: restarts (steps + 1) gradients, ``samples`` forwards, ``products`` Hessian products (and 10 to 30 gradients to choose
    how to multiply); memory of about eight copies of the parameters.

    Source: Keskar et al. (2017) for the worst case in a box; Neyshabur et al., "Exploring generalization in deep learning"
    (2017), for perturbations relative to \|w\|; Foret et al., "Sharpness-aware minimization" (2021), for the global ball and
    m-sharpness; Kwon et al., "ASAM" (2021), for :math:`|w| + \eta`; Andriushchenko et al., "A modern look at the relationship
    between sharpness and generalization" (2023), for average and worst case side by side; ascent: Croce & Hein (2020).

    Example:
        >>> import torch, fastscape as fs
        >>> model = torch.nn.Linear(4, 3)
        >>> objective = fs.Objective(model, [(torch.ones(2, 4), torch.tensor([0, 2]))],
        ...                          criterion=torch.nn.functional.cross_entropy)
        >>> result = fs.sharpness(objective, 0.05)
        >>> result.worst >= result.random.value
        True
    """
    work = settled(sharpness, keywords)
    clock = work.clock()
    checked_objective(objective)
    positive("epsilon", epsilon, remedy="0 has no worst case, and gives 0")
    if not (real(eta) and 0 <= eta < math.inf):
        raise ValueError(f"eta must be finite and not negative, got {shown(eta)}")
    total = samples_of(objective)
    if m is not None and integer("m", m, 1) > total:
        raise ValueError(f"m must be at most the number of samples, {total}, got {m}; m=None takes all of them as one group")
    if 0 < amount("products", products, 0) < 6:
        raise ValueError(f"products must be 0 or at least 6, got {products}; the eigenvalue and two ascents share them")
    if amount("samples", samples, 4) % 2:
        raise ValueError(f"samples must be even, for pairs u and -u, got {samples}")
    goals = Goals(
        epsilon=float(epsilon),
        variant=variant,
        m=m,
        restarts=amount("restarts", restarts, 1),
        steps=amount("steps", steps, 1),
        samples=samples,
        products=products,
        eta=float(eta),
        seed=integer("seed", work.seed, 0, 2**64),
        precision=None if work.precision is None else checked_dtype(work.precision),
    )
    asked, needs = {"seed": goals.seed, "precision": work.precision}, 20 * len(objective.batches)
    with (
        torch.inference_mode(False),
        opened(work.resume, "sharpness", [lambda: objective], asked) as evaluations,
        clock.opening("random point", needs, begun=evaluations.replaying),
    ):
        run = SharpnessRun(objective, goals, clock, evaluations)
        run.run()
        run.notes += evaluations.notes
        found = sharpness_result(run, work.name, work.step)
    return run.work.whole(found, f"the sharpness of {work.name} failed after {counted(run.evaluations, 'evaluation')}")
