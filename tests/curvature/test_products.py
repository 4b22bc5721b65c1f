"""Products equal those with dense float64 matrices, by every path and for every kind of batch."""

from functools import partial

import numpy as np
import pytest
import torch
from curvature_dense import dense_ggn, dense_hessian, flat, identity, objective, relative
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastscape as fs
from fastscape import zoo

HESSIAN_PATHS = ("graph", "graph, batched", "forward", "replay", "reverse")
GGN_PATHS = ("graph", "graph, batched", "forward", "replay")


class Overwrites(nn.Module):
    """A layer that writes into its inputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, inputs):
        inputs.mul_(0.5)
        return self.layer(inputs).tanh()


@pytest.fixture
def truth(net, pairs):
    return dense_hessian(net, lambda call: F.cross_entropy(call(pairs[0]), pairs[1]))


def ragged(inputs, targets, sizes=(4, 4, 2)):
    return list(zip(inputs.split(sizes), targets.split(sizes), strict=True))


@pytest.mark.parametrize("path", HESSIAN_PATHS)
def test_every_path_multiplies_with_the_dense_hessian(net, pairs, truth, path):
    operator = fs.hessian(objective(net, pairs), method=path)
    assert relative(operator @ identity(operator), truth) < 1e-12
    assert relative(operator @ truth[:, 0], truth @ truth[:, 0]) < 1e-12  # a single vector goes another way
    assert operator.choice.name == path


def test_differences_of_gradients_are_as_accurate_as_they_say(net, pairs, truth):
    operator = fs.hessian(objective(net, pairs), method="gradient difference")
    error = relative(operator @ identity(operator), truth)
    assert error < 1e-7
    assert error < 10 * operator.choice.error


@pytest.mark.parametrize("path", GGN_PATHS)
@pytest.mark.parametrize("criterion", [F.cross_entropy, partial(F.cross_entropy, label_smoothing=0.1)], ids=["plain", "smoothed"])
def test_every_path_multiplies_with_the_dense_gauss_newton_matrix(net, pairs, path, criterion):
    inputs, targets = pairs
    curve = torch.autograd.functional.hessian(lambda z: criterion(z.view(10, 3), targets), net(inputs).detach().flatten())
    operator = fs.ggn(objective(net, pairs, criterion=criterion), method=path)
    assert relative(operator @ identity(operator), dense_ggn(net, inputs, curve)) < 1e-12


def test_class_weights_and_ignored_targets_enter_the_closed_form(net, pairs):
    inputs, targets = pairs
    targets = targets.clone()
    targets[3] = -100
    criterion = partial(F.cross_entropy, weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    curve = torch.autograd.functional.hessian(lambda z: criterion(z.view(10, 3), targets), net(inputs).detach().flatten())
    operator = fs.ggn(objective(net, (inputs, targets), criterion=criterion))
    assert relative(operator @ identity(operator), dense_ggn(net, inputs, curve)) < 1e-12


def test_gauss_newton_of_squared_errors_is_twice_the_mean_gram_matrix_of_jacobians(pairs):
    torch.manual_seed(0)
    model = nn.Linear(5, 2).double()
    inputs, targets = pairs[0], torch.zeros(10, 2, dtype=torch.float64)
    operator = fs.ggn(objective(model, (inputs, targets), criterion=F.mse_loss))
    extended = torch.cat([inputs, torch.ones(10, 1, dtype=torch.float64)], 1)
    gram = 2 / 20 * extended.T @ extended  # per output
    weight, bias = gram[:5, :5], gram[5, 5]
    found = operator @ identity(operator)
    assert torch.allclose(found[:5, :5], weight, atol=1e-14)
    assert float(found[10, 10]) == pytest.approx(float(bias))
    hessian = fs.hessian(objective(model, (inputs, targets), criterion=F.mse_loss))
    assert relative(hessian @ identity(hessian), found) < 1e-12  # the model is linear


def test_softmax_regression_in_closed_form(pairs):
    r"""The Hessian of softmax regression is the mean of (diag p - p p') x x'."""
    inputs = pairs[0]
    torch.manual_seed(0)
    model = nn.Linear(5, 3, bias=False).double()
    p = model(inputs).softmax(1).detach()
    curve = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("bij,bk,bl->ikjl", curve, inputs, inputs).reshape(15, 15) / 10
    for operator in (fs.hessian(objective(model, pairs)), fs.ggn(objective(model, pairs))):
        assert relative(operator @ identity(operator), expected) < 1e-12


def test_logistic_regression_in_closed_form(pairs):
    inputs, targets = pairs[0], (pairs[1] > 0).double()[:, None]
    torch.manual_seed(0)
    model = nn.Linear(5, 1, bias=False).double()
    s = model(inputs).sigmoid().detach()
    expected = inputs.T @ (s * (1 - s) * inputs) / 10
    operator = fs.hessian(objective(model, (inputs, targets), criterion=F.binary_cross_entropy_with_logits))
    assert relative(operator @ identity(operator), expected) < 1e-12


@pytest.mark.parametrize("make", [fs.hessian, fs.ggn])
def test_ragged_batches_and_microbatches_equal_the_full_batch(net, pairs, make):
    whole = make(objective(net, pairs))
    expected = whole @ identity(whole)
    for sizes in ((4, 4, 2), (1,) * 10, (9, 1)):
        parts = make(objective(net, *ragged(*pairs, sizes)))
        assert relative(parts @ identity(parts), expected) < 1e-12


@pytest.mark.parametrize("path", HESSIAN_PATHS)
def test_masked_tokens_are_weighted_exactly(path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4), nn.Tanh(), nn.Linear(4, 6), nn.Flatten(0, 1)).double()
    tokens, targets = torch.randint(6, (5, 7)), torch.randint(6, (5, 7))
    targets[:, 4:] = -100
    targets[0, 1:] = -100
    whole = fs.hessian(objective(model, (tokens, targets.flatten())))
    parts = fs.hessian(objective(model, *((tokens[i : i + 2], targets[i : i + 2].flatten()) for i in (0, 2, 4))), method=path)
    assert relative(parts @ identity(parts), whole @ identity(whole)) < 1e-12


def test_a_subset_of_the_parameters_gives_the_principal_submatrix(net, pairs, truth):
    operator = fs.hessian(objective(net, pairs, params="2.*"))
    assert operator.names == ("2.weight", "2.bias")
    assert relative(operator @ identity(operator), truth[42:, 42:]) < 1e-12


def test_tied_parameters_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.embed(tokens).tanh())

    torch.manual_seed(0)
    model = Tied().double()
    batch = torch.tensor([0, 1, 2, 4]), torch.tensor([1, 2, 3, 0])

    def loss(weight):
        return F.cross_entropy(F.embedding(batch[0], weight.view(5, 3)).tanh() @ weight.view(5, 3).T, batch[1])

    expected = torch.autograd.functional.hessian(loss, model.embed.weight.detach().flatten())
    for path in HESSIAN_PATHS:
        operator = fs.hessian(objective(model, batch), method=path)
        assert operator.shape == (15, 15)
        assert relative(operator @ identity(operator), expected) < 1e-12


@pytest.mark.parametrize("mode", ["running", "batch"])
@pytest.mark.parametrize("path", HESSIAN_PATHS)
def test_batch_norm_in_both_modes(untouched, mode, path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).double()
    inputs, targets = torch.randn(8, 4, dtype=torch.float64), torch.randint(2, (8,))
    model(inputs)
    reference = nn.Sequential(*model).train(mode == "batch")
    momentum, reference[1].momentum = reference[1].momentum, 0.0  # its statistics do not move
    expected = dense_hessian(reference, lambda call: F.cross_entropy(call(inputs), targets))
    reference[1].momentum = momentum
    model.train()
    made = objective(model, (inputs, targets), batch_norm=mode)
    with untouched(model):
        operator = fs.hessian(made, method=path)
        found = operator @ identity(operator)
    assert relative(found, expected) < 1e-11


def test_a_loss_that_is_linear_in_the_parameters_has_no_curvature(pairs):
    model = nn.Linear(5, 1).double()
    made = fs.Objective(model, [pairs[0]], loss=lambda model, batch: model(batch).mean())
    for path in (None, *HESSIAN_PATHS):
        operator = fs.hessian(made, method=path)
        assert not (operator @ identity(operator)).any()


def test_unused_parameters_have_zero_rows(pairs):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(5, 3), nn.Linear(2, 2)

        def forward(self, inputs):
            return self.used(inputs)

    model = Unused().double()
    for path in (None, *HESSIAN_PATHS):
        operator = fs.hessian(objective(model, pairs), method=path)
        found = operator @ identity(operator)
        assert not found[18:].any()
        assert found[:18, :18].any()


@pytest.mark.parametrize("path", [None, "graph", "graph, batched", "forward", "reverse"])
def test_a_model_that_writes_into_its_inputs_sees_fresh_ones(pairs, path):
    torch.manual_seed(0)
    model = Overwrites().double()
    inputs = pairs[0].clone()
    expected = dense_hessian(model, lambda call: F.cross_entropy(call(inputs.clone()), pairs[1]))
    operator = fs.hessian(objective(model, pairs), method=path)
    for _ in range(2):
        assert relative(operator @ identity(operator), expected) < 1e-12


def test_a_replay_that_overwrites_its_constants_is_refused(pairs):
    operator = fs.hessian(objective(Overwrites().double(), pairs))
    choice = operator.prepare(8, thorough=True)
    assert "replay" in choice.refused
    assert choice.name != "replay"


@pytest.mark.parametrize("path", [None, "reverse", "graph"])
def test_checkpointed_activations(net, pairs, truth, path):
    class Checkpointed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, inputs):
            return checkpoint(self.inner, inputs, use_reentrant=False)

    operator = fs.hessian(objective(Checkpointed(net), pairs), method=path)
    assert relative(operator @ identity(operator), truth) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_evaluated_in_float32_at_their_rounded_weights(net, pairs, dtype):
    model = net.to(dtype)
    made = objective(model, (pairs[0].to(dtype), pairs[1]))
    operator = fs.hessian(made)
    assert operator.dtype == torch.float32
    wide = model.double()
    expected = dense_hessian(wide, lambda call: F.cross_entropy(call(pairs[0].to(dtype).double()), pairs[1]))
    assert relative((operator @ identity(operator)).double(), expected) < 1e-5


def test_the_weights_are_those_at_the_call(net, pairs, truth):
    for path in (*HESSIAN_PATHS, "gradient difference"):
        operator = fs.hessian(objective(net, pairs), method=path)
        kept = flat(net)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(2.0)
        assert relative(operator @ identity(operator), truth) < (1e-7 if path == "gradient difference" else 1e-12)
        nn.utils.vector_to_parameters(kept, net.parameters())


def test_forms_are_each_batchs_own_quadratic_forms(net, pairs):
    batches = ragged(*pairs)
    made = objective(net, *batches)
    operator = fs.hessian(made)
    block = torch.randn(operator.shape[0], 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    products, forms = operator.forms(block)
    assert torch.equal(products, operator @ block)
    for batch in range(3):
        single = fs.hessian(made.on(batch))
        assert np.allclose(forms[batch], (block * (single @ block)).sum(0).numpy(), rtol=1e-12)
    assert np.allclose(np.average(forms, axis=0, weights=operator.batch_weights), (block * products).sum(0).numpy(), rtol=1e-12)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks(cell):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = cell(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, inputs):
            return self.head(self.cell(inputs)[0][:, -1])

    torch.manual_seed(0)
    model = Last().double()
    batch = torch.randn(6, 5, 3, dtype=torch.float64), torch.randint(2, (6,))
    made = objective(model, batch)
    operator, differences = fs.hessian(made), fs.hessian(made, method="gradient difference")
    block = torch.randn(operator.shape[0], 3, dtype=torch.float64)
    assert relative(operator @ block, differences @ block) < 1e-7


def test_channels_last_is_a_path_for_convolutions():
    torch.manual_seed(0)
    model = zoo.cnn(width=3).double().eval()
    batch = torch.randn(3, 1, 6, 6, dtype=torch.float64), torch.randint(10, (3,))
    expected = dense_hessian(model, lambda call: F.cross_entropy(call(batch[0]), batch[1]))
    operator = fs.hessian(objective(model, batch), method="channels-last")
    assert relative(operator @ identity(operator), expected) < 1e-12
