"""The loss of one batch as a function of the parameters that can be differentiated, in the ways paths need it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules._functions import BackwardHookFunction

from fastscape._warnings import filtered_warnings
from fastscape.curvature.flat import Layout
from fastscape.evaluation.arithmetic import replica_arithmetic
from fastscape.objective.batches import Batch
from fastscape.objective.embedding import backward_nodes
from fastscape.objective.objective import Objective
from fastscape.objective.replica import Replica
from fastscape.objective.structures import map_tensors, tensors_of

Parts = list[Tensor]  # one tensor per parameter, in the order of the layout


class Program:
    """The batch losses of an objective on a private copy whose parameters are leaves that require gradients.

    The weights are those at the time it is made.

    Attributes:
        replica: the private copy.
        leaves: its probed parameters.
        layout: of flat vectors over them.
        weights: share of each batch in the loss, n_b / N.
        whole: the objective's batch that each batch is a part of; see :meth:`halve`.
        shares: share of each batch in that one: 1 where it was not cut.
        cuts: how often batches were cut in two.
        narrow: dtype and name of an operation inside the model that rounds to less than float32; ``None`` if none does.
    """

    def __init__(self, objective: Objective, dtype: torch.dtype, *, channels_last: bool = False) -> None:
        self.replica = objective.replica(dtype)
        self.replica.reset()
        if channels_last:
            self.replica.module.to(memory_format=torch.channels_last)
        parameters = dict(self.replica.module.model.named_parameters())
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in objective.names)
        self.leaves: list[nn.Parameter] = [parameters[name] for name in objective.names]
        self.layout = Layout(objective.names, [leaf.shape for leaf in self.leaves])
        self.weights = tuple(weight / objective.samples for weight in objective.batch_weights)
        self.whole = tuple(range(len(self.weights)))
        self.shares = (1.0,) * len(self.weights)
        self.cuts = 0
        self._names = [f"model.{name}" for name in objective.names]
        self.narrow = _narrow(self.replica)

    def halve(self) -> bool:
        """Cut every batch of more than one sample in two, where the loss of the parts is that of the whole.

        It is for a criterion that is a mean over samples, and a model that does not mix them (batch norm in "batch" mode does);
        L(w) tells. Returns whether anything was cut.
        """
        objective = self.replica.objective
        before = self.replica.batches, self.weights, self.whole, self.shares
        expected = self._total()
        batches: list[Batch] = []
        weights: list[float] = []
        whole: list[int] = []
        shares: list[float] = []
        for batch, weight, origin, share in zip(*before, strict=True):
            parts = _halves(batch) if objective.criterion is not None else [batch]
            counts = [objective.terms(part) for part in parts] if len(parts) > 1 else [1.0]
            kept = [(part, count) for part, count in zip(parts, counts, strict=True) if count]
            batches += [part for part, _ in kept]
            weights += [weight * count / sum(counts) for _, count in kept]
            whole += [origin] * len(kept)
            shares += [share * count / sum(counts) for _, count in kept]
        if len(batches) == len(before[0]):
            return False
        self.replica.batches, self.weights, self.whole, self.shares = batches, tuple(weights), tuple(whole), tuple(shares)
        found = self._total()
        if not math.isclose(found, expected, rel_tol=1e3 * torch.finfo(self.leaves[0].dtype).eps):
            self.replica.batches, self.weights, self.whole, self.shares = before
            return False
        self.cuts += 1
        return True

    def is_functional(self, batch: int) -> bool:
        """Whether parameters put in place by name give the loss that parameters written over the leaves give."""
        with torch.no_grad():
            kept = [leaf.detach().clone() for leaf in self.leaves]
            moved = [leaf * 1.01 + 0.01 * leaf.abs().mean() for leaf in kept]
            try:
                for leaf, other in zip(self.leaves, moved, strict=True):
                    leaf.copy_(other)
                written = float(self.loss(batch))
            finally:
                for leaf, other in zip(self.leaves, kept, strict=True):
                    leaf.copy_(other)
            named = float(self.loss(batch, moved))
        close = math.isclose(named, written, rel_tol=1e3 * torch.finfo(kept[0].dtype).eps)
        return close or (math.isnan(named) and math.isnan(written))

    def differentiates_by_hand(self, batch: int) -> bool:
        """Whether the loss goes through a custom ``autograd.Function``, whose backward may not be differentiable.

        Those by which torch calls full backward hooks hand gradients on as they are.
        """
        with torch.enable_grad():
            nodes = backward_nodes(self.loss(batch))
        custom = [node for node in nodes if isinstance(node, torch.autograd.function.BackwardCFunction)]
        return any(getattr(node, "_forward_cls", None) is not BackwardHookFunction for node in custom)

    def _total(self) -> float:
        self.replica.forget()
        with torch.no_grad():
            return math.fsum(weight * float(self.loss(batch)) for batch, weight in enumerate(self.weights))

    def loss(self, batch: int, parameters: Sequence[Tensor] | None = None) -> Tensor:
        """Mean loss of one batch at the leaves, or at other parameters."""
        return self._evaluate(batch, parameters)[0]

    def outputs(self, batch: int, parameters: Sequence[Tensor] | None = None) -> Tensor:
        """The model's outputs on one batch.

        Raises:
            ValueError: the objective has ``loss=`` in place of a criterion, or the outputs are no single tensor.
        """
        outputs = self._evaluate(batch, parameters)[1]
        if outputs is None:
            raise ValueError(
                "model(inputs) must be one tensor for the Gauss-Newton matrix, got outputs of another kind; use fs.hessian, or "
                "an objective of a model that returns its logits"
            )
        return outputs

    def criterion(self, batch: int) -> Callable[[Tensor], Tensor]:
        """The loss of one batch as a function of the outputs."""
        pair, targets = self.replica.module._pair, self.replica.batch(batch)[1]
        assert pair is not None
        return lambda outputs: pair(outputs, targets)

    def _evaluate(self, batch: int, parameters: Sequence[Tensor] | None) -> tuple[Tensor, Tensor | None]:
        if parameters is None:
            return self.replica.batch_loss(batch)
        replaced = dict(zip(self._names, parameters, strict=True))
        found: tuple[Tensor, Tensor | None] = functional_call(self.replica.module, replaced, (self.replica.batch(batch),))
        return found

    def gradient(self, batch: int, *, create_graph: bool = False) -> Parts:
        """Gradient of the loss of one batch at the leaves; zeros for what the loss does not use."""
        with torch.enable_grad():
            loss = self.loss(batch)
            if not loss.requires_grad:
                return [torch.zeros_like(leaf) for leaf in self.leaves]
            parts = torch.autograd.grad(loss, self.leaves, create_graph=create_graph, materialize_grads=True)
            return [part.to_dense() if part.is_sparse else part for part in parts]


def _narrow(replica: Replica) -> tuple[torch.dtype, str] | None:
    """Dtype and operation of a rounding inside to less than float32; ``None`` without one."""
    found = replica_arithmetic(replica)
    narrow = found.narrow is not None and torch.finfo(found.narrow).bits < 32
    return (found.narrow, found.operation) if narrow and found.narrow is not None else None


def _halves(batch: Batch) -> list[Batch]:
    """A batch whose tensors share their leading dimension n > 1, cut after n // 2; any other as it is."""
    tensors = list(tensors_of(batch))
    counts = {tensor.shape[0] if tensor.ndim else 0 for tensor in tensors}
    if len(counts) != 1 or min(counts) < 2:
        return [batch]
    middle = counts.pop() // 2
    return [map_tensors(batch, lambda tensor: tensor[:middle]), map_tensors(batch, lambda tensor: tensor[middle:])]


def quiet() -> filtered_warnings:
    """No warnings of torch about slow batching rules (the choice of path measures them) or its own deprecations."""
    return filtered_warnings(
        "There is a performance drop",
        ".torch.jit.script. is deprecated",  # in torch.func.jvp itself
        "Attempted to insert a get_attr Node",  # in torch.func.linearize
    )
