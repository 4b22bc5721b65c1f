"""How long an evaluation takes, by counting: what decides a number must be the same on every machine, and a clock is not."""

from __future__ import annotations

from fastscape.objective.objective import Objective

HEAVY = 2.0**28  # multiplications above which a few evaluations count: about 0.05 s on a core


def multiplications(objective: Objective, weight: float | None = None) -> float:
    """Multiplications of an evaluation, at least: every parameter of the model by every sample.

    Args:
        objective: the function.
        weight: of some batches; all of them without.

    A parameter that is used at many places of a sample, as in a convolution, counts once.
    """
    return sum(tensor.numel() for tensor in objective.model.parameters()) * (objective.samples if weight is None else weight)
