"""Arguments of an objective: what each must be, or an error that names it, its value and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from fastscape._checks import first_line, noted, one_of, shown
from fastscape.objective.batches import Batch
from fastscape.objective.criteria import Criterion, check_targets
from fastscape.objective.private import eager
from fastscape.objective.structures import arrays_of, tensors_of

Select = str | Sequence[str] | Callable[[str, Tensor], bool] | None


def checked_model(model: nn.Module) -> nn.Module:
    """The module itself, without wrappers, where it is eager, initialised and holds data."""
    if not isinstance(model, nn.Module):
        how = {
            "type": "an instance of it",
            "OrderedDict": "the module that it was saved from",
            "dict": "the module of that state",
        }
        remedy = how.get(type(model).__name__, "the network itself; a function can be the forward of a module of its own")
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; pass {remedy}")
    while True:
        inner = getattr(model, "_orig_mod", None)  # torch.compile
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            break
        model = inner
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise TypeError(
                f"model must be sharded by FSDP2, got FullyShardedDataParallel in {name or 'the root'}; "
                "use torch.distributed.fsdp.fully_shard"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"model must be an eager module, got TorchScript in {name or 'the root'}: its parameters cannot be "
                "replaced one evaluation at a time; pass the module it was scripted from"
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"model must be initialised, got the lazy tensor {name!r}; run one forward first")
        if tensor.is_meta:
            remedy = (
                "accelerate has offloaded it: accelerate.hooks.remove_hook_from_submodules(model) brings back what was in memory "
                "before, or load the model without offloading (device_map='cpu')"
                if any(hasattr(module, "_hf_hook") for module in model.modules())
                else "load its weights first"
            )
            raise ValueError(f"model must hold data, got {name!r} on the meta device; {remedy}")
    return eager(model)


def selected(model: nn.Module, params: Select) -> tuple[str, ...]:
    """Canonical names of the parameters to move; a tied parameter matches by any of its names."""
    aliases: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(tensor), []).append(name)
    globs = [params] if isinstance(params, str) else params
    if not (globs is None or callable(globs)):
        others = [globs] if not isinstance(globs, Sequence) else [glob for glob in globs if not isinstance(glob, str)]
        if others:
            raise TypeError(
                f"params must be names or globs of them, or a function (name, tensor) -> bool, got {type(others[0]).__name__}; "
                f"write such as params={next(iter(dict(model.named_parameters())), 'name')!r}"
            )

    def wanted(name: str, tensor: Tensor) -> bool:
        if globs is None:
            return True
        if callable(globs):
            with noted(f"raised by params= on the name and tensor of {name!r}"):
                return bool(globs(name, tensor))
        return any(fnmatchcase(alias, glob) for alias in aliases[id(tensor)] for glob in globs)

    found = [(name, tensor) for name, tensor in model.named_parameters() if wanted(name, tensor)]
    movable = [(name, tensor) for name, tensor in found if tensor.requires_grad and tensor.numel()]
    if not movable:
        if not aliases:
            why = "the model has no parameters"
        elif found:
            why = f"all {len(found)} that match are frozen, empty or hold integers; call .requires_grad_(True) on those to move"
        else:
            why = f"none matches; the names are {', '.join(name for name, _ in model.named_parameters())[:200]}"
        raise ValueError(f"params must select at least one trainable parameter, got params={params!r}: {why}")
    for name, tensor in movable:
        if not tensor.is_floating_point():
            raise ValueError(
                f"params must select real floating-point tensors, got the {'complex' if tensor.is_complex() else 'integer'} "
                f"parameter {name!r} of {tensor.dtype}; move the others with params=lambda name, tensor: "
                "tensor.is_floating_point(), which keeps it fixed, or hold it as real pairs (torch.view_as_complex in forward)"
            )
    return tuple(name for name, _ in movable)


def check_named(unnamed: Sequence[object]) -> None:
    """Raise where more than model and data came by position."""
    if unnamed:
        raise TypeError(
            f"objective takes all but model and data by name, got {unnamed[0]!r} in third place; write criterion= for a "
            "function of (outputs, targets), loss= for one of (model, batch)"
        )


def check_loss_and_weight(criterion: object, loss: object, weight: object) -> None:
    """Raise unless there is one loss, and a weight that can be called where there is one."""
    if (criterion is None) == (loss is None):
        got = "neither" if loss is None else "both"
        raise ValueError(f"pass either criterion= for (inputs, targets) batches or loss= for any other, got {got}")
    if weight is not None and not callable(weight):
        raise TypeError(f"weight must be a function of a batch, got {weight!r}; use weight=lambda batch: n")


def check_dtype(dtype: object) -> None:
    """Raise unless ``dtype`` is ``None`` or one of floating-point numbers."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be a floating-point torch dtype, got {dtype!r}; use such as torch.float64")


def check_batch_norm(batch_norm: object) -> None:
    """Raise unless ``batch_norm`` is a mode."""
    one_of("batch_norm", batch_norm, ("running", "batch", None))


def checked_device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """The device that was asked for, or that of all parameters and buffers."""
    if device is not None:
        try:
            return torch.empty(0, device=device).device  # "cuda" becomes "cuda:0", as tensors name it
        except TypeError as error:
            raise TypeError(f"device must be a torch.device or its name, got {shown(device)}; write such as 'cuda:0'") from error
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device must be usable on this machine, got {str(device)!r} ({first_line(error)})") from error
    found = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    if len(found) != 1:
        raise ValueError(
            f"model must be on one device, got {sorted(map(str, found))}; move it, or pass device= to evaluate a copy there"
        )
    return found.pop()


def check_pairs(batches: list[Batch], criterion: Criterion) -> None:
    """Raise unless every batch is (inputs, targets), both of tensors."""
    if len(batches) == 2 and all(isinstance(batch, (Tensor, np.ndarray)) for batch in batches):
        shapes = " and ".join(str(tuple(batch.shape)) for batch in batches)
        raise ValueError(f"data must hold batches, got two tensors of shapes {shapes}; write [(inputs, targets)] for one batch")
    for index, batch in enumerate(batches):
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            found = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
            raise ValueError(
                f"data[{index}] must be a pair (inputs, targets) for criterion=, got {found}; "
                "use loss=lambda model, batch: ... for other batches"
            )
        array = next(iter(arrays_of(batch)), None)
        if array is not None:
            raise ValueError(
                f"data[{index}] must hold tensors, got a NumPy array of shape {array.shape}; convert it with torch.from_numpy"
            )
        if not tensors_of(batch[1]):
            raise ValueError(f"data[{index}] must hold targets, got {type(batch[1]).__name__} beside the inputs")
        check_targets(criterion, batch[1], index)


def _holds_weights(given: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether weights of a floating or complex dtype are given as such: others, and floats of a byte, are codes of weights."""
    if given == wanted or not (wanted.is_floating_point or wanted.is_complex):
        return True
    return given.is_complex == wanted.is_complex and given.is_floating_point == wanted.is_floating_point and given.itemsize > 1


def matched_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` completed by the aliases of tied tensors, or raise a ValueError that lists what does not fit."""
    if not isinstance(state, Mapping):
        remedy = "pass its state_dict()" if isinstance(state, nn.Module) else "pass model.state_dict(), or torch.load(path)"
        raise TypeError(f"state must be a state dict, got {type(state).__name__}; {remedy}")
    expected = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    aliases: dict[int, list[str]] = {}
    for name, tensor in expected.items():
        aliases.setdefault(id(tensor), []).append(name)
    complete = {name: value for name, value in state.items() if isinstance(value, Tensor)}  # no extra state
    for names in aliases.values():  # safetensors keeps one name of a tied tensor
        present = next((name for name in names if name in complete), None)
        if present is not None:
            complete.update({name: complete[present] for name in names if name not in complete})
    problems = [f"missing {name}" for name in expected if name not in complete]
    problems += [f"unexpected {name}" for name in complete if name not in expected]
    problems += [
        f"{name} has shape {tuple(complete[name].shape)}, the model {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in complete and complete[name].shape != tensor.shape
    ]
    problems += [
        f"{name} holds {complete[name].dtype}, the model {tensor.dtype}"
        for name, tensor in expected.items()
        if name in complete and not _holds_weights(complete[name].dtype, tensor.dtype)
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        inner = next((key for key, value in state.items() if isinstance(value, Mapping) and set(expected) & set(value)), None)
        remedy = f"; pass its entry {inner!r}" if inner is not None else ""
        if any(" holds torch." in problem for problem in problems):
            remedy += "; pass weights of the model's dtype, those of a quantised checkpoint after they were dequantised"
        raise ValueError(f"state must match {type(model).__name__}, got: {'; '.join(problems[:5])}{more}{remedy}")
    return complete
