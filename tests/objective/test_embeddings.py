"""Rows for padding count as parameters like any other: one function everywhere, whose finite differences are the truth."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.probes.temperature.sample_gradients import SampleGradients

TOKENS = torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0], [2, 2, 4, 1]])
CLASSES = torch.tensor([0, 2, 1])


class Words(nn.Module):
    """Sums of embedded tokens through a head, which may be the embedding's own weights."""

    def __init__(self, embedding, *, tied=False, look_up=None):
        super().__init__()
        self.embedding, self.head = embedding, nn.Linear(3, 5)
        if tied:
            self.head.weight = embedding.weight
        self.look_up = look_up

    def forward(self, tokens):
        found = self.embedding(tokens) if self.look_up is None else self.look_up(tokens, self.embedding.weight)
        return self.head(found.tanh().sum(1) if found.ndim == 3 else found.tanh())


class Positions(nn.Embedding):
    """Reads its own ``padding_idx``, as models do to find the tokens that are none."""

    def forward(self, tokens):
        return super().forward(tokens) * (1 + (tokens == self.padding_idx))[..., None]


MODELS = {
    "layer": lambda: Words(nn.Embedding(5, 3, padding_idx=0)),
    "counted from the end": lambda: Words(nn.Embedding(5, 3, padding_idx=-5)),
    "tied head": lambda: Words(nn.Embedding(5, 3, padding_idx=0), tied=True),
    "function": lambda: Words(nn.Embedding(5, 3), look_up=lambda t, w: F.embedding(t, w, padding_idx=0)),
    "operation": lambda: Words(nn.Embedding(5, 3), look_up=lambda t, w: torch.embedding(w, t, 0)),
    "reads its padding": lambda: Words(Positions(5, 3, padding_idx=0)),
    "scaled by frequency": lambda: Words(nn.Embedding(5, 3, scale_grad_by_freq=True)),
    "function scaled by frequency": lambda: Words(
        nn.Embedding(5, 3), look_up=lambda t, w: F.embedding(t, w, scale_grad_by_freq=True)
    ),
    "bag": lambda: Words(nn.EmbeddingBag(5, 3, mode="sum", padding_idx=0)),
    "bag with a tied head": lambda: Words(nn.EmbeddingBag(5, 3, mode="mean", padding_idx=0), tied=True),
    "bag scaled by frequency": lambda: Words(nn.EmbeddingBag(5, 3, mode="sum", scale_grad_by_freq=True)),
    "no padding": lambda: Words(nn.Embedding(5, 3)),
}


def made(kind):
    torch.manual_seed(3)
    model = MODELS[kind]().double()
    with torch.no_grad():
        model.embedding.weight[0] = torch.randn(3)  # torch starts padding at zero; a checkpoint need not be there
    return model, fs.Objective(model, [(TOKENS, CLASSES)], criterion=F.cross_entropy)


def differences(model, names):
    """Gradient and Hessian by central differences of the loss itself, in float64."""
    parameters = [dict(model.named_parameters())[name].data.view(-1) for name in names]
    places = [(tensor, i) for tensor in parameters for i in range(tensor.numel())]
    step = 1e-4

    @torch.no_grad()
    def loss(*moves):
        for (tensor, i), size in moves:
            tensor[i] += size
        value = float(F.cross_entropy(model(TOKENS), CLASSES))
        for (tensor, i), size in moves:
            tensor[i] -= size
        return value

    gradient = torch.tensor([(loss((p, step)) - loss((p, -step))) / (2 * step) for p in places])
    hessian = torch.zeros(len(places), len(places), dtype=torch.float64)
    for i, p in enumerate(places):
        for j, q in enumerate(places[: i + 1]):
            corners = [s * t * loss((p, s * step), (q, t * step)) for s in (1, -1) for t in (1, -1)]
            hessian[i, j] = hessian[j, i] = sum(corners) / (4 * step**2)
    return gradient.double(), hessian


@pytest.mark.parametrize("kind", MODELS)
def test_every_derivative_is_that_of_the_loss_in_all_its_parameters(kind, untouched):
    model, objective = made(kind)
    gradient, hessian = differences(model, objective.names)
    with untouched(model):
        found = torch.cat([part.flatten() for part in objective.gradient().values()])
        np.testing.assert_allclose(found, gradient, atol=1e-7)
        paths = ("graph", "forward", "gradient difference")
        for path in paths[2:] if "bag" in kind else paths:  # bags have no second derivative
            operator = fs.hessian(objective, method=path)
            products = operator @ torch.eye(objective.size, dtype=torch.float64)
            np.testing.assert_allclose(products, hessian, atol=1e-6, err_msg=path)
        directions = fs.Directions(objective, 4)
        flats = torch.stack([torch.cat([t.double().flatten() for t in directions[i].values()]) for i in range(4)])
        forms = ((flats @ hessian) * flats).sum(1)
        for path in ("forwards", None):
            forms_found = fs.quadratic_forms(objective, directions, method=path)
            np.testing.assert_allclose(forms_found.curvature, forms, rtol=1e-4, atol=1e-5 * float(forms.abs().max()))
            np.testing.assert_allclose(forms_found.slope, flats @ gradient, atol=1e-5)


def test_gradients_of_single_samples_have_rows_for_padding_too():
    _, objective = made("layer")
    gradient = objective.gradient()["embedding.weight"]
    assert gradient[0].abs().max() > 1e-3
    with SampleGradients(objective) as samples:
        rows = samples.rows(range(len(samples)))
    found = dict(zip(objective.names, rows.mean(0).split([t.numel() for t in objective.base.values()]), strict=True))
    np.testing.assert_allclose(found["embedding.weight"], gradient.flatten(), atol=1e-6)
