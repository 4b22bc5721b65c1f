"""Traced models of every common kind: lanes equal float64 points, double backward and themselves in float32."""

import operator

import pytest
import torch
from differences.architectures import ARCHITECTURES, Forward, lin, vectors
from differences.harness import measured, problem, relative
from torch import nn
from torch.nn import functional as F

from fastscape._state import exact_arithmetic
from fastscape.differences.tracing_errors import UntraceableError
from fastscape.differences.triple import Frame

SLOW = {"resnet18"}  # beside the smaller one of the same blocks
ROUNDED = {"llama", "t5", "mixed_precision"}  # go through float32 on their own account
WITHOUT_SECOND_DERIVATIVE = {
    "weight_norm",  # torch's double backward differs from differences that have converged
    "weight_norm_convolution",
    "custom_function",  # its backward is not its derivative
}
REFUSED = {"loss_ctc"}  # torch puts the lengths into a tensor behind the dispatcher's back
FALLBACKS = {
    "mathematics": {"aten.atan2.default", "aten.tan.default"},
    "unknown_functions": {"aten.lgamma.default"},
    "linear_solve": {"aten._linalg_solve_ex.default"},
    "embedding_bag": {"aten._embedding_bag_forward_only.default"},
}
LARGE = {
    "small_resnet",
    "bottleneck_resnext",
    "mobilenet_v3",
    "mobilenet_v2",
    "swin",
    "t5",
}  # for tests of what smaller ones show
HEAVY = {"bert_eager", "gpt2_eager", "mobilenet_v2", "bottleneck_resnext", "swin", "lstm_projected"}  # a lighter sibling each
F64 = torch.float64
EXACT = sorted(set(ARCHITECTURES) - SLOW - ROUNDED - REFUSED)


def weighed(names):
    """Parameters of a test, the heavy ones under the marker of slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in names]


def bound(name, what):
    """How far a quantity may be off."""
    if "float32" in what:
        return 1e-5
    if what == "base":
        return 1e-12
    if what.endswith(" 0"):
        return 1e-7 if name in FALLBACKS else 1e-10
    return 1e-6 if what == "b 0.01" or what.startswith("a") or what == "b 0.1" else 2e-5  # subtraction of 1e-16 / e^2


@pytest.mark.parametrize("name", weighed(EXACT))
def test_lanes_equal_points_and_derivatives(name):
    model, data, options = ARCHITECTURES[name]()
    radii = (0.0, 1e-6, 1e-2, 1e-1)
    found, frame, narrow = measured(problem(model, data, count=2, **options), radii, derive=name not in WITHOUT_SECOND_DERIVATIVE)
    wrong = {what: error for what, error in found.items() if not error < bound(name, what)}
    assert not wrong
    assert set(frame.fallbacks) == set(narrow.fallbacks) == FALLBACKS.get(name, set())
    assert not frame.frozen


@pytest.mark.parametrize("name", sorted(ROUNDED))
def test_float32_within_a_model_limits_subtraction_and_not_the_lanes(name):
    model, data, options = ARCHITECTURES[name]()
    found, _, _ = measured(problem(model, data, count=1, **options), (0.0, 1e-1))
    assert found["a 0"] < 1e-6
    assert found["b 0"] < 1e-6
    assert found["b 0.1"] < 1e-2


@pytest.mark.parametrize("name", weighed(sorted(set(EXACT) - LARGE - {"swin_v2"})))
def test_the_collapsed_second_derivative_is_the_mean_over_directions(name):
    model, data, options = ARCHITECTURES[name]()
    case = problem(model, data, count=3, **options)
    first, second, _ = case.lanes((0.0,))
    with exact_arithmetic(torch.float64), torch.no_grad():
        lanes = case.propagation.lanes(Frame(torch.zeros(1, dtype=F64), F64, collapsed=True), case.directions)
    assert relative(lanes[:-1, 0, 0], first[:, 0]) < 1e-9
    assert abs(lanes[-1, 0, 0] - second[:, 0].mean()) < 1e-8 * second.abs().max()


@pytest.mark.parametrize("count", [1, 3])
def test_one_direction_and_one_radius_are_lanes_like_others(count):
    model, data, options = ARCHITECTURES["encoder_pre_norm_masked"]()
    whole = problem(model, data, count=count, **options)
    first, second, _ = whole.lanes((0.0, 1e-2))
    for j, radius in enumerate((0.0, 1e-2)):
        one_first, one_second, _ = whole.lanes((radius,))
        torch.testing.assert_close(one_first[:, 0], first[:, j], rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(one_second[:, 0], second[:, j], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_single_parameters_may_move_alone(index):
    """Lanes begin anywhere: at a bias, at a norm, at a weight whose input stands still."""
    model, data, _ = ARCHITECTURES["group_norm"]()
    name = [name for name, _ in model.named_parameters()][2 * index]
    found, _, _ = measured(problem(model, data, count=2, params=name), (0.0, 1e-2))
    assert found["b 0.01"] < 1e-6
    assert found["b 0"] < 1e-10


def test_a_loss_that_does_not_move_has_no_lanes():
    model = Forward(lambda s, x: s.o(x), l=lin(), o=lin(8, 3))
    case = problem(model, vectors(), params="l.*")
    assert case.propagation.lanes(Frame(torch.tensor([0.1], dtype=torch.float64), torch.float64), case.directions) is None


# ---------------------------------------------------------------- decisions that change
def switching(function):
    torch.manual_seed(3)
    return problem(Forward(function, l=lin(), k=lin(), o=lin(8, 3)), vectors(), count=2)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.o((s.l(x) > 0) * s.k(x)),
        lambda s, x: s.o(F.one_hot(s.l(x).argmax(-1), 8) * s.k(x)),
        lambda s, x: s.o(s.k(x).gather(-1, s.l(x).topk(3, -1)[1]).repeat(1, 3)[:, :8]),
        lambda s, x: s.o(torch.where((s.l(x) > 0) & ~(s.k(x) > 0.1), s.l(x), s.k(x))),
        lambda s, x: s.o(s.k(x).masked_fill(s.l(x) > 0, 0.5)),
        lambda s, x: s.o(s.l(x).round() + s.k(x)),
        lambda s, x: s.o(s.k(x)[torch.arange(6), s.l(x)[:, :6].argmax(0)][:, None] * s.k(x)),
        lambda s, x: s.o(torch.zeros_like(x).scatter(-1, s.l(x).argsort(-1), s.k(x))),
        lambda s, x: s.o(s.k(x) * (s.l(x) > 0).sum()),
    ],
    ids=["mask", "one-hot", "gather", "logic", "masked-fill", "round", "index", "scatter", "count"],
)
def test_decisions_that_change_are_followed_at_every_radius(function):
    case = switching(function)
    radii = (0.0, 1e-9, 1e-3, 1e-2, 1e-1)
    found, frame, _ = measured(case, radii)
    assert max(found[f"b {radius:g}"] for radius in (1e-2, 1e-1)) < 1e-8
    assert found["b 0.001"] < 1e-6
    assert found["b 0"] < 1e-9
    assert not frame.fallbacks
    _, second, _ = case.lanes(radii)
    torch.testing.assert_close(second[:, 1], second[:, 0], rtol=1e-6, atol=1e-9)  # nothing changes within 1e-9


# ---------------------------------------------------------------- decisions of the host
def by_item(s, x):
    return s.o(s.l(x) * float(s.l.weight.abs().max().item()))


def by_numpy(s, x):
    return s.o(s.l(x) * float(s.l.weight.detach().numpy().max()))


def by_list(s, x):
    return s.o(s.l(x) * max(s.l.bias.tolist()))


def by_branch(s, x):
    z = s.l(x)
    return s.o(torch.tanh(z) if (z - z.detach().clone()).sum() + s.edge.sum() > 0 else torch.sigmoid(z))


@pytest.mark.parametrize("function", [by_item, by_numpy, by_list])
def test_values_handed_to_python_are_counted_as_frozen(function):
    case = problem(Forward(function, l=lin(), o=lin(8, 3)), vectors())
    assert sum(case.lanes((1e-2,))[2].frozen.values()) == 1


def test_a_branch_that_would_fall_otherwise_is_counted_and_one_that_would_not_is_not():
    model = Forward(by_branch, l=lin(), o=lin(8, 3))
    model.edge = nn.Parameter(torch.tensor([1.0, -1.0]))
    assert sum(problem(model, vectors()).lanes((1e-3,))[2].frozen.values()) == 1
    model.edge = nn.Parameter(torch.tensor([2.0, -1.0]))
    assert sum(problem(model, vectors()).lanes((1e-3,))[2].frozen.values()) == 0


# ---------------------------------------------------------------- what cannot be followed
@torch.library.custom_op("fastscape_tests::twist", mutates_args=())
def twist(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


@twist.register_fake
def _(x):
    return torch.empty_like(x)


def differentiated(s, x):
    with torch.enable_grad():
        inner = x.detach().requires_grad_()
        return s.o(torch.autograd.grad(s.l(inner).tanh().sum(), inner, create_graph=True)[0])


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda s, x: s.o(twist(s.l(x))), "fastscape_tests::twist in module model"),
        (lambda s, x: s.o(s.l(x)) + s.l(x)[s.l(x) > 0].sum(), "index in module model"),
        (lambda s, x: s.o(s.l(x)) + len(torch.nonzero(s.l(x) > 0)), "nonzero in module model"),
        (lambda s, x: s.o(F.dropout(s.l(x))), "dropout in module model"),
        (lambda s, x: s.o(s.l(x) + torch.randn_like(x)), "randn_like in module model"),
        (lambda s, x: s.o(torch.sparse.mm(torch.eye(6, dtype=x.dtype).to_sparse(), s.l(x))), "to_sparse"),
        (lambda s, x: torch.func.vmap(lambda z: s.o(s.l(z).tanh()))(x), "torch.func transforms"),
        (lambda s, x: s.o(torch.func.grad(lambda z: s.l(z).tanh().sum())(x)), "torch.func transforms"),
        (differentiated, "must not differentiate"),
        (lambda s, x: torch.cond(s.l(x).sum() > 0, lambda z: s.o(z.tanh()), lambda z: s.o(z.cos()), (s.l(x),)), "higher order"),
    ],
    ids=["custom", "mask", "nonzero", "dropout", "noise", "sparse", "vmap", "grad", "autograd", "cond"],
)
def test_what_cannot_be_followed_is_refused_by_name_before_any_work(function, words):
    with pytest.raises(UntraceableError, match=words):
        problem(Forward(function, l=lin(), o=lin(8, 3)), vectors())


def test_a_compiled_submodule_is_followed_as_the_module_that_it_was_made_of():
    plain = nn.Sequential(lin(), nn.Tanh())
    compiled = torch.compile(plain, backend="eager")
    one, other = (problem(nn.Sequential(part, lin(8, 3)), vectors()).propagation.program for part in (compiled, plain))
    assert [step.name for step in one.steps] == [step.name for step in other.steps]


def test_every_value_is_freed_after_its_last_use():
    steps = problem(*ARCHITECTURES["vision_transformer"]()[:2]).propagation.program.steps
    ending = [name for step in steps for name in step.last]
    assert len(ending) == len(set(ending))
    assert {step.name for step in steps if step.target is not operator.getitem} - set(ending) <= {steps[-1].name}
