"""Operations that cannot be followed, refused by name before any work is done."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastscape.differences.rules.table import RULES
from fastscape.differences.steps import Program, Step

IDENTITY = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}
_RANDOM = {"bernoulli", "rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "normal", "normal_functional",
           "uniform",
           "exponential", "multinomial", "poisson", "randperm", "cauchy", "geometric", "log_normal", "binomial"}  # fmt: skip
SIZED_BY_VALUES = {"nonzero", "nonzero_numpy", "argwhere", "masked_select", "unique", "_unique", "_unique2", "unique_dim",
                    "unique_consecutive", "bincount", "repeat_interleave"}  # fmt: skip


class UntraceableError(ValueError):
    """The forward cannot be followed operation by operation; the message names the module and the operation."""


def check_modules(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what does not run operation by operation, before anything is run."""
    for name, part in module.named_modules():
        if isinstance(part, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            raise UntraceableError(
                f"module {name or type(part).__name__} must be an eager one, got TorchScript; pass the original"
            )
        if hasattr(part, "_orig_mod") and type(part).__module__.startswith("torch._dynamo"):
            raise UntraceableError(f"module {name} must be an eager one, got torch.compile's; pass what was compiled")
        if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")):
            raise UntraceableError(
                f"module {name} must have floating-point weights, got {type(part).__name__}; pass the original"
            )
    for name, tensor in tensors.items():
        if tensor.is_quantized or tensor.layout != torch.strided:
            kind = "a quantised tensor" if tensor.is_quantized else f"layout {tensor.layout}"
            raise UntraceableError(f"parameter {name} must be a plain tensor, got {kind}; convert it")


def check_steps(graph: fx.GraphModule, program: Program) -> None:
    """Refuse operations that cannot be followed, by name and module."""
    nodes = {node.name: node for node in graph.graph.nodes}
    moving = {step.name for step in program.steps if step.moves}
    for step in program.steps:
        schema = getattr(step.target, "_schema", None)
        if schema is None:
            if step.moves and step.target is not operator.getitem:
                raise UntraceableError(f"operation {step.target}{_in(step)} must be one of torch's own to be followed")
            continue
        space, name = schema.name.split("::")
        if _is_random(name, nodes[step.name]):
            raise UntraceableError(f"operation {name}{_in(step)} draws random numbers; the loss must be a fixed function")
        if "sparse" in name:
            raise UntraceableError(f"operation {name}{_in(step)} works on a sparse tensor; use dense ones")
        if not step.moves:
            continue
        if schema.is_mutable:
            raise UntraceableError(
                f"operation {name}{_in(step)} writes in place into memory shared with other tensors; assign instead"
            )
        if name in SIZED_BY_VALUES and step.target not in RULES and _moving_inputs(step, moving):
            raise UntraceableError(f"operation {name}{_in(step)} gives a shape that depends on the parameters; use a mask")
        if name == "index" and any(_is_mask(argument) and argument.name in moving for argument in step.arguments[1]):
            raise UntraceableError(
                f"operation {name}{_in(step)} picks elements by a condition on the parameters; use torch.where"
            )
        if space not in ("aten", "prims") and step.target not in RULES:
            raise UntraceableError(
                f"operation {schema.name}{_in(step)} has no difference rule; write it with torch's own operations"
            )


def _in(step: Step) -> str:
    return f" in module {step.module}" if step.module else ""


def _is_random(name: str, node: fx.Node) -> bool:
    if name in _RANDOM:
        return True
    arguments = {argument.name: argument.default_value for argument in node.target._schema.arguments}  # type: ignore[union-attr]
    arguments |= dict(zip(arguments, node.args, strict=False)) | dict(node.kwargs)
    if name in IDENTITY or name == "native_dropout":
        return bool(arguments["train"]) and arguments["p"] != 0
    return bool(arguments.get("dropout_p")) or (name.startswith("rrelu") and bool(arguments.get("training")))


def _moving_inputs(step: Step, moving: set[str]) -> bool:
    """Whether a tensor whose values decide on a shape depends on the parameters (that of ``repeat_interleave``: the repeats)."""
    arguments = step.arguments[1:2] if "repeat_interleave" in str(step.target) else step.arguments
    return any(isinstance(argument, fx.Node) and argument.name in moving for argument in arguments)


def _is_mask(node: Any) -> bool:
    meta = node.meta.get("val", node.meta.get("tensor_meta")) if isinstance(node, fx.Node) else None
    return meta is not None and getattr(meta, "dtype", None) in (torch.bool, torch.uint8)


def check_transform(function: Any) -> None:
    """Refuse operations under ``torch.func`` transforms: their inner tensors hide what they depend on."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise UntraceableError(
            "model must not use torch.func transforms (vmap, grad, jvp) to be followed, got one around "
            f"{getattr(function, '__name__', function)}; write the batched or differentiated operations out"
        )
