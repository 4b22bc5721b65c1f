"""Tiny networks in mixed precision, and the same functions written out in float64."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs

DOUBLE = torch.float64
BF16_PRODUCTS = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16 products, and they are refused"
)
BY_BF16 = pytest.param("difference-bf16", marks=BF16_PRODUCTS)


class Autocast(nn.Module):
    """A perceptron that enters an autocast in its forward; ``kept`` makes it one object for all calls, or a decorator."""

    def __init__(self, entered="forward", dtype=torch.bfloat16):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.entered, self.dtype = entered, dtype
        self.kept = torch.autocast("cpu", dtype)

    def forward(self, x):
        if self.entered == "nowhere":
            return self.plain(x)
        if self.entered == "decorator":
            return torch.autocast("cpu", self.dtype)(self.plain)(x).to(x.dtype)
        if self.entered == "nested":
            with torch.autocast("cpu", self.dtype), torch.autocast("cpu", self.dtype):
                return self.plain(x).to(x.dtype)
        with self.kept if self.entered == "attribute" else torch.autocast("cpu", self.dtype):
            return self.plain(x).to(x.dtype)

    def plain(self, x):
        return self.last(self.first(x).tanh())


def data(dtype=torch.float32, samples=24):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 8, generator=generator)
    return [(x.to(dtype), torch.randint(0, 3, (samples,), generator=generator))]


def network(entered="forward", dtype=torch.float32):
    torch.manual_seed(0)
    return Autocast(entered).to(dtype)


def objective_of(model, **options):
    dtype = next(model.parameters()).dtype
    return fs.Objective(model, data(dtype), **({"criterion": F.cross_entropy} | options))


def autocast_in_loss(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch[0])
    return F.cross_entropy(outputs.to(batch[0].dtype), batch[1])


CASES = {
    "autocast in forward": lambda: objective_of(network()),
    "autocast as an attribute": lambda: objective_of(network("attribute")),
    "autocast by decorator": lambda: objective_of(network("decorator")),
    "nested autocasts": lambda: objective_of(network("nested")),
    "autocast in loss=": lambda: objective_of(network("nowhere"), criterion=None, loss=autocast_in_loss),
    "bfloat16 weights": lambda: objective_of(network("nowhere", torch.bfloat16)),
}


def exact_loss(objective, weights=None):
    """L in float64 by hand, without any cast; ``weights`` by name, or the objective's."""
    held = {name: tensor.detach() for name, tensor in objective.model.named_parameters()}
    w = {name: tensor.to(DOUBLE) for name, tensor in (weights or held).items()}
    x, y = objective.batches[0]
    z = torch.tanh(x.to(DOUBLE) @ w["first.weight"].T + w["first.bias"]) @ w["last.weight"].T + w["last.bias"]
    return (torch.logsumexp(z, 1) - z[torch.arange(len(y)), y]).mean()


def moved(objective, direction, distance):
    """w + distance d, in float64."""
    return {
        name: tensor.detach().to(DOUBLE) + distance * direction[name].to(DOUBLE)
        for name, tensor in objective.model.named_parameters()
    }


def dense_hessian(objective):
    """The Hessian of :func:`exact_loss` in the order of the parameters."""
    named = {name: tensor.detach().to(DOUBLE) for name, tensor in objective.model.named_parameters()}
    shapes = {name: tensor.shape for name, tensor in named.items()}

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes.values()])
        return exact_loss(objective, {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)})

    return torch.autograd.functional.hessian(loss, torch.cat([tensor.reshape(-1) for tensor in named.values()]))


def displaced(model, size=0.5, seed=1):
    """A state dict at a distance."""
    generator = torch.Generator().manual_seed(seed)
    state = copy.deepcopy(model).state_dict()
    return {
        name: (tensor + size * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)) for name, tensor in state.items()
    }
