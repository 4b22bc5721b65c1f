"""Weight matching: reordered units leave the function as it is, and are found again."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.probes.barriers.matching import matched, reordered, symmetry_of

torchvision = pytest.importorskip("torchvision")


def bn_mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 10)
    )


def nested():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU()), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 7), nn.ReLU(), nn.Linear(7, 10)
    )


def bottleneck():
    model = torchvision.models.resnet.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=4
    )
    model.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
    return model


MODELS = {
    "mlp": zoo.mlp,
    "bn_mlp": bn_mlp,
    "cnn": zoo.cnn,
    "nested": nested,
    "resnet18": lambda: zoo.models.resnet18(channels=1, width=8),
    "bottleneck": bottleneck,
}


def made(name, seed=0):
    """A float64 model whose running statistics and norms differ between channels."""
    torch.manual_seed(seed)
    model = MODELS[name]().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def shuffled(model, seed=0):
    rng = np.random.default_rng(seed)
    symmetry = symmetry_of(model)
    return reordered(model.state_dict(), symmetry, [rng.permutation(size) for size, _ in symmetry.groups])


def outputs(model, state):
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    with torch.no_grad():
        return other(torch.linspace(-1, 1, 4 * 64, dtype=torch.float64).sin().reshape(4, 1, 8, 8))


@pytest.mark.parametrize("name", MODELS)
def test_reordered_units_leave_the_outputs_equal(name):
    model = made(name)
    state = shuffled(model)
    moved = [key for key, value in state.items() if not torch.equal(value, model.state_dict()[key])]
    assert len(moved) >= len(symmetry_of(model).groups)
    torch.testing.assert_close(outputs(model, state), outputs(model, model.state_dict()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bottleneck"])  # 2048 units take 10 s to assign
@pytest.mark.parametrize("seed", [0, 1])
def test_matching_undoes_a_random_permutation_exactly(name, seed):
    model = made(name, seed)
    found = matched(model.state_dict(), shuffled(model, seed), model)
    for key, value in model.state_dict().items():
        assert torch.equal(found[key], value), key


def test_matching_never_takes_two_solutions_apart_and_keeps_the_function():
    model, other = made("cnn", 0), made("cnn", 1)
    a, b = model.state_dict(), other.state_dict()
    found = matched(a, b, model)
    names = [name for name, _ in model.named_parameters()]
    before, after = (sum(float((a[name] - state[name]).square().sum()) for name in names) for state in (b, found))
    assert after < before
    torch.testing.assert_close(outputs(model, found), outputs(model, b), rtol=1e-12, atol=1e-12)
    assert all(found[key] is b[key] for key in ("1.num_batches_tracked", "9.bias"))


def test_one_hidden_layer_is_matched_to_the_best_of_all_permutations():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    a, b = model.state_dict(), {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    found = matched(a, b, model)
    distance = lambda state: sum(float((a[name] - state[name]).square().sum()) for name in a)  # noqa: E731
    from itertools import permutations

    every = [distance(reordered(b, symmetry_of(model), [np.array(order)])) for order in permutations(range(4))]
    assert distance(found) == min(every)


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x)


def twice():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (zoo.tiny_transformer(), "got TinyTransformer"),
        (nn.Sequential(nn.Linear(4, 6), Custom(), nn.Linear(3, 2)), "does not support layer '1' .Custom."),
        (nn.Sequential(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 2)), "PReLU"),
        (nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1)), "got 2 in layer '0'"),
        (nn.Sequential(nn.Linear(4, 6), nn.Flatten(), nn.Linear(12, 2)), "12 inputs of layer '2' to the 6 units"),
        (nn.Sequential(nn.Conv2d(1, 4, 1), nn.Linear(4, 2)), "Conv2d - Linear"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(4, 2)), "Flatten"),
        (twice(), "uses a layer or a parameter twice"),
        (tied(), "uses a layer or a parameter twice"),
        (torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), "got ParametrizedLinear"),
    ],
)
def test_models_whose_symmetries_are_not_known_are_refused_by_name(model, message):
    with pytest.raises(ValueError, match=message):
        matched(model.state_dict(), model.state_dict(), model)


def test_the_loss_of_a_matched_state_is_that_of_the_state(digits):
    model, other = made("bn_mlp", 0), made("bn_mlp", 1)
    objective = fs.Objective(model, [(x.double(), y) for x, y in digits], criterion=F.cross_entropy)
    found = matched(model.state_dict(), other.state_dict(), model)
    assert objective.at(found).loss() == pytest.approx(objective.at(other.state_dict()).loss(), rel=1e-13)
