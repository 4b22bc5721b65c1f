"""Forward mode over the gradient: fresh for every block of vectors, or linearised once and replayed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import grad, jvp, linearize, vmap

from fastscape.curvature.paths import Product
from fastscape.curvature.program import Parts, Program, quiet


class ForwardPath:
    """``vmap`` of the derivative of the gradient along each vector; the primal is computed once for the block.

    Cost: (2 + 2 K) / 3 ... 3 K gradients' operations, by how much of the primal the block shares; memory of K pairs of
    activations, nothing kept between calls.
    """

    name = "forward"
    batched = True
    held = False
    exact = True

    def __init__(self, program: Program) -> None:
        self._program = program

    def build(self, batch: int) -> Product:
        """The derivative of the gradient of a batch."""
        at = [leaf.detach() for leaf in self._program.leaves]
        with quiet():
            return _over_blocks(self._derivative(grad(partial(self._program.loss, batch)), at))

    def _derivative(self, slope: Callable[[Parts], Parts], at: Parts) -> Callable[..., Parts]:
        """The derivative of the gradient at w along a vector, as a function of the vector's parts."""

        def single(*vector: Tensor) -> Parts:
            found: Parts = jvp(slope, (at,), (list(vector),))[1]
            return found

        return single


class ReplayPath(ForwardPath):
    """The gradient's derivative as a graph of operations that are linear in the vector (``torch.func.linearize``), replayed.

    Everything that does not depend on the vector is computed once. Cost: 2 gradients' operations a product (of dense layers) and
    no automatic differentiation in it; building it takes as long as 50 to 500 gradients.
    """

    name = "replay"
    held = True

    def _derivative(self, slope: Callable[[Parts], Parts], at: Parts) -> Callable[..., Parts]:
        linear = linearize(slope, at)[1]

        def single(*vector: Tensor) -> Parts:
            found: Parts = linear(list(vector))
            return found

        return single


def _over_blocks(single: Callable[..., Parts]) -> Product:
    """A function of one vector's parts as one of blocks; the wrapper of ``vmap`` is left out for one vector."""
    batched = vmap(single)

    def product(block: Parts) -> Parts:
        with quiet(), torch.enable_grad():
            if len(block[0]) == 1:
                return [part.detach()[None] for part in single(*(part[0] for part in block))]
            return [part.detach() for part in batched(*block)]

    return product
