"""Slopes and quadratic forms against double backward, dense Hessians and closed forms; their means; what is refused."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastscape as fs
from fastscape import zoo
from fastscape.curvature.forms.quadratic import group_means


def parts():
    x, y = zoo.digits(samples=40)[0]
    return [(x[:25], y[:25]), (x[25:], y[25:])]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens)))


def text():
    model = zoo.tiny_transformer(width=8, layers=1, heads=2, context=8)
    return fs.Objective(model, zoo.pydoc_text(samples=6, context=8, batch_size=4), criterion=F.cross_entropy)


def digits(model, **options):
    return fs.Objective(model, parts(), **({"criterion": F.cross_entropy} | options))


CASES = {
    "relu": lambda: digits(zoo.mlp(hidden=(10, 8))),
    "gelu": lambda: digits(zoo.mlp(hidden=(10,), activation="gelu")),
    "cnn": lambda: digits(zoo.cnn(width=2)),
    "subset": lambda: digits(zoo.mlp(hidden=(6,), activation="tanh"), params="1.*"),
    "weighted": lambda: digits(zoo.mlp(hidden=(6,)), criterion=nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, 10))),
    "text": text,
    "tied": lambda: fs.Objective(
        Tied(), [(torch.arange(9) % 5, torch.arange(1, 10) % 5), (torch.arange(4), torch.arange(4))], criterion=F.cross_entropy
    ),
}


@pytest.fixture
def case(request):
    torch.manual_seed(0)
    return CASES[request.param]()


def function_of_weights(objective):
    """L as a differentiable function of the probed parameters in float64."""
    model = copy.deepcopy(objective.model).double().eval()
    criterion = copy.deepcopy(objective.criterion)
    criterion = criterion.double() if isinstance(criterion, nn.Module) else criterion
    batches = [(x.double() if x.is_floating_point() else x, y) for x, y in objective.batches]

    def loss(*weights):
        named = dict(zip(objective.names, weights, strict=True))
        values = [criterion(functional_call(model, named, (x,)), y) for x, y in batches]
        return sum(w * v for w, v in zip(objective.batch_weights, values, strict=True)) / objective.samples

    return loss, [objective.base[name].double() for name in objective.names]


def double_backward(objective, direction):
    loss, weights = function_of_weights(objective)
    leaves = [w.clone().requires_grad_() for w in weights]
    step = [direction[name].double() for name in objective.names]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            gradient = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
            slope = sum((g * d).sum() for g, d in zip(gradient, step, strict=True))
            product = torch.autograd.grad(slope, leaves)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return float(slope.detach()), float(sum((h * d).sum() for h, d in zip(product, step, strict=True)))


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_forms_are_those_of_double_backward(case):
    directions = fs.Directions(case, 3)
    exact = fs.quadratic_forms(case, directions, lanes=torch.float64)
    quick = fs.quadratic_forms(case, directions)
    slope, curvature = np.array([double_backward(case, direction) for direction in directions]).T
    size = np.sqrt(np.mean(curvature**2)), np.sqrt(np.mean(slope**2))
    # a direction drawn as float32 is not bit for bit the one drawn as float64
    np.testing.assert_allclose(exact.curvature, curvature, rtol=1e-6, atol=1e-6 * size[0])
    np.testing.assert_allclose(exact.slope, slope, rtol=1e-6, atol=1e-6 * size[1])
    np.testing.assert_allclose(quick.curvature, exact.curvature, rtol=0, atol=5e-6 * size[0])
    np.testing.assert_allclose(quick.slope, exact.slope, rtol=0, atol=5e-6 * size[1])
    assert exact.base == pytest.approx(case.loss(), rel=1e-6)
    np.testing.assert_array_equal(exact.lengths, [directions.length(i) for i in range(3)])


@pytest.mark.parametrize("case", ["relu", "cnn", "text", "tied"], indirect=True)
def test_forms_in_float64_have_its_precision(case):
    """Directions that both dtypes hold exactly."""
    generator = torch.Generator().manual_seed(1)
    given = {name: torch.randint(-4, 5, w.shape, generator=generator) / 8 for name, w in case.base.items()}
    directions = fs.Directions.given(case, given, scale="none")
    found = fs.quadratic_forms(case, directions, lanes=torch.float64)
    slope, curvature = double_backward(case, given)
    assert found.curvature[0] == pytest.approx(curvature, rel=1e-10)
    assert found.slope[0] == pytest.approx(slope, rel=1e-10)
    assert found.lengths[0] == pytest.approx(math.sqrt(sum(float(t.square().sum()) for t in given.values())), rel=1e-12)


@pytest.fixture
def small():
    """A smooth network of 23 parameters and its dense Hessian, ``[D, D]``."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid(), nn.Flatten(0)).double()
    objective = fs.Objective(model, [(torch.randn(9, 3).double(), torch.rand(9).double())], criterion=F.mse_loss)
    loss, weights = function_of_weights(objective)
    shapes = [w.shape for w in weights]
    sizes = [w.numel() for w in weights]

    def flat(vector):
        return loss(*[part.view(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)])

    start = torch.cat([w.flatten() for w in weights])
    hessian = torch.autograd.functional.hessian(flat, start)
    return (
        objective,
        hessian,
        lambda vector: {
            name: part.view(shape) for name, part, shape in zip(objective.names, vector.split(sizes), shapes, strict=True)
        },
    )


def test_an_eigenvector_of_the_hessian_has_its_eigenvalue(small):
    objective, hessian, named = small
    values, vectors = torch.linalg.eigh(hessian)
    for index in (0, len(values) // 2, len(values) - 1):
        along = fs.Directions.given(objective, named(vectors[:, index]), scale="none")
        found = fs.quadratic_forms(objective, along, lanes=torch.float64)
        assert found.curvature[0] == pytest.approx(float(values[index]), rel=1e-9, abs=1e-14)
        assert found.lengths[0] == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("options", [{"scale": "none", "normalize": "none"}, {"scale": "unit"}, {"scale": "relative"}])
def test_forms_are_those_of_d_itself_whatever_its_length(small, options):
    objective, hessian, _ = small
    directions = fs.Directions(objective, 4, **options)
    found = fs.quadratic_forms(objective, directions, lanes=torch.float64)
    for index, direction in enumerate(directions):
        d = torch.cat([direction[name].flatten() for name in objective.names]).double()
        assert found.curvature[index] == pytest.approx(float(d @ hessian @ d), rel=1e-9)
        assert found.lengths[index] == pytest.approx(float(d.norm()), rel=1e-9)


@pytest.mark.parametrize("case", ["relu", "cnn", "text", "weighted"], indirect=True)
def test_group_means_are_means_of_the_forms(case):
    directions = fs.Directions(case, 6)
    forms = fs.quadratic_forms(case, directions, lanes=torch.float64).curvature
    means = group_means(case, directions, 3, lanes=torch.float64)
    np.testing.assert_allclose(means, forms.reshape(3, 2).mean(1), rtol=1e-9)
    estimate = fs.mean_quadratic_form(case, directions, groups=3, lanes=torch.float64)
    assert estimate.value == pytest.approx(forms.mean(), rel=1e-9)
    assert estimate.stderr == pytest.approx(means.std(ddof=1) / math.sqrt(3), rel=1e-6)
    assert estimate.n == 6


def test_the_interval_of_the_mean_covers_the_trace():
    """L = sum h_i w_i^2 / 2: the mean of d'Hd over Gaussian directions of unit length is the mean of h."""

    class Point(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(20))

        def forward(self, h):
            return (h * self.w.square()).sum() / 2

    h = torch.linspace(-1, 4, 20)
    objective = fs.Objective(Point(), [h], loss=lambda model, batch: model(batch))
    inside, values = 0, []
    for seed in range(60):
        directions = fs.Directions(objective, 32, seed=seed, normalize="none", scale="unit")
        found = fs.mean_quadratic_form(objective, directions, groups=8)
        values.append(found.value)
        inside += found.interval[0] <= float(h.mean()) <= found.interval[1]
    assert 51 <= inside <= 60, "95 % of 60 is 57"
    assert np.mean(values) == pytest.approx(float(h.mean()), abs=4 * np.std(values) / math.sqrt(60))


def test_forms_are_an_array(small):
    objective, _, _ = small
    found = fs.quadratic_forms(objective, fs.Directions(objective, 5))
    assert len(found) == 5
    assert np.asarray(found) is not None
    np.testing.assert_array_equal(np.asarray(found), found.curvature)
    np.testing.assert_array_equal(np.mean(found), found.curvature.mean())
    assert np.asarray(found, dtype=np.float32).dtype == np.float32
    copied = np.array(found)
    copied[0] = 7
    assert found.curvature[0] != 7


def test_forms_in_blocks_are_forms_at_once(small):
    objective, _, _ = small
    directions, seen = fs.Directions(objective, 7), []
    whole = fs.quadratic_forms(objective, directions)
    least = 1
    for _ in range(2):  # an evaluation is refused first, then a direction
        with pytest.raises(ValueError, match="memory must hold .* bytes are enough") as refused:
            fs.quadratic_forms(objective, directions, memory=least)
        least = int(re.search(r"(\d+) bytes are enough", str(refused.value))[1])
    cut = fs.quadratic_forms(objective, directions, memory=least, progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_allclose(cut.curvature, whole.curvature, rtol=1e-5)
    assert seen == [(i, 7) for i in range(1, 8)]
    assert whole.path.name == "graph"
    assert fs.quadratic_forms(objective, directions, method="dispatch").path.name == "dispatch"
    np.testing.assert_allclose(fs.quadratic_forms(objective, directions, method="dispatch").curvature, whole.curvature, rtol=1e-5)


def test_at_a_kink_the_branch_at_w_is_taken():
    class Point(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.relu(self.w * x) ** 1 + self.w.square()

    objective = fs.Objective(Point(), [torch.ones(1)], loss=lambda model, batch: model(batch).sum())
    found = fs.quadratic_forms(objective, fs.Directions.given(objective, {"w": torch.ones(1)}, scale="none"))
    assert found.curvature[0] == 2.0
    assert found.slope[0] == 0.0, "torch: relu'(0) = 0"


def test_operations_without_a_rule_are_counted():
    class Gamma(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.5, 2.5]))

        def forward(self, x):
            return torch.lgamma(self.w * x).sum()

    objective = fs.Objective(Gamma(), [torch.ones(2)], loss=lambda model, batch: model(batch))
    found = fs.quadratic_forms(objective, fs.Directions.given(objective, {"w": torch.tensor([1.0, 0.0])}, scale="none"))
    assert set(found.fallbacks) == {"aten.lgamma.default"}
    assert found.curvature[0] == pytest.approx(float(torch.polygamma(1, torch.tensor(1.5))), rel=1e-5)


def test_bad_arguments_are_named(small):
    objective, _, _ = small
    directions = fs.Directions(objective, 6)
    for work, message in (
        (
            lambda: fs.quadratic_forms(objective, directions, method="loop"),
            "method must be 'graph', 'dispatch' or None .*got 'loop'",
        ),
        (lambda: fs.quadratic_forms(objective, directions, memory=0), "memory must be a positive number of bytes, got 0"),
        (lambda: fs.quadratic_forms(objective, directions, lanes=torch.int64), "lanes must be .*got torch.int64"),
        (lambda: fs.quadratic_forms(objective, directions, lanes=torch.bfloat16), "lanes must be .*got torch.bfloat16"),
        (
            lambda: fs.mean_quadratic_form(objective, directions, groups=1),
            "groups must be at least 2, got 1",
        ),
        (lambda: fs.mean_quadratic_form(objective, directions, groups=4), "groups must divide the number of directions 6, got 4"),
        (lambda: group_means(objective, directions, 0), "groups must divide the number of directions 6, got 0"),
        (lambda: group_means(objective, directions, 12), "groups must divide the number of directions 6, got 12"),
        (
            lambda: fs.quadratic_forms(fs.Objective(zoo.mlp(hidden=(3,)), parts(), criterion=F.cross_entropy), directions),
            "directions must be made for this objective",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            work()
    with pytest.raises(TypeError, match="objective must be a fastscape.Objective, got Sequential"):
        fs.quadratic_forms(objective.model, directions)


@pytest.mark.parametrize("seed", [3, 9, 19])
def test_a_mean_over_directions_of_one_curvature_has_the_rounding_of_the_lanes_as_error(seed):
    """Every unit direction has the same form, which float32 lanes round alike."""
    torch.manual_seed(seed)
    model = nn.Linear(17, 1, bias=False)
    inputs = torch.rand(16, 1) * 0.1 + 1
    objective = fs.Objective(model, [inputs], loss=lambda net, batch: (0.7 * batch * net.weight.square().sum()).mean())
    directions = fs.Directions(objective, 64, seed=seed, normalize="none", scale="unit")
    found = fs.mean_quadratic_form(objective, directions)
    truth = 1.4 * float(inputs.double().mean())
    assert found.interval[0] <= truth <= found.interval[1]
    assert found.interval[1] - found.interval[0] < 1e-5 * truth
