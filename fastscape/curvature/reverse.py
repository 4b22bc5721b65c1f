"""Reverse over reverse: the derivative of g'v along the parameters, with the graph of g kept or made for each product."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fastscape.curvature.paths import Product
from fastscape.curvature.program import Parts, Program


class _Gradient:
    """A gradient with its graph."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts


Graphs = MutableMapping[int, _Gradient]


class GraphPath:
    """Backward passes through the kept graph of the gradient.

    ``graphs`` (a weak dictionary) lets two of these share what both build. Cost: 2 gradients' operations to build and 2 for each
    product (of dense layers); memory of the graph, about twice that of a gradient. ``batched`` sends a block through the graph
    at once (``torch.autograd.grad(is_grads_batched=True)``).
    """

    held = True
    exact = True

    def __init__(self, program: Program, *, batched: bool, name: str | None = None, graphs: Graphs | None = None) -> None:
        self._program, self.batched = program, batched
        self._graphs: Graphs = WeakValueDictionary() if graphs is None else graphs
        self.name = name or ("graph, batched" if batched else "graph")

    def build(self, batch: int) -> Product:
        """Build the gradient with its graph."""
        gradient = self._graphs.get(batch)
        if gradient is None:
            gradient = self._graphs[batch] = _Gradient(self._program.gradient(batch, create_graph=True))
        kept = gradient
        return lambda block: derivative(kept.parts, self._program.leaves, block, batched=self.batched)


class ReversePath:
    """The gradient and its derivative from nothing for every product; nothing is kept.

    Cost: 3 gradients' operations (of dense layers). Works where activations are checkpointed with ``use_reentrant=False``.
    """

    name = "reverse"
    batched = False
    held = False
    exact = True

    def __init__(self, program: Program) -> None:
        self._program = program

    def build(self, batch: int) -> Product:
        """Nothing is built before a vector is there."""

        def product(block: Parts) -> Parts:
            gradient = self._program.gradient(batch, create_graph=True)
            return derivative(gradient, self._program.leaves, block, batched=False, keep=False)

        return product


def derivative(outputs: Parts, inputs: Sequence[Tensor], block: Parts, *, batched: bool, keep: bool = True) -> Parts:
    """Vector-Jacobian products of ``outputs`` with a block ``[K, *shape]``, ``[K, *shape]`` by input; K = 1 unless batched."""
    differentiable = [(output, part) for output, part in zip(outputs, block, strict=True) if output.requires_grad]
    if not differentiable:  # a loss that is linear in the parameters
        return [input_.new_zeros((len(block[0]), *input_.shape)) for input_ in inputs]
    found = torch.autograd.grad(
        [output for output, _ in differentiable],
        inputs,
        [part if batched else part[0] for _, part in differentiable],
        retain_graph=keep,
        allow_unused=True,
        is_grads_batched=batched,
    )
    count = len(block[0])
    found = tuple(part.to_dense() if part is not None and part.is_sparse else part for part in found)
    return [
        input_.new_zeros((count, *input_.shape)) if part is None else part.detach() if batched else part.detach()[None]
        for part, input_ in zip(found, inputs, strict=True)
    ]
