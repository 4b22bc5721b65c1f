"""The private copy of a model: modules and buffers of its own, and parameters as they are asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastscape.objective.batches import cast
from fastscape.objective.definition import Definition
from fastscape.objective.norms import use_batch
from fastscape.objective.private import held_tensors, moved, use_plain_experts


def private_copy(objective: Definition, dtype: torch.dtype, data: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """Deep copy in evaluation mode, whose parameters hold what ``data`` makes of their names and the user's tensors."""
    model, state, device = objective.model, objective.state or {}, objective.device
    probed = set(objective.names)
    memo: dict[int, object] = {}
    for name, tensor in model.named_parameters():
        numbers = data(name, state.get(name, tensor).detach())
        memo[id(tensor)] = nn.Parameter(numbers, requires_grad=tensor.requires_grad)  # torch picks kernels by it: matmul folds
    for name, buffer in model.named_buffers():
        memo[id(buffer)] = cast(state.get(name, buffer).detach().clone(), device, dtype)
    for loose in held_tensors(model):  # e.g. the product that weight_norm caches, or stored activations
        if id(loose) not in memo:
            copied = cast(loose.detach().clone(), device, dtype)
            memo[id(loose)] = nn.Parameter(copied, loose.requires_grad) if isinstance(loose, nn.Parameter) else copied
    try:
        private = copy.deepcopy(model, memo)
    except Exception as error:
        raise TypeError(
            f"model must be copyable with copy.deepcopy, because a private copy is evaluated; {type(model).__name__} "
            f"raised {type(error).__name__}: {error}{_held_by(model)}"
        ) from error
    _check_private(private, model, memo, probed)
    use_plain_experts(private)
    moved(private, device, dtype)
    for module in private.modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            module.sparse = False  # the same gradient, stored as everything else takes it
    private.eval()  # its result is not used: a train() that returns nothing is common
    if objective.batch_norm == "batch":
        layers = dict(private.named_modules())
        for name in objective.by_batch:
            use_batch(layers[name])
    return private


def _held_by(model: nn.Module) -> str:
    """Attribute that cannot be copied, and the remedy."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                copy.deepcopy(
                    value, {id(held): held for held in model.modules()} | {id(held): held for held in held_tensors(model)}
                )
            except Exception:
                where = f"{name}.{attribute}" if name else attribute
                return f"; remove the attribute {where!r}, a {type(value).__name__}, while probing"
    return ""


def _check_private(private: object, model: nn.Module, memo: dict[int, object], probed: set[str]) -> None:
    """Refuse a copy that shares modules with the original or does not hold the scratch parameters."""
    own = isinstance(private, nn.Module) and not {id(m) for m in private.modules()} & {id(m) for m in model.modules()}
    if own:
        assert isinstance(private, nn.Module)
        held = dict(private.named_parameters())
        own = all(held.get(name) is memo[id(tensor)] for name, tensor in model.named_parameters() if name in probed)
    if not own:
        raise TypeError(
            f"model must be copyable with copy.deepcopy, but a __deepcopy__ in {type(model).__name__} does not copy what it "
            "holds; remove it, or let it pass its memo on"
        )
