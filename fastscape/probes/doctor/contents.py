"""What the doctor looks at in a model and its data without evaluating the loss: parameters, buffers, layers, batches, device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fastscape._checks import counted
from fastscape.objective.norms import tracking
from fastscape.objective.objective import Objective
from fastscape.objective.structures import strided, tensors_of
from fastscape.probes.doctor.result import Finding
from fastscape.reports.numbers import spanned

_NAMED = 4  # names in a finding
HALF = (torch.float16, torch.bfloat16)


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _parameters(objective: Objective) -> Finding:
    dtypes = sorted({str(tensor.dtype)[6:] for tensor in objective.model.parameters()})
    words = f"{objective.size:,} parameters in {counted(len(objective.names), 'tensor')}, {', '.join(dtypes)}"
    if objective.dtype in HALF:
        remedy = "no effect on results; pass Objective(dtype=torch.float32) to state it in them"
        words = f"{words}: responses and products are evaluated on float32 or float64 copies of these weights"
        return Finding("parameters", "warning", words, remedy)
    if len(dtypes) > 1:
        words = f"{words}: all are evaluated in {str(objective.dtype)[6:]}"
        return Finding("parameters", "warning", words, "cast the model to one dtype if that is not what it is used in")
    return Finding("parameters", "ok", words)


def _frozen(objective: Objective) -> Finding:
    probed, aliases = set(objective.names), dict[int, list[str]]()
    for name, tensor in objective.model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(tensor), []).append(name)
    still = [names[0] for names in aliases.values() if not probed & set(names)]
    tied = [" = ".join(names) for names in aliases.values() if len(names) > 1]
    told = [f"tied, and counted once: {few(tied)}"] if tied else []
    if still:
        told.insert(0, f"{counted(len(still), 'tensor')} that no direction moves: {few(still)}")
        remedy = "requires_grad_(True), or params= that selects them; else all numbers are of the subspace that moves"
        return Finding("frozen and tied", "warning", "; ".join(told), remedy)
    return Finding("frozen and tied", "ok", "; ".join(told) or "every parameter moves, none is tied")


def _finite(objective: Objective) -> Finding:
    state = objective.state
    named = {**dict(objective.model.named_parameters()), **dict(objective.model.named_buffers())}
    held = {name: state[name] if state is not None and name in state else tensor for name, tensor in named.items()}
    held |= objective.base
    bad = [
        name
        for name, tensor in held.items()
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(tensor.isfinite().all())
    ]
    if bad:
        remedy = "load an earlier checkpoint; training diverged, or the file is damaged"
        return Finding("finite weights", "error", f"NaN or inf in {few(bad)}", remedy)
    return Finding("finite weights", "ok", "no NaN or inf in parameters and buffers")


def _zeros(objective: Objective) -> Finding:
    zero = [name for name, tensor in objective.base.items() if not bool(tensor.any())]
    if not zero:
        return Finding("zero weights", "ok", "no parameter is zero throughout")
    words = f"{counted(len(zero), 'parameter')} zero throughout: {few(zero)}; tensor-normalised directions never move them"
    if len(zero) == len(objective.names):
        return Finding("zero weights", "error", words, "load or initialise weights; or normalize='none', scale='unit'")
    return Finding("zero weights", "warning", words, "normalize='global' or 'module' moves them; or train a few steps first")


def _batch_norm(objective: Objective) -> Finding:
    layers = tracking(objective.model)
    untracked = [module for module in objective.model.modules() if isinstance(module, _NormBase)]
    if not layers:
        words = f"{counted(len(untracked), 'layer')}, with the statistics of each batch" if untracked else "no layer of it"
        return Finding("batch norm", "ok", words)
    found, asked = objective.statistics(), objective.batch_norm_asked
    words = f"{counted(len(layers), 'layer')} with running statistics, loss {found.running:.3g}; "
    if found.failure:
        words += f"those of the batch are undefined: {found.failure}"
        remedy = "use larger batches: stability, temperature and difficulty need their statistics"
        return Finding("batch norm", "warning", words, remedy)
    words += f"with those of the batch {found.batch:.3g}; "
    words += (
        "both are probed: running ones, but the batch's, as in training, where an optimizer is given"
        if asked is None
        else (f"{asked!r} were asked for")
    )
    fresh = [name for name in layers if _initial(objective, name, layers[name])]
    if asked == "batch" or not (fresh or found.differ):
        return Finding("batch norm", "ok", words)
    if fresh:
        words = f"{words}; {len(fresh)} at their initial values 0 and 1: {few(fresh)}"
    remedy = "batch_norm='batch' for the function that was trained, or run the training data through it in training mode first"
    return Finding("batch norm", "warning", words, remedy)


def _initial(objective: Objective, name: str, module: nn.Module) -> bool:
    """Whether running statistics are the mean 0 and variance 1 that they start from."""
    if not isinstance(module, _NormBase):
        return False
    state = objective.state or {}
    mean, variance = (state.get(f"{name}.{part}", getattr(module, part)) for part in ("running_mean", "running_var"))
    return not bool(mean.any()) and bool((variance - 1 == 0).all())


def _random(objective: Objective) -> Finding:
    kind = nn.modules.dropout._DropoutNd
    layers = [name for name, module in objective.model.named_modules() if isinstance(module, kind) and module.p > 0]
    if layers:
        return Finding("random layers", "ok", f"dropout in {few(layers)}: off in probes, which evaluate a copy in eval()")
    return Finding("random layers", "ok", "no dropout layer; the loss is evaluated twice to see randomness of other kinds")


def _data(objective: Objective) -> Finding:
    sizes = [objective.count(batch) for batch in objective.batches]
    words = f"{objective.samples:g} terms in {counted(len(sizes), 'batch')} of {spanned(sizes)} samples"
    if any(not bool(part.isfinite().all()) for batch in objective.batches for part in _numbers(batch)):
        return Finding("data", "error", f"{words}, with NaN or inf in them", "clean the data: one such sample is the whole loss")
    rule = objective.weighting.rule.words
    sure = objective.weighting.sure
    if not sure or (len(set(sizes)) > 1 and rule == "their samples"):
        known = "which the halves of a batch confirm" if sure else "a guess"
        words = f"{words}: ragged, and weighted by {rule}, {known}, as loss= states no number of terms"
        return Finding("data", "warning", words, "pass weight=lambda batch: n, the number of terms in each batch's mean")
    return Finding("data", "ok", words + (f": ragged, weighted by {rule}" if len(set(objective.batch_weights)) > 1 else ""))


def _device(objective: Objective) -> Finding:
    device = objective.device
    if device.type == "cpu" and torch.cuda.is_available():
        remedy = "--device cuda, or Objective(device='cuda')"
        return Finding("device", "warning", f"model and data are on the CPU, beside {torch.cuda.get_device_name()}", remedy)
    return Finding("device", "ok", f"model and data are on {device}")


def _numbers(batch: object) -> list[Tensor]:
    """The floating-point and complex numbers of a batch."""
    parts = [part for tensor in tensors_of(batch) for part in strided(tensor)]
    return [part for part in parts if part.is_floating_point()]


CONTENTS: dict[str, Callable[[Objective], Finding]] = {
    "parameters": _parameters,
    "frozen and tied": _frozen,
    "finite weights": _finite,
    "zero weights": _zeros,
    "batch norm": _batch_norm,
    "random layers": _random,
    "data": _data,
    "device": _device,
}
