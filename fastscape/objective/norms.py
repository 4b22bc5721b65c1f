"""Layers that keep running statistics: which they are, and how they take those of a batch instead."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

BatchNormMode = Literal["running", "batch"]
_PREFIXES = ("running_", "moving_")  # of the buffers of layers that are not torch's
_KEPT = "_kept_statistics"


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
