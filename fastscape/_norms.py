"""Layers that keep running statistics: which they are, how they take those of a batch instead, and what either gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fastscape._checks import first_line
from fastscape._state import exact_arithmetic, preserved_rng

if TYPE_CHECKING:
    from fastscape.objective import Objective

BatchNormMode = Literal["running", "batch"]
DIFFER = 0.05  # relative difference of the two losses above which a result says both
_PREFIXES = ("running_", "moving_")  # of the buffers of layers that are not torch's
_KEPT = "_kept_statistics"


@dataclass(frozen=True)
class Statistics:
    """L(w) by either kind of statistics.

    Attributes:
        running: with the running statistics.
        batch: with those of each batch; NaN where they cannot be had.
        failure: why they cannot be had; empty where they can.
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


def tracking(model: nn.Module) -> dict[str, nn.Module]:
    """Layers with running statistics, by name: batch and instance norm of torch, and others that keep such buffers."""
    return {name: module for name, module in model.named_modules() if _tracks(module)}


def frozen(model: nn.Module) -> frozenset[str]:
    """Those of a model in training mode that are in evaluation mode: it is trained with their running statistics."""
    if not model.training:
        return frozenset()
    return frozenset(name for name, module in tracking(model).items() if not module.training)


def _tracks(module: nn.Module) -> bool:
    if isinstance(module, _NormBase):
        return module.running_mean is not None
    buffers = [(name, buffer) for name, buffer in module._buffers.items() if isinstance(buffer, Tensor)]
    return any(name.startswith(_PREFIXES) and buffer.is_floating_point() for name, buffer in buffers)


def of_torch(module: nn.Module) -> bool:
    """Whether a layer normalises by torch's own forward, which takes the batch's statistics where it has no others."""
    return isinstance(module, _NormBase) and type(module).forward.__module__.startswith("torch.nn.")


def use_batch(module: nn.Module) -> None:
    """Make a private layer normalise by the statistics of each batch, and keep what it has of running ones.

    torch's own lose their buffers and stay in evaluation mode. Others are put into training mode; their buffers are copies while
    the forward runs, so that what it writes into them is gone afterwards.
    """
    if isinstance(module, _NormBase) and of_torch(module):
        module.track_running_stats = False
        module.running_mean = module.running_var = module.num_batches_tracked = None
        return
    module.training = True
    module.register_forward_pre_hook(_lend)
    module.register_forward_hook(_restore, always_call=True)


def _lend(module: nn.Module, _inputs: Any) -> None:
    kept = dict(module._buffers)
    module.__dict__[_KEPT] = kept
    for name, buffer in kept.items():
        module._buffers[name] = None if buffer is None else buffer.clone()


def _restore(module: nn.Module, _inputs: Any, _outputs: Any) -> None:
    module._buffers.update(module.__dict__.pop(_KEPT, {}))


def compared(objective: Objective) -> Statistics:
    """L(w) by both kinds of statistics; what a forward raises is told. Cost: two forwards per batch."""
    losses, failure = {"running": math.nan, "batch": math.nan}, ""
    own = all(of_torch(module) for module in tracking(objective.model).values())
    with preserved_rng():
        for mode in ("running", "batch"):
            try:
                switched = objective.switched(mode)
                losses[mode] = switched.loss()
                if mode == "batch" and not own and not _repeats(switched):
                    failure, losses[mode] = "layers draw random numbers in training mode", math.nan
            except Exception as error:  # of the model: batches of one sample, or layers that need what they lost
                failure = f"{type(error).__name__}: {first_line(error)}"
    return Statistics(losses["running"], losses["batch"], failure)


def unmoved(objective: Objective) -> bool:
    """Whether the mode of the layers changes nothing, such as that of frozen batch norm that is not torch's."""
    layers = tracking(objective.model)
    if any(isinstance(layers[name], _NormBase) for name in objective.by_batch):
        return False
    found = objective.statistics()
    return found.running == found.batch


def untrained(objective: Objective) -> str:
    """Why the objective is not the function that training lowers; empty where it is."""
    if objective.batch_norm == "batch" or not objective.by_batch or unmoved(objective):
        return ""
    failure = objective.statistics().failure
    if failure and objective.batch_norm_asked is None:
        return f"training used batch statistics, which these data do not give: {failure}"
    return "training used batch statistics; pass batch_norm='batch'"


def _repeats(objective: Objective) -> bool:
    """Whether two evaluations after each other agree."""
    with exact_arithmetic(objective.dtype):
        replica = objective.replica(objective.dtype)
        replica.reset()
        first, second = float(replica.loss()), float(replica.loss())
    return first == second or (math.isnan(first) and math.isnan(second))
