"""Products with the Hessian, by the peers as their documentation says, by plain torch and by fastscape.

Each maker takes a :class:`~peers.problems.Problem` and returns ``multiply(V)`` for columns ``[D, K]``. What can be prepared once
for a fixed model and batch (operators, graphs) is prepared in the maker, outside the time of a product.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, linearize, vmap

import fastscape as fs
from peers.problems import Problem

Multiply = Callable[[Tensor], Tensor]


def columns(one: Callable[[Tensor], Tensor]) -> Multiply:
    """Products of single vectors, one after the other."""
    return lambda vectors: torch.stack([one(column) for column in vectors.T], dim=1)


def flat(parts: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


# --------------------------------------------------------------------- peers


def curvlinops_operator(problem: Problem):
    """``check_deterministic=False``, as documented for speed once the check has passed."""
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(problem.model, problem.criterion, problem.parameters, [problem.batch], check_deterministic=False)


def curvlinops_vectors(problem: Problem) -> Multiply:
    operator = curvlinops_operator(problem)
    return columns(lambda vector: operator @ vector)


def curvlinops_block(problem: Problem) -> Multiply:
    operator = curvlinops_operator(problem)
    return lambda vectors: operator @ vectors


def eigenthings_operator(problem: Problem):
    from hessian_eigenthings import HessianOperator, supervised_loss

    return HessianOperator(problem.model, [problem.batch], supervised_loss(problem.criterion))


def eigenthings(problem: Problem) -> Multiply:
    return columns(eigenthings_operator(problem).matvec)


def pyhessian(problem: Problem) -> Multiply:
    """One batch passed as ``data=``, which keeps the graph of its gradient."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    found = hessian(problem.model, problem.criterion, data=problem.batch, cuda=False)
    problem.model.zero_grad()
    return columns(lambda vector: flat(hessian_vector_product(found.gradsH, found.params, problem.tensors(vector))))


# --------------------------------------------------------------------- plain torch


def _functional(problem: Problem):
    """The gradient as a function of the parameters, and the parameters."""
    names = [name for name, _ in problem.model.named_parameters()]
    inputs, targets = problem.batch

    def loss(*parameters: Tensor) -> Tensor:
        outputs = functional_call(problem.model, dict(zip(names, parameters, strict=True)), (inputs,))
        return problem.criterion(outputs, targets)

    weights = tuple(parameter.detach() for parameter in problem.parameters)
    return grad(loss, argnums=tuple(range(len(names)))), weights


def _by_rows(problem: Problem, push: Callable[..., tuple[Tensor, ...]]) -> Multiply:
    """A function of one tangent by parameter, mapped over rows ``[K, D]``."""
    mapped = vmap(push)

    def multiply(vectors: Tensor) -> Tensor:
        count = vectors.shape[1]
        parts = vectors.T.split(problem.sizes, dim=1)
        rows = mapped(*(part.reshape(count, *p.shape) for part, p in zip(parts, problem.parameters, strict=True)))
        return torch.cat([row.reshape(count, -1) for row in rows], dim=1).T

    return multiply


def cached_graph(problem: Problem) -> Multiply:
    """Reverse over reverse, the graph of the gradient kept."""
    gradient = torch.autograd.grad(problem.loss(), problem.parameters, create_graph=True)

    def one(vector: Tensor) -> Tensor:
        return flat(torch.autograd.grad(gradient, problem.parameters, problem.tensors(vector), retain_graph=True))

    return columns(one)


def cached_graph_batched(problem: Problem) -> Multiply:
    """The same for all vectors at a time (``is_grads_batched``)."""
    gradient = torch.autograd.grad(problem.loss(), problem.parameters, create_graph=True)

    def push(*parts: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(gradient, problem.parameters, parts, retain_graph=True)

    return _by_rows(problem, push)


def forward_over_reverse(problem: Problem) -> Multiply:
    """``torch.func.jvp`` of ``grad``, one vector after the other."""
    gradient, weights = _functional(problem)
    return columns(lambda vector: flat(jvp(gradient, weights, tuple(problem.tensors(vector)))[1]))


def forward_over_reverse_block(problem: Problem) -> Multiply:
    """``vmap`` of ``jvp`` of ``grad``."""
    gradient, weights = _functional(problem)
    return _by_rows(problem, lambda *parts: jvp(gradient, weights, parts)[1])


def replay(problem: Problem) -> Multiply:
    """``torch.func.linearize`` of ``grad``, recorded once."""
    push = linearize(*_unpacked(_functional(problem)))[1]
    return columns(lambda vector: flat(push(*problem.tensors(vector))))


def replay_block(problem: Problem) -> Multiply:
    """``vmap`` of the recording."""
    push = linearize(*_unpacked(_functional(problem)))[1]
    return _by_rows(problem, push)


def _unpacked(pair: tuple) -> tuple:
    return (pair[0], *pair[1])


# --------------------------------------------------------------------- fastscape


def fastscape_vectors(problem: Problem) -> Multiply:
    """Single products, as in a loop of them: within a session, the path chosen among all."""
    operator = fs.hessian(problem.objective())
    operator.prepare(1, thorough=True)
    return _in_session(operator, columns(lambda vector: operator @ vector))


def fastscape(problem: Problem) -> Multiply:
    """Blocks, as ``H @ V``; the path is chosen among all, which a linearised one repays after a thousand products."""
    operator = fs.hessian(problem.objective())
    operator.prepare(8, thorough=True)
    return lambda vectors: operator @ vectors


def fastscape_quickly(problem: Problem) -> Multiply:
    """Blocks, with the choice that the first product makes."""
    operator = fs.hessian(problem.objective())
    return lambda vectors: operator @ vectors


def _in_session(operator: fs.CurvatureOperator, multiply: Multiply) -> Multiply:
    def product(vectors: Tensor) -> Tensor:
        with operator.session():
            return multiply(vectors)

    return product


PEERS = {
    "curvlinops, H @ v": curvlinops_vectors,
    "curvlinops, H @ V": curvlinops_block,
    "hessian-eigenthings": eigenthings,
    "PyHessian": pyhessian,
}
TORCH = {
    "torch, cached graph": cached_graph,
    "torch, cached graph batched": cached_graph_batched,
    "torch, jvp(grad)": forward_over_reverse,
    "torch, vmap jvp(grad)": forward_over_reverse_block,
    "torch, linearize": replay,
    "torch, vmap linearize": replay_block,
}
OURS = {
    "fastscape, H @ v": fastscape_vectors,
    "fastscape, H @ V": fastscape_quickly,
    "fastscape, H @ V, all paths tried": fastscape,
}
METHODS = PEERS | TORCH | OURS
BLOCKS = {name for name in METHODS if "H @ V" in name or "vmap" in name or "batched" in name}


def methods(count: int) -> dict[str, Callable[[Problem], Multiply]]:
    """The ways to multiply ``count`` vectors: those for blocks only where there is a block, ours as users would call it."""
    left_out = BLOCKS if count == 1 else {"fastscape, H @ v"}
    return {name: make for name, make in METHODS.items() if name not in left_out}
