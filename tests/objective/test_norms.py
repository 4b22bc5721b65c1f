"""Running statistics and those of a batch are two functions: both losses are told, and training is that of the batch."""

import copy

import pytest
import torch
from norms import data, net, objective, written_out
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.objective.objective import untrained
from fastscape.objective.statistics import Statistics


class Own(nn.BatchNorm1d):
    """Derived from torch's, with a forward of its own that uses and updates the buffers."""

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(0), x.var(0, unbiased=False)
            with torch.no_grad():
                self.running_mean.mul_(0.9).add_(0.1 * mean)
                self.running_var.mul_(0.9).add_(0.1 * var)
                self.num_batches_tracked += 1
        return (x - mean) / (var + self.eps).sqrt() * self.weight + self.bias


class Foreign(nn.Module):
    """Not derived from torch's at all."""

    def __init__(self, size):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.register_buffer("running_mean", torch.zeros(size))
        self.register_buffer("running_var", torch.ones(size))
        self.eps = 1e-5

    def forward(self, x):
        if not self.training:
            return (x - self.running_mean) / (self.running_var + self.eps).sqrt() * self.weight + self.bias
        mean, var = x.mean(0), x.var(0, unbiased=False)
        self.running_mean = 0.9 * self.running_mean + 0.1 * mean.detach()  # rebinds: no copy in place
        self.running_var = 0.9 * self.running_var + 0.1 * var.detach()
        return (x - mean) / (var + self.eps).sqrt() * self.weight + self.bias


class Frozen(Foreign):
    """As detection models have it: the buffers in either mode."""

    def forward(self, x):
        return (x - self.running_mean) / (self.running_var + self.eps).sqrt() * self.weight + self.bias


KINDS = {"torch": nn.BatchNorm1d, "synchronised": nn.SyncBatchNorm, "derived": Own, "foreign": Foreign}


@pytest.mark.parametrize("kind", KINDS)
def test_both_losses_are_those_written_out(kind, untouched):
    model, batches = net(KINDS[kind]), data()
    with untouched(model):
        made = objective(model, batches)
        found = made.statistics()
    for mode in ("running", "batch"):
        loss, flat = written_out(model, batches, mode)
        assert getattr(found, mode) == pytest.approx(float(loss(flat)), rel=1e-12)
    assert found.differ
    assert made.loss() == found.running
    assert made.trained().loss() == found.batch
    assert made.trained().batch_norm == "batch"


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_trained_function_is_that_written_out(kind, untouched):
    model, batches = net(KINDS[kind]), data()
    loss, flat = written_out(model, batches, "batch")
    expected = torch.func.grad(loss)(flat)
    with untouched(model):
        found = torch.cat([part.flatten() for part in objective(model, batches).trained().gradient().values()])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_instance_norm_that_tracks_statistics_takes_those_of_each_instance(untouched):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 3, 2), nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten(), nn.Linear(9, 3))
    inputs, targets = 3 * torch.randn(6, 1, 4) + 1, torch.arange(6) % 3
    with untouched(model.double().eval()):
        found = objective(model, [(inputs.double(), targets)]).statistics()
    hidden = model[0](inputs.double())
    hidden = (hidden - hidden.mean(2, keepdim=True)) / (hidden.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = F.cross_entropy(model[3](hidden.flatten(1)), targets)
    assert found.batch == pytest.approx(float(expected.detach()), rel=1e-12)
    assert found.differ


def test_an_explicit_choice_is_kept():
    for mode in ("running", "batch"):
        made = objective(batch_norm=mode)
        assert made.trained() is made
        assert made.loss() == getattr(made.statistics(), mode)
    assert untrained(objective(batch_norm="running")) == "training used batch statistics; pass batch_norm='batch'"
    assert untrained(objective(batch_norm="batch")) == ""


def test_models_without_statistics_have_one_function():
    plain = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)).double()
    untracked = net(lambda size: nn.BatchNorm1d(size, track_running_stats=False))
    for model in (plain, untracked):
        for mode in (None, "running"):
            made = objective(model, batch_norm=mode)
            assert made.tracking == ()
            assert made.trained() is made
            assert untrained(made) == ""


def test_norms_that_training_does_not_move_are_as_they_are():
    model = net(Frozen)
    made = objective(model)
    assert made.statistics().running == made.statistics().batch
    assert made.trained() is made
    assert untrained(made) == untrained(objective(model, batch_norm="running")) == ""


def test_layers_kept_in_evaluation_mode_while_training_are_frozen():
    model = net()
    model.train()
    model[1].eval()
    frozen = objective(model)
    assert frozen.trained() is frozen
    assert untrained(frozen) == ""
    assert objective(model.eval()).trained().batch_norm == "batch"
    assert objective(model.train(), batch_norm="batch").loss() == objective(model).statistics().batch


def test_losses_are_evaluated_once_at_each_weights():
    model = net()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    made = objective(model)
    made.loss()
    own = len(calls)
    first = made.statistics()
    counted = len(calls)
    assert counted == own + 2 * len(data())
    assert made.statistics() is first
    assert made.switched("batch").statistics() is first
    assert len(calls) == counted
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert made.statistics() != first
    assert made.at(net().state_dict()).statistics() == first


def test_batches_of_one_sample_have_no_statistics_and_the_reason_is_told(untouched):
    model, batches = net(), [(x[None], y[None]) for x, y in zip(*data()[0], strict=True)]
    with untouched(model):
        made = objective(model, batches)
        assert made.trained() is made
        reason = untrained(made)
    assert "which these data do not give" in reason
    assert "more than 1 value per channel" in reason


def test_the_user_s_generators_are_left_alone(untouched):
    class Noisy(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x) + (torch.rand(()) if self.training else 0)

    model = net(Noisy)
    with untouched(model):
        made = objective(model)
        assert "random numbers" in made.statistics().failure
        assert made.trained() is made


@pytest.mark.parametrize(
    ("running", "batch", "differ"),
    [
        (1.0, 1.049, False),
        (1.0, 1.051, True),
        (1.051, 1.0, True),
        (0.0, 1e-9, True),
        (0.0, 0.0, False),
        (float("nan"), 1.0, True),
        (float("inf"), 1.0, True),
        (float("nan"), float("nan"), False),
    ],
)
def test_losses_differ_by_more_than_five_percent(running, batch, differ):
    assert Statistics(running, batch).differ is differ


def test_a_copy_is_what_is_normalised():
    """Weights that a module is moved to after the objective was made are followed, and nothing of the copy is shared."""
    model = net()
    made = objective(model)
    before = made.trained().loss()
    moved = copy.deepcopy(model.state_dict())
    moved["0.weight"] *= 3
    model.load_state_dict(moved)
    assert made.trained().loss() != before
    assert torch.equal(model[1].running_mean, torch.zeros(5, dtype=torch.float64))


def test_the_first_line_of_a_result_says_both_losses():
    made = objective()
    told = made.statistics()
    line = f"Loss {told.running:.3g} with running statistics, {told.batch:.3g} with those of the batch: the running statistics"
    probes = (
        fs.spectrum(made, 2, nodes=4),
        fs.slice1d(made, count=2, points=5),
        fs.sharpness(made, restarts=1, steps=2, samples=4, products=0),
        fs.multifractal(made, fs.ProbeSettings(radii=(1e-3, 1e-2, 3e-2, 1e-1), count=4, banks=1)),
    )
    for result in probes:
        assert str(result).splitlines()[0].startswith(f"! l{line[1:]}"[:100])
        assert result.verdict().startswith(line)
        assert result.to_dict()["verdict"].startswith(line)
    settled = net()
    settled.train()
    settled[1].momentum = None
    with torch.no_grad():
        for inputs, _ in data():
            settled(inputs)
    agreed = objective(settled.eval())
    assert not agreed.statistics().differ
    assert "statistics" not in fs.slice1d(agreed, count=1, points=5, radius=1e-3).verdict()


def test_a_saved_result_keeps_its_first_line(tmp_path):
    result = fs.slice1d(objective(), count=1, points=5)
    again = fs.load(result.save(tmp_path / "line"))
    assert again.verdict() == result.verdict()
    assert str(again).splitlines()[0] == str(result).splitlines()[0]
