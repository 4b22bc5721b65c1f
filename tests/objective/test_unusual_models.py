"""Models that hold, copy or change things in unusual ways: the numbers stay right and the user's objects untouched."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from models import FlatLinear
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo


class AttributeAlias(FlatLinear):
    """Reaches its parameters through a list as well: functional_call does not replace those."""

    def __init__(self):
        super().__init__()
        self.second = nn.Linear(10, 10)
        self.weights = [self.linear.weight, self.second.weight]

    def forward(self, x):
        return F.linear(torch.tanh(F.linear(x.flatten(1), self.weights[0])), self.weights[1])


class SilentTrain(FlatLinear):
    def train(self, mode=True):
        super().train(mode)


class PlainTensor(FlatLinear):
    def __init__(self):
        super().__init__()
        self.projection = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
        self.table = {"shift": torch.ones(10)}

    def forward(self, x):
        return super().forward(x) @ self.projection + self.table["shift"]


class StoresActivations(FlatLinear):
    def __init__(self):
        super().__init__()
        self.seen = {"last": []}

    def forward(self, x):
        out = super().forward(x)
        self.seen["last"] = [out]
        return out


class ExtraState(FlatLinear):
    def get_extra_state(self):
        return {"epoch": 3}

    def set_extra_state(self, state):
        pass


def recurrent(kind):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = getattr(nn, kind)(8, 6, batch_first=True), nn.Linear(6, 10)

        def forward(self, x):
            return self.head(self.cell(x.squeeze(1))[0][:, -1])

    return Recurrent


def parametrized(kind):
    def make():
        return nn.Sequential(nn.Flatten(), getattr(nn.utils.parametrizations, kind)(nn.Linear(64, 10)))

    return make


MODELS = {
    "alias": AttributeAlias,
    "silent train": SilentTrain,
    "plain tensor": PlainTensor,
    "extra state": ExtraState,
    "lstm": recurrent("LSTM"),
    "gru": recurrent("GRU"),
    "weight_norm": parametrized("weight_norm"),
    "spectral_norm": parametrized("spectral_norm"),
    "orthogonal": parametrized("orthogonal"),
    "transformer": lambda: nn.Sequential(
        nn.Flatten(1, 2), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(64, 10)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_of_a_moved_copy_on_the_chosen_path(name, digits, untouched):
    torch.manual_seed(0)
    model = MODELS[name]()
    model.eval()
    objective = fs.Objective(model, [(digits[0][0][:32], digits[0][1][:32])], criterion=F.cross_entropy)
    with untouched(model):
        directions = fs.Directions(objective, 2)
        found = fs.losses(objective, directions, [0.05, 0.1, 0.2])
    moved = copy.deepcopy(model)
    for parameter, step in zip(dict(moved.named_parameters()).items(), directions[1].items(), strict=True):
        parameter[1].data += 0.2 * step[1]
    inputs, targets = objective.batches[0]
    assert float(found[1, 2]) == pytest.approx(float(F.cross_entropy(moved(inputs), targets).detach()), rel=2e-5)


def test_vmap_is_refused_where_it_gives_other_losses(digits):
    torch.manual_seed(0)
    objective = fs.Objective(AttributeAlias(), digits, criterion=F.cross_entropy)
    chosen = fs.responses(objective, fs.Directions(objective, 2), [0.1]).path
    assert chosen.name == "loop"
    assert "vmap gives other losses" in chosen.reason
    with pytest.raises(ValueError, match="method must be 'loop' for this model, got 'vmap'"):
        fs.losses(objective, fs.Directions(objective, 2), [0.1], method="vmap")


def test_stored_activations_do_not_stop_a_copy(digits, untouched):
    model = StoresActivations()
    model(digits[0][0])
    with untouched(model):
        fs.Objective(model, digits, criterion=F.cross_entropy).loss()


def test_extra_state_does_not_stop_checkpoints(digits):
    model = ExtraState()
    objective = fs.Objective(model, digits, criterion=F.cross_entropy)
    assert objective.at(model.state_dict()).loss() == objective.loss()
    assert objective.at(model.state_dict()).weight_fingerprint() == objective.weight_fingerprint()


@pytest.mark.parametrize("where", ["root", "child"])
def test_a_deepcopy_that_returns_the_original_is_refused(digits, untouched, where):
    class Same(FlatLinear):
        def __deepcopy__(self, memo):
            return self

    model = Same() if where == "root" else nn.Sequential(Same())
    with untouched(model), pytest.raises(TypeError, match="a __deepcopy__ in .* does not copy what it holds"):
        fs.Objective(model, digits, criterion=F.cross_entropy).loss()


def test_models_that_write_into_their_inputs_see_the_same_data_every_time(digits):
    class Shift(FlatLinear):
        def forward(self, x):
            return super().forward(x.sub_(0.3))

    torch.manual_seed(0)
    model = Shift()
    inputs, targets = digits[0][0][:20].clone(), digits[0][1][:20]
    expected = float(F.cross_entropy(model.linear((inputs - 0.3).flatten(1)), targets).detach())
    before = inputs.clone()
    objective = fs.Objective(model, [(inputs, targets)], criterion=F.cross_entropy)
    for _ in range(2):
        assert objective.loss() == pytest.approx(expected, rel=1e-6)
    found = fs.losses(objective, fs.Directions(objective, 2), [0.0, 0.0, 0.1], method="loop")
    assert found[0, 0] == found[1, 1] == pytest.approx(expected, rel=1e-6)
    assert torch.equal(inputs, before)


def test_data_are_read_once_also_from_a_list(tanh_net, digits):
    inputs = digits[0][0].clone()
    objective = fs.Objective(tanh_net, [(inputs, digits[0][1])], criterion=F.cross_entropy)
    before = objective.loss(), objective.data_fingerprint()
    inputs.zero_()
    assert (objective.loss(), objective.data_fingerprint()) == before


def test_objectives_built_in_inference_mode_work(tanh_net, digits):
    with torch.inference_mode():
        objective = fs.Objective(tanh_net, [(digits[0][0] + 0, digits[0][1] + 0)], criterion=F.cross_entropy)
    found = fs.responses(objective, fs.Directions(objective, 1), [0.1], method="loop")
    assert found.trusted.all()


class NarrowSoftmax(nn.Module):
    """Attention whose softmax is always float32, as in many language models."""

    def __init__(self, narrow):
        super().__init__()
        self.query, self.key, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(64, 10)
        self.narrow = narrow

    def forward(self, x):
        x = x.squeeze(1)
        scores = self.query(x) @ self.key(x).mT
        weights = F.softmax(scores, -1, dtype=torch.float32 if self.narrow else None).to(scores.dtype)
        return self.head((weights @ x).flatten(1))


def test_a_float32_step_inside_a_float64_model_is_found_measured_and_flagged(digits):
    torch.manual_seed(0)
    honest, narrow = NarrowSoftmax(False), NarrowSoftmax(True)
    narrow.load_state_dict(honest.state_dict())
    objectives = [fs.Objective(model, digits, criterion=F.cross_entropy) for model in (honest, narrow)]
    radii = np.logspace(-6, -1, 11)
    exact, found = (fs.responses(o, fs.Directions(o, 8), radii, precision="float64") for o in objectives)
    assert exact.narrow == ""
    assert found.narrow.startswith("float32 in aten")
    error = np.abs(found.even - exact.even)
    assert found.noise[0] > 0.3 * np.sqrt(np.mean(error[:6] ** 2))
    wrong = np.median(error / np.abs(exact.even), axis=1) > 0.2
    assert wrong.any()
    assert not found.trusted[wrong].any()
    assert found.trusted[-1]
    probe = fs.ProbeSettings(count=2, precision="float64")
    result = fs.multifractal(objectives[1], probe, fs.AnalysisSettings(bootstrap=2, permutations=1))
    assert any("computes in lower precision inside (float32 in aten" in flag for flag in result.flags)


# ---------------------------------------------------------------------- weights of wrapped criteria, directions


def test_partial_criteria_ignore_and_weigh_like_their_modules(digits):
    torch.manual_seed(0)
    model, weight = FlatLinear(), torch.rand(10) + 0.1
    x, y = digits[0]
    batches = [(x[:30], y[:30]), (x[30:40], y[30:40])]
    for options in ({"ignore_index": 0}, {"weight": weight}, {"weight": weight, "ignore_index": 3}):
        wrapped = fs.Objective(model, batches, criterion=partial(F.cross_entropy, **options))
        module = fs.Objective(model, batches, criterion=nn.CrossEntropyLoss(**options))
        assert wrapped.batch_weights == module.batch_weights
        assert wrapped.loss() == module.loss()
        assert wrapped.accuracy() == module.accuracy()
        double = fs.losses(wrapped, fs.Directions(wrapped, 1), [0.0], method="loop")
        assert float(double) == pytest.approx(wrapped.loss(), rel=1e-6)


def test_hidden_ignored_targets_need_a_weight(digits):
    x, y = digits[0]
    targets = torch.where(y == 3, -1, y)

    def criterion(outputs, targets):
        return F.cross_entropy(outputs, targets, ignore_index=-1)

    with pytest.raises(ValueError, match="criterion hides which targets it ignores.*pass weight="):
        fs.Objective(FlatLinear(), [(x, targets)], criterion=criterion)
    objective = fs.Objective(FlatLinear(), [(x, targets)], criterion=criterion, weight=lambda batch: int((batch[1] >= 0).sum()))
    assert objective.samples == int((y != 3).sum())


def test_probability_targets_are_one_term_each(digits):
    x, y = digits[0]
    objective = fs.Objective(FlatLinear(), [(x, F.one_hot(y, 10).float())], criterion=F.cross_entropy)
    assert objective.samples == 256
    assert objective.loss() == pytest.approx(fs.Objective(objective.model, digits, criterion=F.cross_entropy).loss(), rel=1e-6)


def test_missing_targets_are_refused(digits):
    with pytest.raises(ValueError, match=r"data\[0\] must hold targets, got NoneType"):
        fs.Objective(FlatLinear(), [(digits[0][0], None)], criterion=F.cross_entropy)


def test_given_sparse_directions_have_the_norm_they_say(tanh_objective):
    tensor = torch.randn(10, generator=torch.Generator().manual_seed(0))
    for normalize in ("none", "tensor", "global", "element", "module"):
        directions = fs.Directions.given(tanh_objective, {"3.bias": tensor}, normalize=normalize, scale="unit")
        moved, norm = directions.tensors(0, torch.float64)
        assert norm == 1.0
        assert float(torch.cat([t.flatten() for t in moved]).norm()) == pytest.approx(1.0, rel=1e-11)
    with pytest.raises(ValueError, match="must not be zero after its normalisation"):
        fs.Directions.given(tanh_objective, {"3.bias": tensor}, normalize="filter")[0]


def test_differences_are_taken_in_float64(tanh_net, tanh_objective):
    start = {name: tensor.double() for name, tensor in tanh_net.state_dict().items()}
    end = {name: tensor + 1e-12 for name, tensor in start.items()}
    direction = fs.Directions.difference(tanh_objective, start, end)[0]
    assert all(bool((tensor > 0).all()) for tensor in direction.values())


def test_directions_of_another_objective_are_refused(tanh_objective, bn_objective):
    with pytest.raises(ValueError, match="directions must be made for this objective, got ones that move 1.weight, 1.bias"):
        fs.losses(bn_objective, fs.Directions(tanh_objective, 1), [0.1])


def test_the_reported_weight_norm_is_that_of_the_weights_evaluated(tanh_net, tanh_objective):
    directions = fs.Directions(tanh_objective, 1, scale="unit")
    with torch.no_grad():
        for tensor in tanh_net.parameters():
            tensor.mul_(4)
    found = fs.responses(tanh_objective, directions, [0.5])
    assert found.weight_norm == tanh_objective.norm
    assert found.eps_rel[0] == 0.5 / tanh_objective.norm


def test_zero_and_infinite_weights_are_results(digits):
    model = zoo.mlp(hidden=(4,))
    quick = fs.AnalysisSettings(bootstrap=2, permutations=1)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.zero_()
    objective = fs.Objective(model, digits, criterion=F.cross_entropy)
    for scale in ("unit", "relative"):
        probe = fs.ProbeSettings(count=2, normalize="none", scale=scale)
        if scale == "unit":
            assert fs.multifractal(objective, probe, quick).directions == 8
        else:
            with pytest.raises(ValueError, match="scale='relative' needs weights that are not all zero"):
                fs.multifractal(objective, probe, quick)
    with torch.no_grad():
        model[1].weight.fill_(torch.inf)
    assert not fs.multifractal(objective, fs.ProbeSettings(count=2), quick).analysis.valid
