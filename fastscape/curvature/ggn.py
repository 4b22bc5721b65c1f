r"""Products with the generalised Gauss-Newton matrix :math:`G = J^\top H_L J`, J the Jacobian of the outputs, H_L the loss's."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, linearize, vjp, vmap
from torch.nn import functional as F

from fastscape.curvature.flat import norm
from fastscape.curvature.forward import ForwardPath
from fastscape.curvature.gradient_difference import LARGEST_ERROR, InaccurateDifferenceError
from fastscape.curvature.paths import Product
from fastscape.curvature.point import UnsoundProductError
from fastscape.curvature.program import Parts, Program, quiet
from fastscape.curvature.reverse import derivative
from fastscape.evaluation.arithmetic import arithmetic
from fastscape.evaluation.branches import Branches
from fastscape.evaluation.nearby import Verdict, judged
from fastscape.objective.batches import placed
from fastscape.objective.criteria import criterion_options
from fastscape.objective.replica import placed_criterion

_STEP = 1e-5  # of the outputs, to difference gradients in float64

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


class GaussNewtonDifference:
    """Products with J v from outputs at displaced weights, for a custom backward whose derivative is to be judged.

    Attributes:
        error: relative difference between J v by a step and by four times that.
    """

    name = "output difference"
    batched = False
    held = False
    exact = False

    def __init__(self, program: Program) -> None:
        self._program = program
        self.error: float | None = None

    def build(self, batch: int) -> Product:
        """The outputs with their graph."""
        leaves = self._program.leaves
        with torch.enable_grad():
            outputs = self._program.outputs(batch)
        curve = loss_hessian(self._program, batch, outputs.detach())

        def product(block: Parts) -> Parts:
            vector = [part[0] for part in block]
            step = torch.finfo(leaves[0].dtype).eps ** (1 / 3) * (1 + norm(leaves)) / norm(vector)
            fine, coarse = (self._pushed(batch, vector, factor * step) for factor in (1, 4))
            self.error = float((fine - coarse).norm() / fine.norm()) if bool(fine.any()) else 0.0
            if not self.error <= LARGEST_ERROR:
                raise InaccurateDifferenceError(f"differences of outputs are off by {self.error:.1g}, above {LARGEST_ERROR:g}")
            return derivative([outputs], leaves, [curve(fine[None])], batched=False)

        return product

    def _pushed(self, batch: int, vector: Parts, step: float) -> Tensor:
        with torch.no_grad():
            ends = [
                self._program.outputs(batch, [w + sign * step * v for w, v in zip(self._program.leaves, vector, strict=True)])
                for sign in (1, -1)
            ]
        return (ends[0] - ends[1]) / (2 * step)


def loss_hessian(program: Program, batch: int, outputs: Tensor) -> _Curve:
    """The Hessian of a batch's loss in its outputs, as a function of blocks ``[K, *outputs]``; never materialised.

    In closed form for cross-entropy with class targets: w (diag p - p p') / sum of w, p the softmax; any other criterion by
    reverse mode over its gradient (forward mode fails for squared errors: "ZeroTensors are immutable"), compared with its values
    nearby, and by differences of its gradient in float64 where torch's second derivative is wrong at these outputs.

    Raises:
        UnsoundProductError: neither is that of the criterion.
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

    return _sound(curve, program, targets, outputs)


def _sound(curve: _Curve, program: Program, targets: object, outputs: Tensor) -> _Curve:
    """The curve, or differences of the criterion's gradient where losses nearby say that it is wrong."""
    objective = program.replica.objective
    try:
        criterion = placed_criterion(objective.criterion, objective.device, torch.float64)
        nearby = _Nearby(
            criterion, placed(targets, objective.device, torch.float64), outputs, arithmetic(objective, torch.float64).narrow
        )
        verdict = nearby.judge(curve)
    except Exception:  # no float64, a kink without a rule: nothing to compare with
        return curve
    if verdict.agrees is not False:
        return curve
    if verdict.kink or nearby.judge(nearby.differences).agrees is False:
        raise UnsoundProductError(
            "the criterion has no second derivative at these outputs, or torch's is wrong (a norm at zero?); use fs.hessian, or "
            "a criterion that is written out"
        )
    return nearby.differences


class _Nearby:
    """A criterion around some outputs, in float64."""

    def __init__(self, criterion: Any, targets: object, outputs: Tensor, narrow: torch.dtype | None = None) -> None:
        self._criterion, self._targets, self._outputs = criterion, targets, outputs.double()
        self._dtype, self._size = outputs.dtype, float(self._outputs.norm()) or 1.0
        self._branches, self._narrow = Branches(), narrow
        with torch.no_grad(), self._branches.recording(0):
            criterion(self._outputs.clone(), targets)

    def judge(self, curve: _Curve) -> Verdict:
        """Form of a Hessian along a random vector, from values nearby."""
        along = torch.randn(self._outputs.shape, generator=torch.Generator().manual_seed(0)).to(self._outputs)
        product = curve(along[None].to(self._dtype))[0].double()
        length = float(along.norm())
        size, form = float(product.norm()) * length / math.sqrt(along.numel()), float((along * product).sum())
        return judged(
            lambda h: (self._value(along, h), self._value(along, -h)),
            self._value(along, 0),
            self._size / length,
            form,
            size,
            narrow=self._narrow,
        )

    def differences(self, block: Tensor) -> Tensor:
        """Products with a block by central differences of the gradient."""
        found = []
        for along in block.double():
            length = float(along.norm())
            step = _STEP * self._size / length if length else 1.0
            sides = (self._gradient(along, step), self._gradient(along, -step))
            found.append((sides[0] - sides[1]) / (2 * step))
        return torch.stack(found).to(block.dtype)

    def _value(self, along: Tensor, step: float) -> float:
        with torch.no_grad(), self._branches.held(0):
            return float(self._criterion(self._outputs + step * along, self._targets))

    def _gradient(self, along: Tensor, step: float) -> Tensor:
        with torch.enable_grad():
            at = (self._outputs + step * along).requires_grad_(True)
            return torch.autograd.grad(self._criterion(at, self._targets), at)[0]


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
