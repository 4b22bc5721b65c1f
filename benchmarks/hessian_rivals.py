"""Quadratic forms of the Hessian by automatic differentiation: what difference propagation at radius zero competes with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastscape as fs


@contextmanager
def differentiable() -> Iterator[None]:
    """Attention that can be differentiated twice, and no warnings about slow batching rules."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            warnings.filterwarnings("ignore", message=".torch.jit.script. is deprecated")  # in torch.func.jvp itself
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class Rivals:
    """d'Hd of one batch's loss in float32; directions are ``[K, *shape]`` by parameter, forms ``[K]``."""

    def __init__(self, objective: fs.Objective) -> None:
        self.model = objective.model.eval()
        self.parameters = {name: dict(self.model.named_parameters())[name].detach() for name in objective.names}
        self.inputs, self.targets = objective.batches[0]

    def _loss(self, parameters: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(self.model, parameters, (self.inputs,)), self.targets)

    def _form(self, *direction: Tensor) -> Tensor:
        tangent = dict(zip(self.parameters, direction, strict=True))
        product = jvp(grad(self._loss), (self.parameters,), (tangent,))[1]
        return sum((product[name] * tangent[name]).sum() for name in tangent)

    def loop(self, directions: list[Tensor]) -> Tensor:
        """Forward over reverse, one direction after the other."""
        with differentiable():
            return torch.stack([self._form(*rows) for rows in zip(*directions, strict=True)])

    def batched(self, directions: list[Tensor]) -> Tensor:
        """Forward over reverse, all directions at a time."""
        with differentiable():
            return vmap(self._form)(*directions)

    def reverse(self, directions: list[Tensor]) -> Tensor:
        """Reverse over reverse, the graph of the gradient built once and kept."""
        with differentiable(), torch.enable_grad():
            leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in self.parameters.items()}
            gradient = torch.autograd.grad(self._loss(leaves), list(leaves.values()), create_graph=True)
            forms = []
            for rows in zip(*directions, strict=True):
                product = torch.autograd.grad(gradient, list(leaves.values()), rows, retain_graph=True)
                forms.append(sum((p * d).sum() for p, d in zip(product, rows, strict=True)))
            return torch.stack(forms)
