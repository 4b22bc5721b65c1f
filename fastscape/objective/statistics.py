"""The loss by running statistics and by those of each batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.nn.modules.batchnorm import _NormBase

from fastscape._checks import first_line
from fastscape._state import exact_arithmetic, kept_generators
from fastscape.objective.definition import Definition
from fastscape.objective.examination import replica_of
from fastscape.objective.norms import of_torch, tracking

DIFFER = 0.05  # relative difference of the two losses above which a result says both


@dataclass(frozen=True)
class Statistics:
    """L(w) by either kind of statistics.

    Attributes:
        running: with the running statistics.
        batch: with those of each batch; NaN where they cannot be computed.
        failure: why they cannot be computed; empty where they can.
    """

    running: float
    batch: float
    failure: str = ""

    @property
    def differ(self) -> bool:
        """Whether the two losses differ by more than 5 % of the smaller, or only one of them is finite."""
        if self.failure:
            return False
        if not (math.isfinite(self.running) and math.isfinite(self.batch)):
            return math.isfinite(self.running) or math.isfinite(self.batch)
        return abs(self.running - self.batch) > DIFFER * min(abs(self.running), abs(self.batch))


def compared(objective: Definition) -> Statistics:
    """L(w) by both kinds of statistics; what a forward raises is kept in words. Cost: two forwards per batch."""
    losses, failure = {"running": math.nan, "batch": math.nan}, ""
    own = all(of_torch(module) for module in tracking(objective.model).values())
    with kept_generators():
        for mode in ("running", "batch"):
            try:
                switched = objective.switched(mode)
                with exact_arithmetic(switched.dtype):
                    replica = replica_of(switched, switched.dtype)
                    replica.reset()
                    losses[mode] = replica.loss_and_accuracy()[0]
                if mode == "batch" and not own and not _repeats(switched):
                    failure, losses[mode] = "layers draw random numbers in training mode", math.nan
            except Exception as error:  # of the model: batches of one sample, or layers that need what they lost
                failure = f"{type(error).__name__}: {first_line(error)}"
    return Statistics(losses["running"], losses["batch"], failure)


def unmoved(objective: Definition, found: Statistics) -> bool:
    """Whether the mode of the layers changes nothing, such as that of frozen batch norm that is not torch's."""
    layers = tracking(objective.model)
    return found.running == found.batch and not any(isinstance(layers[name], _NormBase) for name in objective.by_batch)


def _repeats(objective: Definition) -> bool:
    """Whether two evaluations after each other agree."""
    with exact_arithmetic(objective.dtype):
        replica = replica_of(objective, objective.dtype)
        replica.reset()
        first, second = float(replica.loss()), float(replica.loss())
    return first == second or (math.isnan(first) and math.isnan(second))
