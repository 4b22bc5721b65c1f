"""Difference propagation held against the model: a response against subtraction, derivatives against losses nearby."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from fastscape.differences.lanes import Handling, Lanes
from fastscape.differences.tracing_errors import UntraceableError
from fastscape.directions import Directions
from fastscape.evaluation.arithmetic import replica_arithmetic
from fastscape.evaluation.branches import Branches
from fastscape.evaluation.displacement import Displacement
from fastscape.evaluation.nearby import Verdict, judged
from fastscape.evaluation.paths import LoopPath
from fastscape.evaluation.rounding import rounding_model
from fastscape.objective.replica import Replica

_AGREEMENT = {"float32": 1e-3, "bfloat16": 5e-2}  # relative difference of a response from subtraction that is not rounding
_BESIDE = 1e-2  # of that, relative to the larger of the even and the odd response
_CHECKED = 1e-3  # radius relative to ||w|| at which derivatives are compared with subtraction


class KinkError(ValueError):
    """A loss has no second derivative at its weights."""


@dataclass(frozen=True)
class CrossCheck:
    """Compares lanes with a float64 copy of the model."""

    replica: Replica
    lanes: Lanes

    def response(self, directions: Directions, largest: float, *, several: bool = True) -> None:
        """Compare a response with float64 subtraction of the model's own losses: one of two directions and two radii at once.

        Without ``several``, which memory may forbid, it is propagated alone.
        """
        radius = largest or _CHECKED * (directions.weight_norm or 1.0) / (directions.length(0) or 1.0)
        before = self.lanes.handling
        self.lanes.handling = Handling()
        last = min(1, len(directions) - 1)
        indices, radii = ((0, last), [radius / 2, radius]) if several else ((last,), [radius])
        slope, curvature = self.lanes.at(self.lanes.block(directions, indices), radii, "float32")[-1, :, -1]
        frozen, self.lanes.handling = any(self.lanes.handling.frozen.values()), before
        points = LoopPath(self.replica).losses(directions, (last,), (0.0, radius, -radius))[0].numpy()
        self.replica.reset()  # its parameters are the values at w
        with np.errstate(invalid="ignore", over="ignore"):
            even, odd = (points[1] - points[0]) + (points[2] - points[0]), (points[1] - points[2]) / 2
            pairs = {"even": (curvature * np.float64(radius) ** 2, even), "odd": (slope * radius, odd)}
        if not largest and frozen:  # the jet at w holds, whatever the branch at this radius
            return
        differing = self._differing(pairs, 30 * rounding_model(self.replica))
        if differing is not None:
            found, expected = pairs[differing]
            why = "; a branch of the forward depends on the weights" if frozen else ""
            raise UntraceableError(
                f"model must give the response that its operations give, got an {differing} response of {expected:.6g} instead "
                f"of {found:.6g} at radius {radius:.1e}{why}; use fs.responses with precision='float64'"
            )

    def jets(self, directions: Directions) -> None:
        """Hold second derivatives at w against losses nearby, on the pieces that hold at w: along a direction, and along noise.

        Along a direction alone, an operation may stand still by chance.

        Raises:
            UntraceableError: they differ: rules, and torch's derivatives, are not those of operations that are smooth only
                together.
            KinkError: the loss has no second derivative at w.
        """
        size = 0.0
        for along in (directions, Directions(self.lanes.objective, 1, rank=directions.rank, normalize="none", scale="unit")):
            form = float(self.lanes.at(self.lanes.block(along, (0,)), [0.0], "float32")[0, 1, 0])
            size = max(size, abs(form) / (along.length(0) or 1.0) ** 2 if math.isfinite(form) else 0.0)
            try:
                found = self._judged(along, form, size * along.length(0) ** 2)
            except Exception:  # a kink without a rule, a forward that branches: nothing to compare with
                found = Verdict(None)
            self.replica.reset()
            if found.kink:
                raise KinkError(
                    "the loss must have a second derivative at these weights, got one with a kink: its second differences grow "
                    "as the distance, not as its square (a norm that is zero?); use fs.responses at finite radii"
                )
            if found.agrees is False:
                raise UntraceableError(
                    f"model must have the second derivatives of its operations, got d'Hd = {form:.6g} by them and "
                    f"{found.form:.6g} by losses nearby: some are smooth at these weights only together (a norm squared, at 0)"
                )

    def _judged(self, directions: Directions, form: float, size: float) -> Verdict:
        arithmetic = replica_arithmetic(self.replica)
        if arithmetic.narrow is not None or arithmetic.rounds:  # the losses nearby go in steps
            return Verdict(None)
        replica, branches = self.replica, Branches()
        displacement = Displacement(replica.base, replica.scratch)

        def loss(mode: Callable[[int], AbstractContextManager[None]]) -> float:
            total = 0.0
            for batch, weight in enumerate(self.lanes.objective.batch_weights):
                with mode(batch):
                    total += weight * float(replica.batch_loss(batch)[0])
            return total / self.lanes.objective.samples

        def losses(step: float) -> tuple[float, float]:
            found = []
            for sign in (1, -1):
                displacement.write(sign * step)
                found.append(loss(branches.held))
            return found[0], found[1]

        narrow = replica_arithmetic(replica).narrow
        replica.reset()
        base = branches.settled(loss)[1]
        displacement.select(directions, 0)
        return judged(losses, base, (directions.weight_norm or 1.0) / directions.length(0), form, size, narrow=narrow)

    def _differing(self, pairs: Mapping[str, tuple[float, float]], floor: float) -> str | None:
        """The response that differs from subtraction by more than rounding, if any."""
        part = _AGREEMENT["float32"]
        larger = max(abs(expected) for _, expected in pairs.values())

        def wrong(name: str, least: float) -> bool:
            found, expected = pairs[name]
            allowed = part * (abs(expected) + _BESIDE * larger) + least
            return math.isfinite(expected) and not abs(found - expected) <= allowed

        if not any(wrong(name, floor) for name in pairs):
            return None
        narrow = replica_arithmetic(self.replica).narrow  # rounds subtraction, and not the lanes
        if narrow is not None:
            floor *= torch.finfo(narrow).eps / torch.finfo(self.replica.dtype).eps
            part = max(part, _AGREEMENT["bfloat16"])
        return next((name for name in pairs if wrong(name, floor)), None)
