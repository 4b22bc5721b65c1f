"""The kept graph's backward passes as a traced and compiled function of the vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fastscape.curvature.paths import Product
from fastscape.curvature.program import Parts, Program, quiet
from fastscape.curvature.reverse import derivative


class CompiledPath:
    """Backward passes through the kept graph of the gradient, traced for blocks of ``width`` vectors and compiled by inductor.

    Compiling takes from half a minute to many minutes; a product of a small network then takes half of the time. Inductor has
    had silently wrong second derivatives (pytorch issues 190855, 187284): a trial compares with the uncompiled path.
    """

    name = "compiled"
    held = True
    exact = True

    def __init__(self, program: Program, width: int) -> None:
        self._program, self._width = program, width
        self.batched = width > 1

    def build(self, batch: int) -> Product:
        """Build the gradient's graph and trace it; the first product compiles."""
        leaves, width = self._program.leaves, self._width
        gradient = self._program.gradient(batch, create_graph=True)

        def several(*block: Tensor) -> Parts:
            return derivative(gradient, leaves, list(block), batched=self.batched)

        with quiet():
            traced = make_fx(several)(*(torch.zeros(width, *leaf.shape, dtype=leaf.dtype, device=leaf.device) for leaf in leaves))
        run = torch.compile(traced, dynamic=False)

        def product(block: Parts) -> Parts:
            count = len(block[0])
            if count < width:
                block = [torch.cat([part, part.new_zeros(width - count, *part.shape[1:])]) for part in block]
            with quiet():
                return [part[:count] for part in run(*(part.contiguous() for part in block))]  # laid out as in the trace

        return product
