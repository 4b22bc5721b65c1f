"""Weights of shape (): a learned temperature or gain is a parameter like any other, whatever a probe does with it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs


class Gained(nn.Module):
    """Logits times a learned gain of any shape with one element."""

    def __init__(self, shape):
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.gain = nn.Parameter(torch.full(shape, 0.7))

    def forward(self, x):
        return self.layer(x) * self.gain.exp()


def objective_of(shape, params=None):
    torch.manual_seed(0)
    model = Gained(shape)
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(24, 5, generator=generator), torch.randint(0, 3, (24,), generator=generator)
    return fs.Objective(model, [(inputs, targets)], criterion=F.cross_entropy, params=params, dtype=torch.float64)


@pytest.mark.parametrize("params", [None, "gain"])
@pytest.mark.parametrize("method", ["per-sample", "two-batch"])
def test_temperature_does_not_depend_on_how_a_single_weight_is_shaped(params, method):
    found = [
        fs.temperature(objective_of(shape, params), batch_size=4, learning_rate=0.1, method=method)
        for shape in ((), (1,), (1, 1))
    ]
    for result in found[1:]:
        assert result.trace.value == pytest.approx(found[0].trace.value, rel=1e-12)
        assert result.temperature.value == pytest.approx(found[0].temperature.value, rel=1e-12)
        assert result.noise_scale_h.value == pytest.approx(found[0].noise_scale_h.value, rel=1e-9)


def test_losses_along_given_directions_by_vmap_are_those_of_the_loop():
    objective = objective_of(())
    directions = fs.Directions.given(objective, [objective.gradient()] * 2)
    loop, batched = (fs.losses(objective, directions, [-0.3, 0.2], method=path) for path in ("loop", "vmap"))
    torch.testing.assert_close(batched, loop, rtol=1e-13, atol=0)


def test_forms_of_every_batch_are_those_of_the_dense_hessian():
    objective = objective_of(())
    hessian = fs.hessian(objective)
    block = torch.randn(objective.size, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    products, forms = hessian.forms(block)
    np.testing.assert_allclose(forms[0], (block * products).sum(0).numpy(), rtol=1e-12)
