"""Two forwards against dense float64 Hessians: forms within the reported error, kinks and precision included."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.curvature.forms import forwards, quadratic
from fastscape.evaluation.branches import Branches, BranchesChangedError, UnsupportedKinkError


def relu_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.Hardswish(), nn.Linear(8, 10))


def conv_net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 10),
        nn.Hardtanh(-2, 2, inplace=True),
    )


def attention():
    torch.manual_seed(2)
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), nn.Flatten(), nn.Linear(64, 10))


CASES = {"relu": relu_net, "conv": conv_net, "attention": attention}


def objective_of(make, dtype=None, batch_norm="running"):
    inputs, targets = zoo.digits(samples=96)[0]
    inputs = inputs.reshape(96, 8, 8) if make is attention else inputs
    data = list(zip(inputs.split(40), targets.split(40), strict=True))
    return fs.Objective(make().eval(), data, criterion=F.cross_entropy, dtype=dtype, batch_norm=batch_norm)


def dense_forms(objective, directions):
    """v'Hv in float64 by double backward."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model = objective.model
        double = {name: tensor.detach().double().requires_grad_() for name, tensor in objective.base.items()}
        rest = {name: t.double() if t.is_floating_point() else t for name, t in model.named_buffers()}
        total = 0.0
        for (inputs, targets), weight in zip(objective.batches, objective.batch_weights, strict=True):
            outputs = torch.func.functional_call(model, {**double, **rest}, (inputs.double(),))
            total = total + weight / objective.samples * F.cross_entropy(outputs, targets)
        gradient = torch.autograd.grad(total, list(double.values()), create_graph=True)
        forms = []
        for index in range(len(directions)):
            d = [t.double() for t in directions.tensors(index, torch.float64)[0]]
            slope = sum((g * t).sum() for g, t in zip(gradient, d, strict=True))
            product = torch.autograd.grad(slope, list(double.values()), retain_graph=True)
            forms.append(float(sum((p * t).sum() for p, t in zip(product, d, strict=True))))
    return np.array(forms)


@pytest.fixture(scope="module", autouse=True)
def plain_attention():
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(enabled)


OPTIONS = {
    "gaussian": {"distribution": "gaussian"},
    "rademacher": {"distribution": "rademacher", "normalize": "none", "scale": "unit"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", OPTIONS)
def test_forms_are_within_the_reported_error_of_the_dense_hessian(case, options):
    objective = objective_of(CASES[case])
    within, count, worst = 0, 0, 0.0
    for seed in range(4):
        directions = fs.Directions(objective, 24, seed=seed, **OPTIONS[options])
        found, exact = fs.quadratic_forms(objective, directions, method="forwards"), dense_forms(objective, directions)
        size = math.sqrt(np.mean(exact**2))
        difference = np.abs(found.curvature - exact)
        within, count = within + int((difference <= found.error).sum()), count + len(exact)
        worst = max(worst, float(difference.max() / size))
        assert np.median(found.error) <= 1e-2 * size
        assert math.sqrt(np.mean(found.error**2)) <= 2e-2 * size
    assert within >= 0.95 * count
    assert worst <= 1e-2


@pytest.mark.parametrize("case", CASES)
def test_errors_have_a_floor_where_the_losses_do_not_scatter(case, monkeypatch):
    """A processor, or luck, may round alike at all weights near w; the outputs are still rounded to their dtype."""
    losses = forwards._Line._losses

    def alike(line, index, distance):
        return [line.base, line.base] if distance < 1e-4 * line.norm else losses(line, index, distance)

    monkeypatch.setattr(forwards._Line, "_losses", alike)
    objective, within = objective_of(CASES[case]), 0
    for seed in range(4):
        directions = fs.Directions(objective, 24, seed=seed, distribution="rademacher", normalize="none", scale="unit")
        found = fs.quadratic_forms(objective, directions, method="forwards")
        within += int((np.abs(found.curvature - dense_forms(objective, directions)) <= found.error).sum())
    assert within >= 0.95 * 96


@pytest.mark.parametrize("case", CASES)
def test_given_directions_have_their_own_step_and_error(case):
    """The error is a 95 % one: 36 forms of three sets are held against it, each set with its own measure of the rounding."""
    objective, within = objective_of(CASES[case]), 0
    for seed in (2, 1, 0):
        generator = torch.Generator().manual_seed(seed)
        noises = [{name: torch.randn(t.shape, generator=generator) for name, t in objective.base.items()} for _ in range(10)]
        directions = fs.Directions.given(objective, [noises[0], objective.gradient(), objective.base, *noises[1:]], scale="none")
        found, exact = fs.quadratic_forms(objective, directions, method="forwards"), dense_forms(objective, directions)
        missed = np.abs(found.curvature - exact)
        within += int((missed <= found.error).sum())
        np.testing.assert_array_less(missed, 3 * found.error)
        np.testing.assert_array_less(found.error[1:3], 2e-2 * np.abs(exact[1:3]))
    assert within >= 0.9 * 36
    slopes = [
        sum(float((g * objective_d).sum()) for g, objective_d in zip(objective.gradient().values(), d.values(), strict=True))
        for d in (directions[0], directions[1])
    ]
    np.testing.assert_allclose(found.slope[:2], slopes, rtol=1e-2)


def test_float64_objectives_have_smaller_errors_and_say_so():
    objective = objective_of(relu_net, dtype=torch.float64)
    directions = fs.Directions(objective, 16)
    found, exact = fs.quadratic_forms(objective, directions, method="forwards"), dense_forms(objective, directions)
    size = math.sqrt(np.mean(exact**2))
    assert np.abs(found.curvature - exact).max() < 1e-5 * size
    assert found.error.max() < 1e-5 * size


def test_without_branches_kinks_would_outweigh_the_curvature():
    torch.manual_seed(0)
    inputs, targets = torch.randn(128, 64), torch.randint(10, (128,))
    objective = fs.Objective(zoo.mlp(64, (96,)), [(inputs, targets)], criterion=F.cross_entropy)
    directions = fs.Directions(objective, 8)
    exact = dense_forms(objective, directions)
    held = fs.quadratic_forms(objective, directions, method="forwards").curvature
    plain = np.asarray(fs.losses(objective, directions, [-1e-3, 0.0, 1e-3])) @ np.array([1.0, -2.0, 1.0]) / 1e-6
    size = math.sqrt(np.mean(exact**2))
    assert np.abs(held - exact).max() < 1e-2 * size
    assert math.sqrt(np.mean((plain - exact) ** 2)) > 2 * size


def test_the_work_is_two_forwards_each_beside_a_fixed_number():
    objective = objective_of(relu_net)
    few, many = (int(_words(objective, n).split()[-2]) for n in (8, 40))
    assert many - few == 64
    assert few - 16 <= 22


@pytest.mark.parametrize("given", [False, True])
def test_no_point_of_a_line_is_evaluated_twice(given, monkeypatch):
    seen = []
    losses = forwards._Line._losses
    monkeypatch.setattr(forwards._Line, "_losses", lambda line, *at: (seen.append(at), losses(line, *at))[1])
    objective = objective_of(relu_net)
    directions = fs.Directions(objective, 6)
    if given:
        directions = fs.Directions.given(objective, [directions[index] for index in range(6)], scale="none")
    fs.quadratic_forms(objective, directions, method="forwards")
    assert len(set(seen)) == len(seen)


def _words(objective, count):
    return fs.quadratic_forms(objective, fs.Directions(objective, count), method="forwards").path.reason


def test_the_model_and_the_process_are_untouched(bn_net, bn_objective, untouched):
    with untouched(bn_net):
        fs.quadratic_forms(bn_objective, fs.Directions(bn_objective, 4), method="forwards")


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_batch_statistics_are_those_of_the_batch(batch_norm):
    objective = objective_of(conv_net, batch_norm=batch_norm)
    directions = fs.Directions(objective, 6)
    found, exact = fs.quadratic_forms(objective, directions, method="forwards"), fs.quadratic_forms(objective, directions)
    assert np.abs(found.curvature - exact.curvature).max() < 1e-2 * math.sqrt(np.mean(exact.curvature**2))


class Detached(nn.Module):
    """A forward that takes a number out of torch, which exact forms refuse."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.inner = nn.Linear(6, 3)

    def forward(self, x):
        return torch.tanh(self.inner(x)) * (1.0 + 0.0 * float(self.inner.weight.sum().item()))


def test_models_that_the_exact_path_cannot_follow_fall_to_forwards_and_say_why():
    torch.manual_seed(5)
    data = [(torch.randn(12, 6), torch.randint(3, (12,)))]
    objective = fs.Objective(Detached(), data, criterion=F.cross_entropy)
    directions = fs.Directions(objective, 6)
    found = fs.quadratic_forms(objective, directions)
    assert found.path.name == "forwards"
    assert "exact path cannot follow the model" in found.path.reason
    assert found.error is not None
    with pytest.raises(fs.UntraceableError):
        fs.quadratic_forms(objective, directions, method="dispatch")


def test_what_does_not_fit_in_memory_falls_to_forwards(monkeypatch):
    objective = objective_of(relu_net)

    def full(*_arguments):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate")

    monkeypatch.setattr(quadratic, "_exact", full)
    found = fs.quadratic_forms(objective, fs.Directions(objective, 4))
    assert "does not fit in memory" in found.path.reason
    with pytest.raises(RuntimeError, match="not enough memory"):
        fs.quadratic_forms(objective, fs.Directions(objective, 4), method="graph")


def test_exact_forms_have_no_error_estimate():
    objective = objective_of(relu_net)
    assert fs.quadratic_forms(objective, fs.Directions(objective, 2)).error is None


def test_rounding_near_the_forms_is_refused_with_the_remedy():
    model = nn.Linear(4, 2)
    objective = fs.Objective(model, [torch.ones(3, 4)], loss=lambda m, x: 1e4 + m(x).square().mean() * 1e-2)
    with pytest.raises(
        ValueError, match="must resolve the forms, got an estimated error of .* use method=None for exact forms, or an"
    ):
        fs.quadratic_forms(objective, fs.Directions(objective, 8), method="forwards")


def test_nan_losses_are_results():
    model = nn.Linear(4, 2)
    objective = fs.Objective(model, [torch.full((3, 4), math.nan)], loss=lambda m, x: m(x).square().mean())
    found = fs.quadratic_forms(objective, fs.Directions(objective, 5), method="forwards")
    assert np.isnan(found.curvature).all()
    assert math.isnan(found.base)


def test_random_losses_are_refused():
    objective = fs.Objective(nn.Linear(4, 2), [torch.ones(3, 4)], loss=lambda m, x: m(x).mean() + torch.rand(()))
    with pytest.raises(fs.NondeterministicLossError, match="draws random numbers"):
        fs.quadratic_forms(objective, fs.Directions(objective, 5), method="forwards")


# ------------------------------------------------------------------------------------------------ held branches

PIECEWISE = {
    "relu": torch.relu,
    "relu_": lambda x: x.clone().relu_(),
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.2], dtype=x.dtype)),
    "abs": torch.abs,
    "threshold": lambda x: F.threshold(x, 0.1, -1.0),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7),
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-0.3, 0.4),
    "clamp low": lambda x: x.clamp(min=0.2),
    "clamp_min": lambda x: torch.clamp_min(x, 0.2),
    "clamp_max": lambda x: torch.clamp_max(x, 0.2),
    "hardswish": lambda x: F.hardswish(4 * x),
    "hardsigmoid": lambda x: F.hardsigmoid(4 * x),
    "maximum": lambda x: torch.maximum(x, x.flip(-1).square()),
    "minimum": lambda x: torch.minimum(x, x.flip(-1).square()),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "adaptive": lambda x: F.adaptive_max_pool2d(x, 2),
    "max": lambda x: x.max(dim=-1).values,
    "min keep": lambda x: x.min(dim=1, keepdim=True).values,
    "amax": lambda x: x.amax((-1, -2)),
    "amin": lambda x: x.amin(-1, keepdim=True),
    "sort": lambda x: x.sort(-1).values * torch.arange(6),
    "topk": lambda x: x.topk(2, dim=-1).values,
    "where": lambda x: torch.where(x > 0.1, x.square(), x),
    "sign": lambda x: torch.sign(x) * x.exp(),
    "fmax": lambda x: torch.fmax(x, x.flip(-1).square()),
    "fmin": lambda x: torch.fmin(x, x.flip(-1).square()),
    "clamp by tensors": lambda x: x.clamp(x.flip(-1).square() - 0.8, torch.tensor(0.7, dtype=x.dtype)),
    "clamp low by tensors": lambda x: torch.clamp_min(x, x.flip(-1).square()),
    "clamp high by tensors": lambda x: torch.clamp_max(x, x.flip(-1).square()),
    "softshrink": lambda x: F.softshrink(x, 0.25),
    "hardshrink": lambda x: F.hardshrink(x, 0.3),
    "elu": lambda x: F.elu(x, 0.5),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.3),
    "rrelu": F.rrelu,
    "huber": lambda x: F.huber_loss(x, x.flip(-1).square(), delta=0.4),
    "huber, each": lambda x: F.huber_loss(x, torch.zeros_like(x), delta=0.4, reduction="none"),
    "smooth l1": lambda x: F.smooth_l1_loss(x, torch.zeros_like(x), reduction="sum", beta=0.4),
    "l1": lambda x: F.l1_loss(x, x.flip(-1).square()),
    "norm 1": lambda x: torch.linalg.vector_norm(x, 1, dim=-1),
    "norm inf": lambda x: x.norm(p=math.inf, dim=1, keepdim=True),
    "norm -inf": lambda x: torch.linalg.vector_norm(x, -math.inf, dim=(1, 2)),
    "norm of all": lambda x: torch.linalg.vector_norm(x, math.inf),
    "norm 0": lambda x: torch.linalg.vector_norm(x, 0) * x,
    "pairwise": lambda x: F.pairwise_distance(x, x.flip(-1).square(), p=1),
    "max_pool1d": lambda x: F.max_pool1d(x.flatten(0, 1), 3, 2, 1),
    "median": lambda x: x.median(dim=-1).values,
    "median of all": lambda x: x.median(),
    "mode": lambda x: x.mode(1, keepdim=True).values,
    "kthvalue": lambda x: x.kthvalue(2, dim=1).values,
    "max of all": lambda x: x.max(),
    "aminmax": lambda x: torch.cat(torch.aminmax(x, dim=1, keepdim=True)),
    "cummax": lambda x: x.cummax(-1).values,
    "stable sort": lambda x: x.sort(stable=True, dim=1).values * torch.arange(6),
    "quantile": lambda x: x.quantile(0.3, dim=-1),
    "frac": lambda x: torch.frac(3 * x),
    "remainder": lambda x: torch.remainder(3 * x, 0.7),
    "fmod": lambda x: torch.fmod(3 * x, x.flip(-1).square() + 1),
    "floor division": lambda x: torch.div(x, 0.3, rounding_mode="floor") * x,
    "integers": lambda x: (4 * x).long() * x,
}


@pytest.mark.parametrize("name", PIECEWISE)
def test_held_branches_have_the_derivatives_of_automatic_differentiation(name):
    generator = torch.Generator().manual_seed(0)
    x, d = (torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    operation = PIECEWISE[name]

    def at(step):
        with branches.held(0):
            return operation((x + step * d).exp() - 1.2)

    branches = Branches()
    with branches.recording(0):
        base = operation(x.exp() - 1.2)
    torch.testing.assert_close(at(0.0), base, rtol=1e-15, atol=4e-15)
    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    first = torch.autograd.functional.jacobian(lambda s: operation((x + s * d).exp() - 1.2), step)
    h = 1e-4  # some elements cross their kink within it
    torch.testing.assert_close((at(h) - at(-h)) / (2 * h), first, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "operation",
    [torch.abs, lambda x: x.clamp(min=0), lambda x: torch.linalg.vector_norm(x, 1), lambda x: F.relu6(x), torch.relu],
    ids=["abs", "clamp", "norm 1", "relu6", "relu"],
)
def test_at_the_kink_itself_the_slope_is_that_of_automatic_differentiation(operation):
    x, d = torch.zeros(5, dtype=torch.float64), torch.arange(1.0, 6.0, dtype=torch.float64)
    branches = Branches()
    with branches.recording(0):
        operation(x)
    with branches.held(0):
        plus = operation(x + 1e-3 * d)
    with branches.held(0):
        minus = operation(x - 1e-3 * d)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(operation(leaf).sum(), leaf)
    torch.testing.assert_close((plus - minus).sum() / 2e-3, gradient @ d)


class Activated(nn.Module):
    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.third = nn.Linear(10, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.activation = activation

    def forward(self, x):
        return self.third(self.activation(self.second(self.activation(self.first(x)))))


def activated(activation, criterion):
    model = Activated(activation)
    inputs, labels, values = torch.randn(128, 10), torch.randint(0, 3, (128,)), torch.randn(128, 3)
    return fs.Objective(model, [(inputs, labels if criterion is F.cross_entropy else values)], criterion=criterion)


KINKED = {
    "norm inf": (lambda t: t / t.norm(p=math.inf, dim=1, keepdim=True), F.cross_entropy),
    "norm 1": (lambda t: 8 * t / t.norm(p=1, dim=1, keepdim=True), F.cross_entropy),
    "softshrink": (nn.Softshrink(0.2), F.cross_entropy),
    "hardshrink": (nn.Hardshrink(0.3), F.cross_entropy),
    "selu": (F.selu, F.cross_entropy),
    "elu": (F.elu, F.cross_entropy),
    "fmax": (lambda t: torch.fmax(t, torch.zeros_like(t)), F.cross_entropy),
    "clamp": (lambda t: torch.clamp(t, torch.tensor(-0.5), torch.tensor(0.5)), F.cross_entropy),
    "max_pool1d": (lambda t: F.max_pool1d(t[:, None], 2, stride=1, padding=1)[:, 0, :64], F.cross_entropy),
    "median": (lambda t: t - t.median(1, keepdim=True).values, F.cross_entropy),
    "aminmax": (lambda t: t / torch.aminmax(t, dim=1, keepdim=True)[1], F.cross_entropy),
    "smooth l1": (torch.tanh, F.smooth_l1_loss),
    "huber": (torch.tanh, F.huber_loss),
}


@pytest.mark.parametrize("case", KINKED)
def test_errors_of_kinked_models_are_below_those_reported(case):
    objective = activated(*KINKED[case])
    directions = fs.Directions(objective, 12)
    found, exact = fs.quadratic_forms(objective, directions, method="forwards"), double_backward(objective, directions)
    size = math.sqrt(np.mean(exact**2))
    true, reported = math.sqrt(np.mean((found.curvature - exact) ** 2)), math.sqrt(np.mean(found.error**2))
    assert true <= reported <= 5e-3 * size


def double_backward(objective, directions):
    model = objective.model.double()
    parameters = list(model.parameters())
    (inputs, targets), criterion = objective.batches[0], objective.criterion
    loss = criterion(model(inputs.double()), targets.double() if targets.is_floating_point() else targets)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    forms = []
    for index in range(len(directions)):
        d = [t.double() for t in directions.tensors(index, torch.float64)[0]]
        slope = sum((g * t).sum() for g, t in zip(gradient, d, strict=True))
        product = torch.autograd.grad(slope, parameters, retain_graph=True)
        forms.append(float(sum((p * t).sum() for p, t in zip(product, d, strict=True))))
    model.float()
    return np.array(forms)


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (lambda t: torch.renorm(t, 2, 0, 1.0), "renorm"),
        (lambda t: torch.copysign(t.exp(), t), "copysign"),
        (lambda t: torch.cdist(t, t[:64], p=1), "_cdist_forward"),
        (lambda t: torch._foreach_abs([t])[0], "_foreach_abs"),
        (lambda t: torch.logit(t, eps=0.1), "logit"),
    ],
)
def test_kinks_without_a_rule_are_refused_by_name(activation, name):
    objective = activated(activation, F.cross_entropy)
    with pytest.raises(UnsupportedKinkError, match=f"got {name}, which has no rule; use method=None"):
        fs.quadratic_forms(objective, fs.Directions(objective, 4), method="forwards")


@pytest.mark.parametrize(
    "activation",
    [
        lambda t: torch.tanh(t) + torch.renorm(torch.ones(3, 64), 2, 0, 0.01).sum(),
        lambda t: torch.cdist(t, t[:64] + 1.0, p=2),
        lambda t: torch.zeros_like(t).scatter_reduce(1, torch.arange(64).expand(128, -1), torch.tanh(t), "sum"),
    ],
    ids=["of data", "p = 2", "sum"],
)
def test_kinks_that_the_weights_do_not_reach_are_no_reason_to_refuse(activation):
    objective = activated(activation, F.cross_entropy)
    directions = fs.Directions(objective, 6)
    found, exact = fs.quadratic_forms(objective, directions, method="forwards"), double_backward(objective, directions)
    assert np.abs(found.curvature - exact).max() < 5e-3 * math.sqrt(np.mean(exact**2))


def test_forwards_that_change_their_operations_are_told():
    branches = Branches()
    with branches.recording(0):
        torch.relu(torch.ones(2))
    with pytest.raises(BranchesChangedError, match="got abs instead of relu"), branches.held(0):
        torch.abs(torch.ones(2))
    with pytest.raises(BranchesChangedError, match="got its end instead of relu"), branches.held(0):
        pass


def picked_maximum(h, given):
    values, places = h.max(1)
    given(places).fill_(0)
    return values.square()


def sorted_values(h, given):
    values, places = h.sort(1)
    given(places).mul_(0)
    return (values * torch.linspace(1, 2, h.shape[1], dtype=h.dtype)).square().sum(1)


def largest_two(h, given):
    values, places = torch.topk(h, 2, dim=1)
    given(places).sub_(places)
    return values.square().sum(1)


def pooled(h, given):
    values, places = F.max_pool1d(h[:, None], 2, return_indices=True)
    given(places).zero_()
    return values.square().sum((1, 2))


def masked(h, given):
    positive = h > 0
    out = torch.where(positive, h.square(), 0.5 * h.square()).sum(1)
    given(positive).logical_not_()
    return out


def looked_up(h, given):
    place = h.argmax(1)
    out = h.gather(1, place[:, None]).squeeze(1).square()
    given(place).fill_(-1)
    return out


@pytest.mark.parametrize("decide", [picked_maximum, sorted_values, largest_two, pooled, masked, looked_up])
def test_a_model_may_write_into_the_indices_and_masks_it_was_given(decide):
    """Detectors mark unmatched anchors with -1 in the indices of a maximum: what was recorded is not theirs to write into."""

    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(3, 4), nn.Parameter(torch.tensor(1.5))
            self.given = lambda tensor: tensor

        def forward(self, inputs):
            return self.scale * decide(self.layer(inputs), self.given)

    torch.manual_seed(0)
    model, inputs = Decides().double(), torch.randn(7, 3, dtype=torch.float64)
    made = fs.Objective(model, [(inputs, torch.zeros(7, dtype=torch.float64))], criterion=F.mse_loss)
    directions = fs.Directions(made, 6, seed=1)
    copies = Decides().double()
    copies.given = torch.clone  # automatic differentiation needs what it was given
    hessian = torch.autograd.functional.hessian(
        lambda *w: torch.func.functional_call(copies, dict(zip(made.names, w, strict=True)), (inputs,)).square().mean(),
        tuple(made.base.values()),
    )
    flats = [[t.double().flatten() for t in directions.tensors(i, torch.float64)[0]] for i in range(6)]
    sizes = [t.numel() for t in made.base.values()]
    expected = [
        sum(float(v[i] @ hessian[i][j].reshape(sizes[i], sizes[j]) @ v[j]) for i in range(3) for j in range(3)) for v in flats
    ]
    for path in ("forwards", None):
        np.testing.assert_allclose(fs.quadratic_forms(made, directions, method=path).curvature, expected, rtol=1e-5)


@torch.library.custom_op("fastscape_tests::strongest", mutates_args=())
def strongest(values: torch.Tensor) -> torch.Tensor:
    """Places of the two largest values of each row, as a library's own suppression of boxes gives them."""
    return values.topk(2, dim=1)[1].clone()


class Detector(nn.Module):
    """Keeps what another library's operation picks, and sets up a scale in its first forward."""

    def __init__(self, library):
        super().__init__()
        self.layer, self.library, self.scale = nn.Linear(3, 4), library, None

    def forward(self, inputs):
        if self.scale is None:
            self.scale = inputs.abs().max().round()
        values = self.layer(inputs)
        picked = strongest(values.detach()) if self.library else values.topk(2, dim=1)[1]
        return values.gather(1, picked).square().sum(1) / (1 + 0 * self.scale)


def test_choices_of_other_libraries_and_what_a_first_forward_sets_up_are_held():
    torch.manual_seed(0)
    inputs, targets = torch.randn(9, 3, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)
    forms = []
    for library in (True, False):
        torch.manual_seed(1)
        made = fs.Objective(Detector(library).double(), [(inputs, targets)], criterion=F.mse_loss)
        directions = fs.Directions(made, 6)
        forms.append(fs.quadratic_forms(made, directions, method="forwards").curvature)
    exact = fs.quadratic_forms(made, directions).curvature
    np.testing.assert_allclose(forms[0], exact, rtol=1e-5)
    np.testing.assert_allclose(forms[1], exact, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roundings_inside_the_loss_are_in_the_reported_error(dtype):
    """A cast to float32 in a float64 network: differences at steps of float64 would be exactly zero."""
    within, count = 0, 0
    for seed in range(8):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)
        data = [(torch.randn(12, 6).to(dtype), torch.randint(0, 4, (12,)))]
        plain = fs.Objective(net, data, criterion=F.cross_entropy)
        rounding = fs.Objective(net, data, criterion=lambda outputs, targets: F.cross_entropy(outputs.float(), targets))
        directions = fs.Directions(plain, 8)
        found, exact = fs.quadratic_forms(rounding, directions, method="forwards"), dense_forms(plain, directions)
        within, count = within + int((np.abs(found.curvature - exact) <= found.error).sum()), count + 8
        assert math.sqrt(np.mean((found.curvature - exact) ** 2)) <= 0.02 * math.sqrt(np.mean(exact**2))
    assert within >= 0.9 * count
