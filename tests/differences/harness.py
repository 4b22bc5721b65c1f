"""A model's propagation beside what it must equal: float64 points and double backward."""

from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastscape as fs
from fastscape._state import exact_arithmetic
from fastscape.differences.program import trace
from fastscape.differences.propagation import Propagation
from fastscape.differences.subclass import Dispatched
from fastscape.differences.triple import Frame
from fastscape.objective.structures import map_tensors, tensors_of

F64 = torch.float64
RADII = (0.0, 1e-6, 1e-3, 1e-2, 1e-1)


@dataclass
class Problem:
    """A traced objective with directions."""

    objective: fs.Objective
    replica: object
    call: object
    propagation: Propagation
    directions: dict

    def lanes(self, radii=RADII, dtype=F64, *, propagate=None, scale=1.0):
        """(a, b) of the loss, ``[K, S]`` each, and the frame."""
        with exact_arithmetic(F64), torch.no_grad():
            frame = Frame(torch.tensor(radii, dtype=F64), dtype)
            moved = {name: scale * tensor.to(dtype) for name, tensor in self.directions.items()}
            lanes = (propagate or self.propagation.lanes)(frame, moved)
            count = len(next(iter(moved.values())))
            if lanes is None:
                return torch.zeros(count, len(radii)), torch.zeros(count, len(radii)), frame
            lanes = lanes.double().expand(-1, -1, len(radii))
            second = lanes[:, 1] if lanes.shape[1] == 2 else torch.zeros_like(lanes[:, 0])
            return lanes[:, 0], second, frame

    @property
    def dispatched(self):
        """The second front end."""
        tensors = dict(self.replica.module.named_parameters()) | dict(self.replica.module.named_buffers())
        inputs = {f"parameter:{name}": tensor.detach() for name, tensor in tensors.items()}
        inputs |= {f"batch:{i}": tensor for i, tensor in enumerate(tensors_of(self.replica.batches[0]))}
        return Dispatched(self.replica.module, self.call, inputs)

    def loss_at(self, values):
        """The loss with other parameters."""
        named = {f"model.{name}": value for name, value in zip(self.objective.names, values, strict=True)}
        batch = map_tensors(self.replica.batches[0], torch.Tensor.clone)
        return functional_call(self.replica.module, named, (batch,))[0]

    def steps(self, k):
        return [self.directions[f"parameter:model.{name}"][k] for name in self.objective.names]

    @property
    def count(self):
        return len(next(iter(self.directions.values())))

    def points(self, radius):
        """a and b by subtraction, ``[K]`` each."""
        base = [tensor.double() for tensor in self.objective.base.values()]
        first, second = [], []
        with exact_arithmetic(F64), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            here = self.loss_at(base)
            for k in range(self.count):
                up, down = (
                    self.loss_at([w + sign * radius * d for w, d in zip(base, self.steps(k), strict=True)]) for sign in (1, -1)
                )
                first.append((up - down) / (2 * radius))
                second.append(((up - here) + (down - here)) / radius**2)
        return torch.stack(first), torch.stack(second)

    def derivatives(self, k=0):
        """g'd and d'Hd by double backward."""
        values = [tensor.double().requires_grad_() for tensor in self.objective.base.values()]
        plain = (
            patch.object(F, "hardsigmoid", lambda x, inplace=False: F.relu6(x + 3) / 6),  # torch's has no second derivative
            patch.object(F, "embedding", lambda x, weight, *_: weight[x]),  # torch's drops the gradient of the padding
        )
        with exact_arithmetic(F64), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), plain[0], plain[1]:
            gradient = torch.autograd.grad(self.loss_at(values), values, create_graph=True, allow_unused=True)
            slope = sum((g * d).sum() for g, d in zip(gradient, self.steps(k), strict=True) if g is not None)
            curved = slope.requires_grad
            hessian = torch.autograd.grad(slope, values, allow_unused=True) if curved else [None] * len(values)
            second = sum((h * d).sum() for h, d in zip(hessian, self.steps(k), strict=True) if h is not None)
        return slope.detach(), torch.as_tensor(second, dtype=F64).detach()

    def conditions(self, radius, k=0):
        r"""Condition numbers of a and b: sum |d f / d x_i  x_i| / |f| over weights and directions x.

        Arithmetic of round-off u leaves relative errors of about u times them, whatever the order of its sums.
        """
        weights = [tensor.double().clone().requires_grad_() for tensor in self.objective.base.values()]
        steps = [step.double().clone().requires_grad_() for step in self.steps(k)]

        def at(e):
            return self.loss_at([w + e * d for w, d in zip(weights, steps, strict=True)])

        with exact_arithmetic(F64), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            if radius < 1e-4:  # truncation is far below the first digit; subtraction would leave rounding
                e = torch.zeros((), dtype=F64, requires_grad=True)
                first = torch.autograd.grad(at(e), e, create_graph=True)[0]
                second = torch.autograd.grad(first, e, create_graph=True)[0]
            else:
                up, here, down = at(radius), at(0.0), at(-radius)
                first, second = (up - down) / (2 * radius), (up - 2 * here + down) / radius**2
            found = []
            for value in (first, second):
                parts = torch.autograd.grad(value, [*weights, *steps], retain_graph=True, allow_unused=True)
                moved = [(g * x).abs().sum() for g, x in zip(parts, [*weights, *steps], strict=True) if g is not None]
                found.append(float((sum(moved) / value.abs()).detach()))
        return found


def problem(model, data, *, count=3, criterion=F.cross_entropy, directions=None, seed=0, trace_it=True, **options):
    """Trace the loss of a model; ``directions`` replaces random ones by ``{name: [K, *shape]}``."""
    if "loss" in options:
        criterion = None
    objective = fs.Objective(model, data, criterion=criterion, **options)
    with exact_arithmetic(F64), torch.no_grad():
        replica = objective.replica(F64)
        replica.reset()
        tensors = dict(replica.module.named_parameters()) | dict(replica.module.named_buffers())
        batch = [tensor.clone() for tensor in tensors_of(replica.batches[0])]

        def call(inputs):
            following = iter(inputs)
            return replica.module(map_tensors(replica.batches[0], lambda _: next(following)))[0]

        propagation = None
        if trace_it:
            program = trace(replica.module, call, tensors, batch, ["model." + name for name in objective.names])
            inputs = {f"parameter:{name}": tensor.detach() for name, tensor in tensors.items()}
            inputs |= {f"batch:{i}": tensor for i, tensor in enumerate(tensors_of(replica.batches[0]))}
            probed = [f"parameter:model.{name}" for name in objective.names]
            propagation = Propagation(program, inputs, probed, 1 << 28)
        if directions is None:
            drawn = fs.Directions(objective, count=count, seed=seed)
            columns = [drawn.tensors(k, F64)[0] for k in range(count)]
            directions = {name: torch.stack([column[i] for column in columns]) for i, name in enumerate(objective.names)}
    moved = {f"parameter:model.{name}": directions[name].double() for name in objective.names}
    return Problem(objective, replica, call, propagation, moved)


def relative(value, truth):
    """Largest error relative to the largest value."""
    scale = truth.abs().max()
    return float((value - truth).abs().max() / scale) if scale > 0 else float(value.abs().max())


def measured(case, radii=RADII, *, derive=True):
    """Errors of a problem: ``{what: relative error}`` and the frames of both dtypes."""
    first, second, frame = case.lanes(radii)
    with torch.no_grad():
        direct = case.loss_at([tensor.double() for tensor in case.objective.base.values()])
    found = {"base": relative(case.propagation.loss(), direct)}
    for j, radius in enumerate(radii):
        if radius >= 1e-3:
            slope, curve = case.points(radius)
            found[f"a {radius:g}"], found[f"b {radius:g}"] = relative(first[:, j], slope), relative(second[:, j], curve)
    curve = None
    if 0.0 in radii and derive:
        try:
            slope, curve = case.derivatives()
        except (NotImplementedError, RuntimeError) as error:
            if "not implemented" not in str(error):
                raise
            slope = curve = None  # torch has no second derivative
        j = radii.index(0.0)
    if 0.0 in radii and derive and curve is not None:
        found["a 0"], found["b 0"] = relative(first[:1, j], slope[None]), relative(second[:1, j], curve[None])
    narrow_first, narrow_second, narrow = case.lanes(radii, torch.float32)
    found["a float32"] = max(relative(narrow_first[:, j], first[:, j]) for j in range(len(radii)))
    found["b float32"] = max(relative(narrow_second[:, j], second[:, j]) for j in range(len(radii)))
    return found, frame, narrow
