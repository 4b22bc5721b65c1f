"""Models whose parameters are shards, of FSDP2 (``fully_shard``) or DTensor: the local parts, and sums over the processes.

Every process makes the same calls, and holds all batches. What is read from several is summed where one alone has a number that
is not zero, which no order of additions changes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

UNSHARDED = (
    "put the weights into an unsharded copy of the model: get_model_state_dict(model, options=StateDictOptions("
    "full_state_dict=True)) of torch.distributed.checkpoint.state_dict"
)


class ShardedModelError(ValueError):
    """The weights are shards, and what was asked for needs them whole."""


def needs_whole(what: str = "this") -> ShardedModelError:
    """The refusal of what works on whole weights alone."""
    return ShardedModelError(
        f"objective must hold whole weights for {what}, got a sharded model (FSDP2 or DTensor), on which fs.losses, "
        f"fs.responses, fs.multifractal and fs.spectrum work; {UNSHARDED}"
    )


@dataclass(frozen=True)
class Part:
    """What this process holds of a parameter.

    Attributes:
        name: of the parameter.
        local: its elements, in the parameter's own memory.
        first: the first of them in the whole.
        row: the first of their rows along dim 0.
        replicated: every process holds the whole.
    """

    name: str
    local: Tensor
    first: int
    row: int
    replicated: bool


def sharding_of(model: nn.Module) -> Sharding | None:
    """The sharding of a model; ``None`` for a model whose parameters are plain tensors."""
    modules = _wrapped(model)
    for module in modules:
        module.reshard()
    held = any(_is_dtensor(tensor) for tensor in [*model.parameters(), *model.buffers()])
    return Sharding(model, modules) if modules or held else None


def settle(sharding: Sharding | None) -> None:
    """See :meth:`Sharding.settle`; nothing for a model whose parameters are plain tensors."""
    if sharding is not None:
        sharding.settle()


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its elements; one of DTensor is gathered from all processes, which must call this together."""
    full: Tensor = tensor.full_tensor() if _is_dtensor(tensor) else tensor  # type: ignore[attr-defined]
    return full


def _wrapped(model: nn.Module) -> list[Any]:
    """Modules that FSDP2 shards; who has some has imported its module, which takes a while."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return [] if fsdp is None else [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


def _is_dtensor(tensor: object) -> bool:
    library = sys.modules.get("torch.distributed.tensor")
    return library is not None and isinstance(tensor, library.DTensor)


class Sharding:
    """The processes that hold a model's parameters together.

    Args:
        model: the user's own; it is evaluated as it is, since no copy of it can be made.
        modules: those of it that FSDP2 shards.

    Attributes:
        index, count: of this process among all that hold the model.
        dealt: batches are dealt to the processes, as FSDP2's are; else every process evaluates all of them.

    Raises:
        ValueError: a sharding that cannot be evaluated, with the remedy.
    """

    def __init__(self, model: nn.Module, modules: Sequence[Any]) -> None:
        self.model, self._modules, self.dealt = model, list(modules), bool(modules)
        for name, module in model.named_modules():
            if module in self._modules:
                _check_policy(name, module)
        meshes = []
        for name, tensor in model.named_parameters():
            if _is_dtensor(tensor):
                _check_placements(name, tensor)
                meshes.append(tensor.device_mesh)  # type: ignore[attr-defined]
        if not meshes:
            raise ShardedModelError("model must have sharded parameters, got buffers that are DTensors alone; make them plain")
        if any(mesh != meshes[0] for mesh in meshes):
            raise ShardedModelError(f"model must be sharded over one mesh, got {meshes[0]} and another; {UNSHARDED}")
        self._mesh: Any = meshes[0]
        shape = tuple(self._mesh.mesh.shape)
        self.index = int(np.ravel_multi_index(self._mesh.get_coordinate(), shape))
        self.count = int(np.prod(shape))
        self._kept: dict[str, Tensor] | None = None
        self._displaced: list[Part] = []

    # ------------------------------------------------------------------ the weights

    def reshard(self) -> None:
        """Let go of gathered weights: FSDP2 keeps those of its root, and the next forward would take them for the shards'."""
        for module in self._modules:
            module.reshard()

    def settle(self) -> None:
        """Have the user's weights in place to be read, also inside :meth:`held`, where others may be."""
        self.reshard()
        for part in self._displaced if self._kept is not None else ():
            part.local.copy_(self._kept[part.name])  # type: ignore[index]

    def recover(self) -> None:
        """After an exception inside a forward or a backward: FSDP2 would keep the gathered weights, displaced as they are."""
        for module in self._modules:
            if module._get_fsdp_state()._is_root:
                module.reset_iter_state()

    def parts(self, names: Sequence[str]) -> list[Part]:
        """What this process holds of some parameters, all of one dtype."""
        self.reshard()
        held = dict(self.model.named_parameters())
        return [_part(name, held[name].detach()) for name in names]

    @contextmanager
    def held(self, names: Sequence[str]) -> Iterator[None]:
        """In evaluation mode, with copies of what may be written into, which come back whatever happens; may be nested."""
        if self._kept is not None:
            yield
            return
        self._displaced = self.parts(names)
        buffers = [(buffer, buffer.detach().clone()) for buffer in self.model.buffers()]
        modes = [(module, module.training) for module in self.model.modules()]
        self._kept = {part.name: part.local.clone() for part in self._displaced}
        try:
            self.model.eval()
            yield
        except BaseException:
            self.recover()
            raise
        finally:
            with torch.no_grad():
                self.settle()
                self._kept = None
                for buffer, before in buffers:
                    buffer.copy_(before)
            for module, mode in modes:
                module.training = mode

    def kept(self, names: Sequence[str]) -> list[Tensor]:
        """Copies of the local weights as they were, inside :meth:`held`.

        Raises:
            ShardedModelError: outside of it, where the user's weights must not be written into.
        """
        if self._kept is None:
            raise needs_whole()
        return [self._kept[name] for name in names]

    def like(self, name: str, local: Tensor) -> Tensor:
        """Local elements as a tensor that is sharded as a parameter is."""
        parameter: Any = self.model.get_parameter(name)
        if not _is_dtensor(parameter):
            return local
        library: Any = sys.modules["torch.distributed.tensor"]
        found: Tensor = library.DTensor.from_local(
            local, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
        )
        return found

    # ------------------------------------------------------------------ sums

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place; exact where each number is zero in all processes but one."""
        for dim in range(self._mesh.ndim):
            dist.all_reduce(values, group=self._mesh.get_group(dim))
        return values

    def largest(self, value: float) -> float:
        """The largest of the processes' numbers: where a time decides, it decides the same everywhere."""
        found = torch.tensor([value], dtype=torch.float64, device=self._mesh.device_type)
        for dim in range(self._mesh.ndim):
            dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._mesh.get_group(dim))
        return float(found)

    def check_equal(self, texts: Mapping[str, str]) -> None:
        """Raise on every process unless all hold the same texts."""
        words = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little") for text in texts.values()]
        ends = [(self.largest(word), -self.largest(-word)) for word in words]  # the same in all processes, so all raise
        different = [name for name, (high, low) in zip(texts, ends, strict=True) if high != low]
        if different:
            raise ShardedModelError(
                f"every process must hold the same {', '.join(different)} for a sharded model, got others on some; pass all "
                "batches to every process, without a DistributedSampler: they are dealt here"
            )


def _part(name: str, tensor: Tensor) -> Part:
    if not _is_dtensor(tensor):
        return Part(name, tensor, 0, 0, replicated=True)
    local = tensor.to_local()  # type: ignore[attr-defined]
    mesh, dim = tensor.device_mesh, _sharded_dim(tensor)  # type: ignore[attr-defined]
    if dim is None:
        return Part(name, local, 0, 0, replicated=True)
    rows, pieces = tensor.shape[0], mesh.size(dim)
    chunk = -(-rows // pieces)  # of torch.chunk
    row = min(mesh.get_local_rank(dim) * chunk, rows)
    if local.shape[0] != min(chunk, rows - row) or not local.is_contiguous():
        raise ShardedModelError(f"parameter {name!r} must be cut along dim 0 as torch.chunk does; {UNSHARDED}")
    return Part(name, local, row * tensor.shape[1:].numel(), row, replicated=False)


def _sharded_dim(tensor: Any) -> int | None:
    """The dimension of the mesh over which dim 0 of a parameter is cut; ``None`` where every process holds the whole."""
    return next((dim for dim, placement in enumerate(tensor.placements) if placement.is_shard()), None)


def _check_placements(name: str, tensor: Any) -> None:
    """Refuse what is not Shard(0) over one dimension of the mesh, and Replicate over the others."""
    library: Any = sys.modules["torch.distributed.tensor"]
    cut = [placement for placement in tensor.placements if not placement.is_replicate()]
    if len(cut) > 1 or any(type(placement) is not library.Shard or placement.dim != 0 for placement in cut):
        raise ShardedModelError(
            f"model must be sharded by Shard(0), once, or Replicate(), got {tensor.placements} for the parameter {name!r}; "
            f"{UNSHARDED}"
        )


def _check_policy(name: str, module: Any) -> None:
    """Refuse what FSDP2 would do to the weights on the way to the forward, and what would leave them gathered after it."""
    state, where = module._get_fsdp_state(), f"fully_shard of {name or 'the root'}"
    policy = state._mp_policy
    dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    for argument in ("param_dtype", "output_dtype"):
        narrow = getattr(policy, argument)
        if narrow is not None and dtypes - {narrow}:
            raise ShardedModelError(
                f"model must be evaluated in the dtype of its shards, got MixedPrecisionPolicy({argument}={narrow}) in {where}: "
                "its rounding is larger than the responses; call fully_shard without mp_policy to probe"
            )
    for group in state._fsdp_param_groups:
        if not group._reshard_after_forward and not state._auto_reshard_after_forward:
            raise ShardedModelError(
                f"model must be resharded after every forward, got reshard_after_forward=False in {where}: gathered weights "
                "would be used again after the shards have moved; leave the argument out, or call "
                "model.set_reshard_after_forward(True)"
            )


def gradient_policy(sharding: Sharding) -> str:
    """Why the gradients of a model are not those of the mean over the processes in its own dtype; empty where they are."""
    for module in sharding._modules:
        state = module._get_fsdp_state()
        narrow = state._mp_policy.reduce_dtype
        if narrow is not None and any(parameter.dtype != narrow for parameter in module.parameters()):
            return f"MixedPrecisionPolicy(reduce_dtype={narrow}) rounds the gradients; call fully_shard without it to probe"
        for group in state._fsdp_param_groups:
            if group.gradient_divide_factor is not None:
                return "set_gradient_divide_factor scales the gradients; leave it out to probe"
            if not (group.reduce_grads and group.all_reduce_grads):
                return "set_requires_gradient_sync(False) leaves gradients apart; set it to True to probe"
    return ""
