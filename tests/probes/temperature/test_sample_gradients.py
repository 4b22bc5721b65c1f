"""Gradients of samples: every path gives the same, coupled samples are found out, and what a sample is."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.probes.temperature import sample_paths
from fastscape.probes.temperature.sample_gradients import Deviations, SampleGradients
from fastscape.probes.temperature.sample_paths import SampleRows
from fastscape.runs.peak import PeakMemory


@pytest.mark.parametrize("path", ["vmap", "loop"])
def test_paths_give_the_same_deviations(trained_mlp, digits, path, monkeypatch):
    objective = fs.Objective(trained_mlp.double(), [(digits[0][0][:40], digits[0][1][:40])], criterion=F.cross_entropy)
    chunk = 16 if path == "vmap" else 1
    monkeypatch.setattr(SampleRows, "_choose", lambda self, _memory: vars(self).update(path=path, chunk=chunk))
    try:
        with SampleGradients(objective) as source:
            found = source.deviations(Deviations())
    finally:
        trained_mlp.float()
    expected = [fs.Objective(trained_mlp, [(x[None], y[None])], criterion=F.cross_entropy, dtype=torch.float64) for x, y in
                zip(*objective.batches[0], strict=True)]  # fmt: skip
    norms = [math.sqrt(sum(float(part.square().sum()) for part in of.gradient().values())) for of in expected]
    np.testing.assert_allclose(np.concatenate(found.norms), norms, rtol=1e-10)


def test_a_model_that_vmap_cannot_run_is_taken_one_sample_at_a_time(digits):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            out = self.linear(x.flatten(1))
            return out if float(out.detach().sum()) > 0 else 2 * out

    torch.manual_seed(0)
    objective = fs.Objective(
        Branching().double(), [(digits[0][0][i : i + 1], digits[0][1][i : i + 1]) for i in range(6)], criterion=F.cross_entropy
    )
    result = fs.temperature(objective, batch_size=2, learning_rate=0.1, products=0)
    assert result.method == "per-sample"
    assert result.meta["path"] == "loop"
    assert "vmap cannot run this model" in result.meta["reason"]
    gradients = torch.stack([torch.cat([p.flatten() for p in objective.on(i).gradient().values()]) for i in range(6)])
    assert result.trace.value == pytest.approx(float(torch.cov(gradients.T).trace()), rel=1e-10)


def test_batch_statistics_leave_the_two_batch_estimator_with_the_reason(bn_net, digits):
    data = [(digits[0][0][i : i + 16], digits[0][1][i : i + 16]) for i in range(0, 160, 16)]
    objective = fs.Objective(bn_net.double(), data, criterion=F.cross_entropy, batch_norm="batch")
    result = fs.temperature(objective, batch_size=16, learning_rate=0.1, products=0)
    assert result.method == "two-batch"
    assert "batch statistics" in result.meta["reason"]
    gradients = torch.stack([torch.cat([p.flatten() for p in objective.on(i).gradient().values()]) for i in range(10)])
    assert result.trace.value == pytest.approx(16 * float(torch.cov(gradients.T).trace()), rel=1e-10)
    with pytest.raises(ValueError, match="method must be 'two-batch' for batch_norm='batch'"):
        fs.temperature(objective, batch_size=16, learning_rate=0.1, method="per-sample")


def test_samples_that_a_loss_couples_are_found_out(digits):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()

    def contrast(model, batch):
        outputs = F.normalize(model(batch), dim=1)
        return -F.log_softmax(outputs @ outputs.T / 0.5, dim=1).diagonal().mean()

    data = [digits[0][0][i : i + 16].double() for i in range(0, 64, 16)]
    result = fs.temperature(fs.Objective(net, data, loss=contrast), batch_size=16, learning_rate=0.1, products=0)
    assert result.method == "two-batch"
    assert result.units == 4
    assert any("do not average to the gradient" in note for note in result.notes)
    with pytest.raises(ValueError, match="method must be 'two-batch' for this loss"):
        fs.temperature(fs.Objective(net, data, loss=contrast), batch_size=16, learning_rate=0.1, method="per-sample")


def test_memory_bounds_the_block(trained_mlp, digits):
    objective = fs.Objective(trained_mlp, digits, criterion=F.cross_entropy)
    little = SampleGradients(objective, memory=4 * 4 * objective.size)
    with pytest.raises(ValueError, match=r"memory must hold gradients .* (\d+) bytes are enough") as refused, little:
        pass
    enough = int(re.search(r"(\d+) bytes", str(refused.value))[1])
    with PeakMemory() as spent, SampleGradients(objective, memory=enough) as source:
        assert max(len(block) for block in source.blocks()) == 1
        source.deviations(Deviations())
    assert spent.peak <= enough
    assert sample_paths._CHUNK > 1


# ---------------------------------------------------------------------- what a sample is


def test_token_level_losses_have_sequences_as_samples_weighted_by_their_terms():
    torch.manual_seed(0)
    model = nn.Linear(3, 4, bias=False).double()
    inputs, targets = torch.randn(9, 5, 3, dtype=torch.float64), torch.randint(0, 4, (9, 5))
    targets[2, 1:] = -100
    targets[6] = -100  # a sample without terms

    def loss(outputs, wanted):
        return F.cross_entropy(outputs.flatten(0, 1), wanted.flatten())

    objective = fs.Objective(model, [(inputs, targets)], criterion=loss, weight=lambda batch: float((batch[1] != -100).sum()))
    result = fs.temperature(objective, batch_size=2, learning_rate=0.1, products=0)
    assert result.units == 8
    weights = (targets != -100).sum(1).double()
    kept = weights > 0
    gradients = torch.stack(
        [torch.autograd.grad(loss(model(x[None]), y[None]), model.weight)[0].flatten()
         for x, y in zip(inputs[kept], targets[kept], strict=True)]
    )  # fmt: skip
    shares = weights[kept] / weights[kept].mean()
    mean = (shares[:, None] * gradients).mean(0)
    expected = (shares[:, None] * (gradients - mean)).square().sum() / 7
    assert result.trace.value == pytest.approx(float(expected), rel=1e-10)


def test_class_weights_enter_as_the_terms_of_a_sample(digits):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    weights = torch.linspace(0.5, 2, 10)
    data = [(digits[0][0][:30], digits[0][1][:30])]
    objective = fs.Objective(net, data, criterion=nn.CrossEntropyLoss(weight=weights))
    result = fs.temperature(objective, batch_size=2, learning_rate=0.1, products=0)
    singles = [objective.of([(data[0][0][i : i + 1], data[0][1][i : i + 1])]) for i in range(30)]
    gradients = torch.stack([torch.cat([part.flatten() for part in of.gradient().values()]) for of in singles])
    shares = weights[data[0][1]].double()
    shares = shares / shares.mean()
    mean = (shares[:, None] * gradients).mean(0)
    assert result.trace.value == pytest.approx(float((shares[:, None] * (gradients - mean)).square().sum() / 29), rel=1e-6)


@pytest.mark.parametrize("count", [9, 13, 21, 65])
def test_groups_for_batch_statistics_hold_at_least_two_samples(count):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    data = [(torch.randn(count, 4), torch.arange(count) % 3)]
    with SampleGradients(fs.Objective(model, data, criterion=F.cross_entropy, batch_norm="batch")) as source:
        assert source.sizes.min() >= 2
        assert source.sizes.sum() == count
