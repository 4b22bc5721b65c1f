r"""Permutations of hidden units that align one solution with another: weight matching.

The hidden units of a layer can be reordered without changing the function, where everything that writes and reads them is
reordered alike. Of two networks that were trained apart, the second is reordered to be as near to the first as it can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

Order = NDArray[np.int64]
_SWEEPS = 100  # over all layers; a handful is enough
_GAIN = 1e-10  # relative increase of the inner product below which a sweep has found nothing
_PLAIN = (
    nn.Identity, nn.Dropout, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus,
    nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.Dropout2d,
)  # fmt: skip  # act on each unit or channel alone


@dataclass(frozen=True)
class Axis:
    """An axis of a tensor that is indexed by hidden units, ``block`` neighbouring entries for each."""

    name: str
    axis: int
    block: int = 1


@dataclass
class Symmetry:
    """The reorderings of a model's hidden units that leave its function unchanged.

    Attributes:
        groups: for every set of units that is reordered as one: its size and the axes it indexes, in the order of the data.
    """

    groups: list[tuple[int, list[Axis]]] = field(default_factory=list)

    def add(self, size: int, *axes: Axis) -> int:
        """A further set of units; returns its number."""
        self.groups.append((size, list(axes)))
        return len(self.groups) - 1

    def extend(self, group: int, *axes: Axis) -> None:
        """Further axes that a set of units indexes."""
        self.groups[group][1].extend(axes)


def matched(
    state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], model: nn.Module, *, seed: int = 0
) -> dict[str, Tensor]:
    r"""The second state with its hidden units reordered to be nearest to the first; the function is the same.

    .. math:: \max_{P} \sum_\ell \langle W_\ell^A,\; P_\ell W_\ell^B P_{\ell - 1}^\top \rangle_F

    over permutations P of every layer's units, which minimises :math:`\|w^A - w^B\|`. One layer at a time is a linear assignment
    problem, solved exactly; sweeps over the layers end at a local optimum. Two starts are tried, the order as it is and one built
    from the input to the output, each layer by what leads to it, and the better one is kept.

    Args:
        state_a, state_b: state dicts of ``model``.
        model: an ``nn.Sequential`` of linear, convolutional, batch-norm and elementwise or pooling layers, such as the zoo's
            ``mlp`` and ``cnn``, or a torchvision ``ResNet`` such as ``resnet18`` (the blocks of a stage share one order).
        seed: of the order of layers in a sweep.

    Returns:
        a state dict; parameters and running statistics are reordered, not changed.

    Raises:
        ValueError: a model whose symmetries are not known, by the name of the layer; or a layer that is used twice.

    Cost: one matrix product of every layer's weights with themselves, and an assignment of n units, O(n^3), per layer and sweep.

    Source: Ainsworth, Hayase & Srinivasa, "Git Re-Basin: merging models modulo permutation symmetries" (2023), algorithm 1.
    """
    symmetry = symmetry_of(model)
    weights = {name for name, _ in model.named_parameters()}  # of the cost; running statistics depend on the data
    names = {axis.name for _, axes in symmetry.groups for axis in axes} & weights
    a, b = ({name: state[name].detach().cpu().double().numpy() for name in names} for state in (state_a, state_b))
    search = _Search(symmetry, a, b)
    starts = [search.identity(), search.forward()]
    found = [search.improved(start, np.random.default_rng(seed)) for start in starts]
    best = max(found, key=search.product)
    return reordered(state_b, symmetry, best)


def reordered(state: Mapping[str, Tensor], symmetry: Symmetry, orders: Sequence[Order]) -> dict[str, Tensor]:
    """A state dict in which unit i of group g is the earlier unit ``orders[g][i]``."""
    changed = dict(state)
    for (_, axes), order in zip(symmetry.groups, orders, strict=True):
        for axis in axes:
            tensor = changed[axis.name]
            index = torch.from_numpy(_entries(order, axis.block)).to(tensor.device)
            changed[axis.name] = tensor.detach().index_select(axis.axis, index)
    return changed


def _entries(order: Order, block: int) -> Order:
    return order if block == 1 else (order[:, None] * block + np.arange(block)).reshape(-1)


class _Search:
    """Inner products of the first solution with reorderings of the second."""

    def __init__(self, symmetry: Symmetry, a: dict[str, NDArray[np.float64]], b: dict[str, NDArray[np.float64]]) -> None:
        self._a, self._b = a, b
        self._sizes = [size for size, _ in symmetry.groups]
        self._axes = [[axis for axis in axes if axis.name in a] for _, axes in symmetry.groups]
        self._of: dict[str, list[tuple[int, Axis]]] = {}
        for group, axes in enumerate(self._axes):
            for axis in axes:
                self._of.setdefault(axis.name, []).append((group, axis))

    def identity(self) -> list[Order]:
        return [np.arange(size) for size in self._sizes]

    def forward(self) -> list[Order]:
        """From the input on: every group by the tensors whose other axes are known."""
        orders: dict[int, Order] = {}
        for group, size in enumerate(self._sizes):
            known = [axis for axis in self._axes[group] if {other for other, _ in self._of[axis.name]} <= {group, *orders}]
            orders[group] = self._assigned(group, known, orders) if known else np.arange(size)
        return [orders[group] for group in range(len(self._sizes))]

    def improved(self, orders: list[Order], rng: np.random.Generator) -> list[Order]:
        """Sweeps over the groups in random order until nothing is gained."""
        best = self.product(orders)
        for _ in range(_SWEEPS):
            for group in rng.permutation(len(orders)):
                orders[group] = self._assigned(int(group), self._axes[group], dict(enumerate(orders)))
            now = self.product(orders)
            if not now > best + _GAIN * abs(best):
                break
            best = now
        return orders

    def product(self, orders: Sequence[Order]) -> float:
        """Inner product of the first solution with the reordered second, over the tensors that are reordered."""
        held = dict(enumerate(orders))
        return float(sum(np.vdot(self._a[name], self._moved(name, held)) for name in self._of))

    def _assigned(self, group: int, axes: Sequence[Axis], orders: Mapping[int, Order]) -> Order:
        """The best order of one group, the others given."""
        size = self._sizes[group]
        gain = np.zeros((size, size))
        for axis in axes:
            first, second = (
                np.moveaxis(tensor, axis.axis, 0).reshape(size, -1)
                for tensor in (self._a[axis.name], self._moved(axis.name, orders, left_out=group))
            )
            gain += first @ second.T
        return np.asarray(linear_sum_assignment(gain, maximize=True)[1], dtype=np.int64)

    def _moved(self, name: str, orders: Mapping[int, Order], left_out: int | None = None) -> NDArray[np.float64]:
        tensor = self._b[name]
        for group, axis in self._of[name]:
            if group != left_out:
                tensor = np.take(tensor, _entries(orders[group], axis.block), axis=axis.axis)
        return tensor


# ---------------------------------------------------------------------- symmetries of models


def symmetry_of(model: nn.Module) -> Symmetry:
    """The permutation symmetries of a model, from its modules.

    Raises:
        ValueError: a model of another kind, by the name of the layer.
    """
    modules = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    calls = [name for name, _ in model.named_modules(remove_duplicate=False)]
    if len(calls) != len(list(model.modules())) or _tied(model, modules):
        raise ValueError(
            f"weight matching does not support a {type(model).__name__} that uses a layer or a parameter twice; pass match=False"
        )
    if type(model) is nn.Sequential:
        return _sequential(model)
    if _is(model, "ResNet"):
        return _resnet(model)
    raise ValueError(
        f"weight matching supports nn.Sequential and torchvision's ResNet, got {type(model).__name__}; pass match=False, or "
        "align the states yourself"
    )


def _tied(model: nn.Module, modules: Sequence[nn.Module]) -> bool:
    return sum(1 for module in modules for _ in module.parameters(recurse=False)) != len(list(model.parameters()))


def _is(module: nn.Module, name: str) -> bool:
    """Whether a module is exactly of a class of torchvision's resnet, which is not imported."""
    return type(module).__name__ == name and type(module).__module__ == "torchvision.models.resnet"


def _layers(model: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_children():
        if type(module) is nn.Sequential:
            yield from _layers(module, f"{prefix}{name}.")
        else:
            yield prefix + name, module


def _vectors(module: nn.Module, name: str) -> list[Axis]:
    """The one-dimensional tensors of a layer, by output unit: its bias, or all of a norm's."""
    found = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [Axis(f"{name}.{key}", 0) for key, tensor in found if tensor.ndim == 1]


def _sequential(model: nn.Sequential) -> Symmetry:
    symmetry, group, size = Symmetry(), None, 0  # group of the units between layers; the input has none
    before: list[type[nn.Module]] = []  # the layer that wrote the units, and the flattening after it
    layers = list(_layers(model))
    last = max((index for index, (_, module) in enumerate(layers) if type(module) in (nn.Linear, nn.Conv2d)), default=-1)
    for index, (name, module) in enumerate(layers):
        if type(module) in (nn.Linear, nn.Conv2d):
            _check_convolution(name, module)
            weight = module.weight
            assert isinstance(weight, Tensor)
            if group is not None:
                symmetry.extend(group, Axis(f"{name}.weight", 1, _block(name, weight.shape[1], size, (*before, type(module)))))
            size, before = weight.shape[0], [type(module)]
            group = None if index == last else symmetry.add(size, Axis(f"{name}.weight", 0), *_vectors(module, name))
        elif type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            if group is not None:
                if module.num_features != size:
                    raise ValueError(
                        f"weight matching supports batch norm before nn.Flatten only, got {name!r} of other features"
                    )
                symmetry.extend(group, *_vectors(module, name))
        elif type(module) is nn.Flatten:
            if module.start_dim != 1 or module.end_dim != -1:
                raise ValueError(f"weight matching supports nn.Flatten of all dimensions but the first, got {name!r}: {module}")
            before.append(nn.Flatten)
        elif type(module) not in _PLAIN:
            raise ValueError(f"weight matching does not support layer {name!r} ({type(module).__name__}); pass match=False")
    return symmetry


def _block(name: str, inputs: int, size: int, chain: tuple[type[nn.Module], ...]) -> int:
    """Inputs of a layer for each unit of the one before: more than one where channels are flattened."""
    flattened = chain[0] is nn.Conv2d and chain[-1] is nn.Linear and nn.Flatten in chain
    if inputs % size or (inputs != size and not flattened) or (chain[0] is not chain[-1] and not flattened):
        kinds = " - ".join(kind.__name__ for kind in chain)
        raise ValueError(f"matching cannot assign the {inputs} inputs of layer {name!r} to the {size} units before it ({kinds})")
    return inputs // size


def _check_convolution(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        raise ValueError(
            f"weight matching supports convolutions of one group, got {module.groups} in layer {name!r}; pass match=False"
        )


def _resnet(model: nn.Module) -> Symmetry:
    """Everything added into the residual stream of a stage shares its order; the units inside a block have their own."""
    symmetry = Symmetry()
    held = dict(model.named_modules())
    stream = _written(symmetry, held, "conv1", "bn1", None)
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for key, block in held[stage].named_children():
            if not (_is(block, "BasicBlock") or _is(block, "Bottleneck")):
                raise ValueError(
                    f"weight matching supports torchvision's residual blocks, got {type(block).__name__} in '{stage}.{key}'"
                )
            stream = _residual(symmetry, held, f"{stage}.{key}", stream)
    symmetry.extend(stream, Axis("fc.weight", 1))
    return symmetry


def _residual(symmetry: Symmetry, held: dict[str, nn.Module], name: str, stream: int) -> int:
    """One block; returns the group of its output."""
    depth = sum(1 for key, _ in held[name].named_children() if key.startswith("conv"))
    out = stream
    if getattr(held[name], "downsample", None) is not None:
        symmetry.extend(stream, Axis(f"{name}.downsample.0.weight", 1))
        out = _written(symmetry, held, f"{name}.downsample.0", f"{name}.downsample.1", None)
    inner = stream
    for layer in range(1, depth + 1):
        symmetry.extend(inner, Axis(f"{name}.conv{layer}.weight", 1))
        into = out if layer == depth else None
        inner = _written(symmetry, held, f"{name}.conv{layer}", f"{name}.bn{layer}", into)
    return out


def _written(symmetry: Symmetry, held: dict[str, nn.Module], convolution: str, norm: str, group: int | None) -> int:
    """The axes of what a convolution and its batch norm write, in a group of their own or in one that exists."""
    for name, kind in ((convolution, nn.Conv2d), (norm, nn.BatchNorm2d)):
        if type(held[name]) is not kind:
            raise ValueError(f"weight matching expects {kind.__name__} there, got {type(held[name]).__name__} as layer {name!r}")
    _check_convolution(convolution, held[convolution])
    axes = [Axis(f"{convolution}.weight", 0), *_vectors(held[convolution], convolution), *_vectors(held[norm], norm)]
    if group is None:
        weight = held[convolution].weight
        assert isinstance(weight, Tensor)
        return symmetry.add(weight.shape[0], *axes)
    symmetry.extend(group, *axes)
    return group
