"""Hooks that change nothing change no product, and what they see stays theirs; custom backwards are still judged."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.curvature.soundness import AsymmetricProductError


def ignore(*_arguments):
    """Of any kind of hook, and without effect."""


HOOKS = {
    "forward": lambda model: model[2].register_forward_hook(ignore),
    "forward pre": lambda model: model[2].register_forward_pre_hook(ignore),
    "full backward": lambda model: model[2].register_full_backward_hook(ignore),
    "full backward of all": lambda model: [layer.register_full_backward_hook(ignore) for layer in model[1:]],
    "full backward pre": lambda model: model[0].register_full_backward_pre_hook(ignore),
    "parameter": lambda model: model[2].weight.register_hook(ignore),
    "output": lambda model: model[0].register_forward_hook(lambda _layer, _inputs, output: output.register_hook(ignore) and None),
    "saved": lambda model: model[0].register_forward_hook(lambda _module, _inputs, output: output.view_as(output)),
}


def objective(change=None, middle=None):
    """A small network on one batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), middle or nn.Tanh(), nn.Linear(8, 3))
    data = [(torch.randn(8, 6), torch.randint(0, 3, (8,)))]
    if change is not None:
        change(model)
    return fs.Objective(model, data, criterion=F.cross_entropy)


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("matrix", [fs.ggn, fs.hessian])
def test_a_hook_that_does_nothing_leaves_products_as_they_are(matrix, kind):
    plain, hooked = objective(), objective(HOOKS[kind])
    block = torch.linspace(-1, 1, 2 * plain.size).reshape(plain.size, 2)
    expected = matrix(plain) @ block
    assert torch.allclose(matrix(hooked) @ block, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


class Tanh(torch.autograd.Function):
    """Written by hand, backward and all; wrong by a factor."""

    factor = 1.0

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return Tanh.factor * g * (1 - y * y)


class ByHand(nn.Module):
    """A layer of it."""

    def forward(self, x):
        return Tanh.apply(x)


def test_the_gauss_newton_matrix_of_a_custom_backward_is_that_of_torch():
    plain, custom = objective(), objective(middle=ByHand())
    block = torch.linspace(-1, 1, 2 * plain.size).reshape(plain.size, 2)
    expected = fs.ggn(plain) @ block
    assert torch.allclose(fs.ggn(custom) @ block, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_a_wrong_custom_backward_is_refused_for_the_gauss_newton_matrix(monkeypatch):
    monkeypatch.setattr(Tanh, "factor", 0.5)
    custom = objective(middle=ByHand())
    with pytest.raises(AsymmetricProductError, match=r"Gauss-Newton matrix, got .* from a difference of outputs"):
        fs.ggn(custom) @ torch.ones(custom.size)
