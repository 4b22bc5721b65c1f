"""Paired differences of losses along one update: the samples at w + eta u against the same samples at w."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from fastscape._clock import now
from fastscape._state import exact_arithmetic, left_on_failure
from fastscape.evaluation.arithmetic import replica_arithmetic
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.noise import rounding, rounding_model
from fastscape.evaluation.surface.families import Affine
from fastscape.evaluation.surface.losses import total
from fastscape.evaluation.surface.paths import PointLoop, Raw
from fastscape.evaluation.surface.sample_losses import SampleLosses, standard_errors
from fastscape.objective.objective import Objective
from fastscape.probes.critical.search import Tried


class StepLosses:
    """L(w + eta u) - L(w), as a context manager that restores every global setting on exit.

    That the loss is a function, and how it rounds, is found at an objective's first use in a dtype; what is derived from it, such
    as the objective at later weights, takes that over.

    Args:
        objective: the loss.
        update: u in the order of ``objective.names``.
        dtype: of the evaluations.

    Attributes:
        loss: L(w).
        unit: of the standard errors, ``"samples"`` or ``"batches"``.
        count: how many of them there are.
        seconds: of the evaluation at w.
        farthest: step that the arithmetic holds.
        steps: evaluations of the search, that at w included; ``evaluations`` has those of the gate too.

    Raises:
        NondeterministicLossError: on entry; two evaluations at w differ.

    Cost: one forward on entry (about six more at first use), one per step; memory of two copies of the parameters.
    """

    def __init__(self, objective: Objective, update: Sequence[Tensor], dtype: torch.dtype) -> None:
        self._objective, self._dtype = objective, dtype
        wide = torch.promote_types(dtype, torch.float32)
        top = max((float(part.abs().max()) for part in update if part.numel()), default=0.0)
        self._scale = math.ldexp(1.0, -math.frexp(top)[1])  # a power of two: no bit of a step depends on it
        self._update = [(part * self._scale).to(wide) for part in update]
        self.farthest = min(float(torch.finfo(wide).max) * self._scale, sys.float_info.max) / 2
        self._block = exact_arithmetic(dtype)
        self.steps = 0

    def __enter__(self) -> StepLosses:
        with left_on_failure(self._block):
            self._replica = replica = self._objective.replica(self._dtype)
            known, key = self._objective.known, ("step losses", self._dtype, self._objective.batch_norm)
            if key not in known:
                value = unperturbed_loss(replica)
                noise = rounding_model(replica) if replica_arithmetic(replica).plain else rounding(replica)
                known[key] = noise / abs(value) if value and math.isfinite(value) else noise
            began = now()
            self._terms = SampleLosses(replica, accuracy=False)
            self.seconds = now() - began
            self.steps += 1
            batches, samples = self._terms.origin
            self._origin = Raw(batches[None], None if samples is None else samples[None], None)
            self.loss = float(total(self._objective, self._origin)[0])
            self.noise = known[key] * (abs(self.loss) or 1.0)
            self._loop = PointLoop(replica, Affine(list(self._objective.base.values()), [self._update]), self._terms)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._block.__exit__(kind, error, trace)

    @property
    def unit(self) -> str:
        """Of the standard errors."""
        return self._terms.unit

    @property
    def count(self) -> int:
        """Units that have a weight."""
        return int((self._terms.weights > 0).sum())

    @property
    def evaluations(self) -> int:
        """Evaluations of all data so far."""
        return self._replica.evaluations

    def at(self, eta: float) -> Tried:
        """One step; one forward.

        The difference is the mean of those of the samples, in float64: means in float32 are rounded to more than they differ by.
        """
        found, origin, weights = self._loop.at(np.array([[eta / self._scale]])), self._origin, self._terms.weights
        self.steps += 1
        if found.samples is None or origin.samples is None:
            paired = found.batches - origin.batches
            difference = float(total(self._objective, found)[0]) - self.loss
        else:
            paired = found.samples - origin.samples
            used = weights > 0
            difference = float(paired[0, used] @ weights[used] / weights[used].sum())
        return Tried(eta, difference, float(standard_errors(paired, weights)[0]), self.noise)
