r"""Products with the generalised Gauss-Newton matrix :math:`G = J^\top H_L J`, J the Jacobian of the outputs, H_L the loss's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, linearize, vjp, vmap
from torch.nn import functional as F

from fastscape._criteria import criterion_options
from fastscape.evaluation.curvature.forward import ForwardPath
from fastscape.evaluation.curvature.paths import Product
from fastscape.evaluation.curvature.program import Parts, Program, quiet
from fastscape.evaluation.curvature.reverse import derivative

_Curve = Callable[[Tensor], Tensor]


class GaussNewtonGraph:
    """Backward passes through two kept graphs: of the outputs, and of their vector-Jacobian product, which is linear.

    The derivative of J'u along u, applied to v, is J v. Cost: 4/3 gradients' operations a product (of dense layers), 5/3 to
    build.
    """

    held = True
    exact = True

    def __init__(self, program: Program, *, batched: bool) -> None:
        self._program, self.batched = program, batched
        self.name = "graph, batched" if batched else "graph"

    def build(self, batch: int) -> Product:
        """The outputs with their graph, and the graph of J'u at u = 0."""
        leaves = self._program.leaves
        with torch.enable_grad():
            outputs = self._program.outputs(batch)
            weighting = torch.zeros_like(outputs, requires_grad=True)
            used = outputs.requires_grad
            pulled = torch.autograd.grad(outputs, leaves, weighting, create_graph=True, materialize_grads=True) if used else ()
        curve = loss_hessian(self._program, batch, outputs.detach())

        def product(block: Parts) -> Parts:
            if not used:
                return [torch.zeros_like(part) for part in block]
            pushed = derivative(list(pulled), [weighting], block, batched=self.batched)
            return derivative([outputs], leaves, [curve(pushed[0])], batched=self.batched)

        return product


class GaussNewtonForward(ForwardPath):
    """Forward mode through the model, the loss's Hessian, and one backward pass, batched over the vectors of a block."""

    def build(self, batch: int) -> Product:
        """The vector-Jacobian product at w, which all vectors share."""
        at = [leaf.detach() for leaf in self._program.leaves]
        outputs = partial(self._program.outputs, batch)
        with quiet(), torch.enable_grad():
            value, pull = vjp(outputs, at)[:2]
            push = vmap(self._push(outputs, at))
        curve = loss_hessian(self._program, batch, value.detach())

        def product(block: Parts) -> Parts:
            with quiet(), torch.enable_grad():
                return [part.detach() for part in vmap(pull)(curve(push(*block).detach()))[0]]

        return product

    def _push(self, outputs: Callable[[Parts], Tensor], at: Parts) -> Callable[..., Tensor]:
        """The Jacobian-vector product as a function of a vector's parts."""

        def push(*vector: Tensor) -> Tensor:
            pushed: Tensor = jvp(outputs, (at,), (list(vector),))[1]
            return pushed

        return push


class GaussNewtonReplay(GaussNewtonForward):
    """The Jacobian linearised once (``torch.func.linearize``) and replayed; its transpose by a kept backward pass."""

    name = "replay"
    held = True

    def _push(self, outputs: Callable[[Parts], Tensor], at: Parts) -> Callable[..., Tensor]:
        linear = linearize(outputs, at)[1]

        def push(*vector: Tensor) -> Tensor:
            pushed: Tensor = linear(list(vector))
            return pushed

        return push


def loss_hessian(program: Program, batch: int, outputs: Tensor) -> _Curve:
    """The Hessian of a batch's loss in its outputs, as a function of blocks ``[K, *outputs]``; never materialised.

    In closed form for cross-entropy with class targets: w (diag p - p p') / sum of w, p the softmax; any other criterion by
    reverse mode over its gradient (forward mode fails for squared errors: "ZeroTensors are immutable").
    """
    criterion = program.replica.objective.criterion
    targets = program.replica.batches[batch][1]
    if _is_plain_cross_entropy(criterion) and isinstance(targets, Tensor) and not targets.is_floating_point():
        return _cross_entropy_hessian(criterion, outputs, targets)
    with quiet(), torch.enable_grad():
        pull = vjp(grad(program.criterion(batch)), outputs)[1]

    def curve(block: Tensor) -> Tensor:
        with quiet(), torch.enable_grad():
            found: Tensor = vmap(pull)(block)[0]
            return found.detach()

    return curve


def _is_plain_cross_entropy(criterion: object) -> bool:
    keywords = criterion.keywords if isinstance(criterion, partial) else {}
    function = criterion.func if isinstance(criterion, partial) else criterion
    smoothing = keywords.get("label_smoothing", getattr(criterion, "label_smoothing", 0.0))
    return (function is F.cross_entropy or type(function) is nn.CrossEntropyLoss) and not smoothing


def _cross_entropy_hessian(criterion: object, outputs: Tensor, targets: Tensor) -> _Curve:
    _, ignored, class_weight = criterion_options(criterion)
    kept = targets != ignored
    known = torch.where(kept, targets, 0)
    share = kept.to(outputs.dtype)
    if class_weight is not None:
        share = share * class_weight.to(outputs.device, outputs.dtype)[known]
    classes = 1 if targets.ndim else 0  # outputs [B, classes, ...], or [classes] for one sample
    share = (share / share.sum()).unsqueeze(classes)
    probability = outputs.softmax(classes)

    def curve(block: Tensor) -> Tensor:
        weighted = probability * block
        return share * (weighted - probability * weighted.sum(classes + 1, keepdim=True))

    return curve
