"""Planes and lines through a multilayer perceptron, a line at a time: only kinks cost products with the second layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fastscape._warnings import filtered_warnings
from fastscape.evaluation.points import Array
from fastscape.evaluation.surface.families import Affine
from fastscape.evaluation.surface.paths import Raw
from fastscape.evaluation.surface.sample_losses import SampleLosses
from fastscape.objective.batches import available_memory
from fastscape.objective.replica import Replica
from fastscape.ops import relu_line

_BLOCK_BYTES = 1 << 20  # of outputs at a time: what follows stays in the cache
_PIECE = 64  # points along which the kernel goes with one sum: a good number of points to a call


@dataclass(frozen=True)
class _Layers:
    """A perceptron cut behind its second linear layer, or its third where another ReLU is between.

    Attributes:
        first: index of the first linear layer in the model, behind layers without parameters.
        second: of the one behind its ReLU.
        head: of the one behind a second ReLU, if there is one.
        rest: index from which layers are evaluated as they are.
    """

    first: int
    second: int
    head: int | None
    rest: int


class LinePath:
    r"""Points of an affine family by lines, for models ``Sequential(Flatten.. , Linear, ReLU, Linear, any rest)``.

    The first layer's outputs are affine in the coordinates, one product for each axis serves all points; what follows is
    :func:`fastscape.ops.relu_line`, and the rest of the model is run batched over the points of a line. Lines go along the axis
    that leaves the fewest of them.

    Memory: first-layer outputs of all data for the base and every axis, those of the largest batch twice more.
    """

    name, chunk = "lines", _PIECE

    def __init__(self, replica: Replica, family: Affine, terms: SampleLosses, layers: _Layers) -> None:
        self._replica, self._terms, self._layers = replica, terms, layers
        model = replica.module.model
        self._modules: list[nn.Module] = list(model.children())
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._columns = dict(zip(replica.objective.names, zip(family.base, *family.axes, strict=True), strict=True))
        self._names, self._dims = names, family.dims
        self._inputs = [self._projected(batch[0]) for batch in replica.batches]
        self._held: tuple[int, int] | None = None
        self._maps = [self._map(index) for index in (layers.second, layers.head) if index is not None]
        rest = list(model.named_children())[layers.rest :]
        self._tail = self._batched_rest(rest) if rest else None

    def at(self, points: Array) -> Raw:
        """See :class:`SurfacePath`."""
        self._replica.evaluations += len(points)
        axis = _line_axis(points)
        batches = np.empty((len(points), len(self._replica.batches)))
        samples = [np.empty((len(points), inputs.shape[1])) for inputs in self._inputs]
        correct = np.zeros(len(points), np.int64)
        with filtered_warnings("There is a performance drop"):  # no batching rule: the choice of path measures it
            places_of_lines = list(_lines(points, axis))
            for index in range(len(samples)):
                for places in places_of_lines:
                    losses, hits = self._line(points[places], axis, index)
                    samples[index][places] = losses
                    correct[places] += hits
        for index, found in enumerate(samples):
            batches[:, index] = found @ self._terms.shares(index)
        return Raw(
            batches,
            samples[0] if len(samples) == 1 else np.concatenate(samples, axis=1),
            correct if self._terms.targets else None,
        )

    # ------------------------------------------------------------------ one line

    def _line(self, points: Array, axis: int, index: int) -> tuple[Array, NDArray[np.int64] | int]:
        """Sample losses ``[t, n]`` and correct classifications ``[t]`` of a batch at points that differ along one axis."""
        at, along = points[0], points[:, axis]
        inputs, maps = self._inputs[index], [(_start(w, at, axis), _start(b, at, axis)) for w, b in self._maps]
        losses, hits = np.empty((len(points), inputs.shape[1])), np.zeros(len(points), np.int64)
        (weight, bias), (head, head_bias) = maps[0], maps[1] if len(maps) > 1 else (None, None)
        width = max(1, _BLOCK_BYTES // (inputs.element_size() * maps[-1][0].shape[2]))
        if self._tail is None:  # samples are evaluated independently
            rows, count = max(1, width // len(points)), len(points)
        else:
            rows, count = inputs.shape[1], max(1, width // inputs.shape[1])
        for row in range(0, inputs.shape[1], rows):
            start = _start(inputs[:, row : row + rows], at, axis, self._room(index, axis) if rows >= inputs.shape[1] else None)
            for first in range(0, len(points), count):
                piece = slice(first, first + count)
                outputs = relu_line(start, weight, bias, along[piece].tolist(), head, head_bias)
                if self._tail is not None:
                    outputs = self._tail(outputs, self._weights(points[piece]))
                block = slice(row, row + rows)
                found, correct = self._terms.at_points(outputs, index, block)
                losses[piece, block] = found.cpu().numpy()
                if correct is not None:
                    hits[piece] += correct.cpu().numpy()
        return losses, hits

    def _room(self, index: int, axis: int) -> Tensor:
        """Room for the inputs of a line through a whole batch, with their slopes."""
        if self._held != (index, axis):
            self._inputs_along = torch.stack([self._inputs[index][0], self._inputs[index][1 + axis]])
            self._held = index, axis
        return self._inputs_along

    def _weights(self, points: Array) -> dict[str, Tensor]:
        """Parameters of the rest at every point, ``[t, ...]``."""
        return {name: torch.stack([_at(stack, point) for point in points]) for name, stack in self._moving.items()}

    # ------------------------------------------------------------------ setting up

    def _stack(self, parameter: Tensor | None, like: Tensor) -> Tensor:
        """A parameter at the base and its part of every axis, ``[1 + m, ...]``; zeros for one that does not move."""
        if parameter is None:
            return like.new_zeros((1 + self._dims, *like.shape))
        column = self._columns.get(self._names[id(parameter)])
        if column is None:
            return torch.stack([parameter.detach(), *[torch.zeros_like(parameter)] * self._dims])
        return torch.stack([tensor.to(self._replica.dtype) for tensor in column])

    def _map(self, index: int) -> tuple[Tensor, Tensor]:
        layer = self._modules[index]
        assert isinstance(layer, nn.Linear)
        return self._stack(layer.weight, layer.weight).mT.contiguous(), self._stack(layer.bias, layer.weight[:, 0])

    def _projected(self, x: Tensor) -> Tensor:
        """Outputs of the first layer for the base and every axis, ``[1 + m, n, H]``."""
        for module in self._modules[: self._layers.first]:
            x = module(x)
        weight, bias = self._map(self._layers.first)
        return torch.baddbmm(bias[:, None], x.expand(1 + self._dims, *x.shape), weight)

    def _batched_rest(self, rest: Sequence[tuple[str, nn.Module]]) -> Callable[[Tensor, dict[str, Tensor]], Tensor]:
        """The rest of the model for outputs ``[t, n, O]`` and parameters ``[t, ...]``."""
        module = nn.Sequential()
        for name, child in rest:
            module.add_module(name, child)
        module.eval()
        self._moving = {
            name: self._stack(parameter, parameter)
            for name, parameter in module.named_parameters()
            if self._names[id(parameter)] in self._columns
        }

        def one(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
            value: Tensor = functional_call(module, weights, (x,))
            return value

        return vmap(one, randomness="error")


def line_path(replica: Replica, family: Affine, terms: SampleLosses) -> LinePath | None:
    """The path for a model that has the form; ``None`` for others, and where samples' losses are not known."""
    layers = _recognised(replica.module.model)
    inputs = [batch[0] for batch in replica.batches] if replica.objective.criterion is not None else [None]
    if layers is None or terms.unit != "samples" or replica.dtype not in (torch.float32, torch.float64):
        return None
    if not all(isinstance(x, Tensor) and x.dtype == replica.dtype and x.ndim >= 2 for x in inputs):
        return None
    first = list(replica.module.model.children())[layers.first]
    assert isinstance(first, nn.Linear)
    wanted = sum(len(x) for x in inputs if x is not None) * first.out_features * (3 + family.dims) * replica.dtype.itemsize
    if wanted > available_memory(replica.objective.device) // 4:
        return None
    return LinePath(replica, family, terms, layers)


def _recognised(model: nn.Module) -> _Layers | None:
    if type(model) is not nn.Sequential or _hooked(model):
        return None
    if len(list(model.named_modules(remove_duplicate=False))) != len(list(model.modules())):
        return None  # a module that occurs twice: functional_call does not restore it
    modules = list(model.children())
    first = 0
    while first < len(modules) and type(modules[first]) in (nn.Flatten, nn.Identity) and not _hooked(modules[first]):
        first += 1
    if not _is(modules, first, nn.Linear, nn.ReLU, nn.Linear):
        return None
    if _is(modules, first + 3, nn.ReLU, nn.Linear):
        return _Layers(first, first + 2, first + 4, first + 5)
    return _Layers(first, first + 2, None, first + 3)


def _is(modules: Sequence[nn.Module], start: int, *kinds: type[nn.Module]) -> bool:
    found = modules[start : start + len(kinds)]
    return [type(module) for module in found] == list(kinds) and not any(map(_hooked, found))


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _line_axis(points: Array) -> int:
    """The axis along which the points lie on the fewest lines; the last of equals."""
    lines = [len(np.unique(np.delete(points, axis, axis=1), axis=0)) for axis in range(points.shape[1])]
    return len(lines) - 1 - int(np.argmin(lines[::-1]))


def _lines(points: Array, axis: int) -> Iterator[NDArray[np.intp]]:
    """Indices of the points of each line, ascending along it."""
    others = np.delete(points, axis, axis=1)
    order = np.lexsort((points[:, axis], *others.T))
    changes = np.flatnonzero((np.diff(others[order], axis=0) != 0).any(axis=1)) + 1
    yield from np.split(order, changes)


def _at(stack: Tensor, point: Array, out: Tensor | None = None) -> Tensor:
    """Base plus axes times coordinates, in ``out`` if that is given."""
    value = stack[0]
    for part, coordinate in zip(stack[1:], point, strict=True):
        if coordinate:
            value = torch.add(value, part, alpha=float(coordinate), out=out)
    return value if out is None or value is out else out.copy_(value)


def _start(stack: Tensor, point: Array, axis: int, out: Tensor | None = None) -> Tensor:
    """Crossing of a line with 0 of its axis, and its slope, ``[2, ...]``; ``out`` holds the slope already."""
    moved = point.copy()
    moved[axis] = 0.0
    if out is None:
        return torch.stack([_at(stack, moved), stack[1 + axis]])
    _at(stack, moved, out[0])
    return out
