"""Difference responses against subtraction, for any block of directions, memory and threads; no wrong answer is silent."""

import copy
import re
import weakref
from collections import Counter
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from mixed_precision import BF16_PRODUCTS, BY_BF16
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastscape as fs
from fastscape import zoo
from fastscape.differences import evaluator as evaluator_module
from fastscape.differences import lanes as lanes_module
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.differences.tracing_errors import UntraceableError
from fastscape.ops import _native
from fastscape.ops._registry import KernelError

SMALL_TO_LARGE = (1e-10, 1e-7, 1e-5, 1e-3, 1e-2, 1e-1, 0.5)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.mix(self.embed(tokens))))


def ragged(sizes=(20, 9), seed=0):
    x, y = zoo.digits(samples=64)[0]
    return list(zip(x[: sum(sizes)].split(sizes), y[: sum(sizes)].split(sizes), strict=True))


def objective(model, data=None, **options):
    return fs.Objective(model, ragged() if data is None else data, **({"criterion": F.cross_entropy} | options))


def _text():
    return fs.Objective(
        zoo.tiny_transformer(width=8, layers=1, heads=2, context=8),
        zoo.pydoc_text(samples=6, context=8, batch_size=4),
        criterion=F.cross_entropy,
    )


def _tied():
    tokens = torch.arange(12) % 5
    return fs.Objective(Tied(), [(tokens, tokens.roll(1)), (tokens[:7], tokens[:7])], criterion=F.cross_entropy)


def _weighted():
    criterion = nn.CrossEntropyLoss(weight=torch.linspace(0.2, 3, 10), label_smoothing=0.1)
    return objective(zoo.mlp(hidden=(12,)), criterion=criterion)


def _dictionaries():
    batches = [{"x": x, "y": y, "scale": 0.5} for x, y in ragged()]
    return fs.Objective(
        zoo.mlp(hidden=(8,)), batches, loss=lambda model, batch: F.cross_entropy(model(batch["x"]) * batch["scale"], batch["y"])
    )


CASES = {
    "relu": lambda: objective(zoo.mlp(hidden=(16, 12))),
    "tanh": lambda: objective(zoo.mlp(hidden=(16,), activation="tanh")),
    "float64": lambda: objective(zoo.mlp(hidden=(16,)).double(), [(x.double(), y) for x, y in ragged()]),
    "bfloat16": lambda: objective(zoo.mlp(hidden=(16,)).bfloat16()),
    "cnn": lambda: objective(zoo.cnn(width=3)),
    "batch_norm": lambda: objective(zoo.cnn(width=3), batch_norm="batch"),
    "subset": lambda: objective(zoo.cnn(width=3), params="*.bias"),
    "text": _text,
    "tied": _tied,
    "weighted": _weighted,
    "dictionaries": _dictionaries,
}


@pytest.fixture
def case(request):
    torch.manual_seed(0)
    return CASES[request.param]()


every_case = pytest.mark.parametrize("case", CASES, indirect=True)


def rms(values):
    return np.sqrt(np.mean(values**2, axis=1, keepdims=True))


@every_case
def test_difference_responses_are_those_of_float64_subtraction(case):
    directions = fs.Directions(case, 3)
    radii = [1e-2, 1e-1, 0.5]
    found = fs.responses(case, directions, radii, precision="difference")
    truth = fs.responses(case, directions, radii, precision="float64", method="loop")
    assert found.base == pytest.approx(truth.base, rel=1e-12)
    assert (np.abs(found.even - truth.even) < 1e-5 * rms(truth.even) + 5 * truth.noise[:, None]).all()
    assert (np.abs(found.odd - truth.odd) < 1e-5 * rms(truth.odd) + 5 * truth.noise[:, None]).all()
    assert found.trusted.all()


@every_case
def test_float32_lanes_are_float64_lanes_at_every_radius(case):
    directions = fs.Directions(case, 3)
    with DifferenceEvaluator(case, lanes=torch.float64) as wide, DifferenceEvaluator(case) as narrow:
        truth, found = (evaluator.responses(directions, range(3), SMALL_TO_LARGE) for evaluator in (wide, narrow))
        once = narrow.responses(directions, range(3), SMALL_TO_LARGE, lanes=torch.float64)
    for part in (0, 1):
        assert (np.abs(found[part] - truth[part]) < 1e-5 * rms(truth[part])).all()
        np.testing.assert_allclose(once[part], truth[part], rtol=1e-9)
    curvature = truth[0] / np.square(SMALL_TO_LARGE)[:, None]
    assert (np.abs(curvature[0] - curvature[1]) < 1e-5 * rms(curvature[:1])[0]).all(), (
        "the limit is reached, not lost in rounding"
    )


@pytest.mark.parametrize("case", ["relu", "text", "batch_norm"], indirect=True)
def test_responses_do_not_depend_on_how_directions_and_radii_are_cut(case):
    directions = fs.Directions(case, 5)
    whole = fs.responses(case, directions, SMALL_TO_LARGE, precision="difference")
    assert whole.path.chunk == 5
    memory = 1
    for _ in ("an evaluation", "a lane"):
        with pytest.raises(ValueError, match=f"memory must hold a.*, got {memory}; raise memory=") as refused:
            fs.responses(case, directions, SMALL_TO_LARGE, precision="difference", memory=memory)
        memory = int(re.search(r"(\d+) bytes are enough", str(refused.value))[1])
    for enough in (memory, 10**8):
        cut = fs.responses(case, directions, SMALL_TO_LARGE, precision="difference", memory=enough)
        assert cut.path.chunk == 1 or enough == 10**8
        np.testing.assert_allclose(cut.even, whole.even, rtol=1e-4, atol=0)
        assert (np.abs(cut.even - whole.even) < 3e-6 * rms(whole.even)).all()
        assert (np.abs(cut.odd - whole.odd) < 3e-6 * rms(whole.odd)).all()


def test_directions_are_answered_in_the_order_asked_for_and_out_of_blocks():
    torch.manual_seed(0)
    case = CASES["relu"]()
    directions = fs.Directions(case, 9)
    with DifferenceEvaluator(case, memory=1_800_000) as evaluator:
        whole = evaluator.responses(directions, range(9), SMALL_TO_LARGE)[0]
        assert 1 < evaluator.choice.chunk < 9
        picked = evaluator.responses(directions, (8, 2, 5), SMALL_TO_LARGE)[0]
        single = evaluator.responses(directions, (4,), SMALL_TO_LARGE[-2:])[0]
    np.testing.assert_allclose(picked, whole[:, [8, 2, 5]], rtol=1e-4)
    np.testing.assert_allclose(single[:, 0], whole[-2:, 4], rtol=1e-4)


@pytest.mark.parametrize("case", ["relu", "cnn", "text"], indirect=True)
def test_threads_change_nothing_but_rounding(case):
    directions = fs.Directions(case, 2)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(fs.responses(case, directions, SMALL_TO_LARGE, precision="difference"))
    finally:
        torch.set_num_threads(before)
    one, two = found
    assert (np.abs(one.even - two.even) < 3e-6 * rms(one.even)).all()
    assert (np.abs(one.odd - two.odd) < 3e-6 * rms(one.odd)).all()


class Alive(TorchDispatchMode):
    """Bytes of the tensors made inside that are alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.uses, self.sizes, self.now, self.peak = Counter(), {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage.data_ptr()
                if not self.uses[key]:
                    self.sizes[key] = storage.nbytes()
                    self.now += self.sizes[key]
                    self.peak = max(self.peak, self.now)
                self.uses[key] += 1
                weakref.finalize(tensor, self.freed, key)
        return out

    def freed(self, key):
        self.uses[key] -= 1
        if not self.uses[key]:
            self.now -= self.sizes[key]


@pytest.mark.parametrize("kind", ["relu", "tanh"])
def test_memory_is_a_bound(kind, digits):
    torch.manual_seed(0)
    case = fs.Objective(zoo.mlp(hidden=(64, 64), activation=kind), digits, criterion=F.cross_entropy)
    directions = fs.Directions(case, 16)
    fs.quadratic_forms(case, directions)  # the program is kept: tracing takes place outside
    peaks = {}
    for memory in (4 << 20, 16 << 20, 1 << 30):
        with DifferenceEvaluator(case, memory=memory) as evaluator, Alive() as alive:
            evaluator.responses(directions, range(16), np.logspace(-9, 0, 40))
        peaks[memory] = alive.peak
    assert peaks[4 << 20] < 4 << 20
    assert peaks[16 << 20] < 16 << 20
    assert peaks[1 << 30] > 4 * peaks[4 << 20], "memory that is there is used"


def test_memory_bounds_the_mean_of_many_directions_too(digits):
    torch.manual_seed(0)
    case = fs.Objective(zoo.mlp(hidden=(64, 64)), digits, criterion=F.cross_entropy)
    directions = fs.Directions(case, 64)
    fs.quadratic_forms(case, directions)
    found = []
    for memory in (4 << 20, 1 << 30):
        with DifferenceEvaluator(case, memory=memory) as evaluator, Alive() as alive:
            found.append((evaluator.mean_curvature(directions, range(64)), alive.peak))
    assert found[0][1] < 4 << 20 < found[1][1]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)


# ---------------------------------------------------------------------- what cannot be answered


class Loose(nn.Module):
    """Reaches a parameter by more than its name."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 10)
        self.kept = [self.first.weight]

    def forward(self, x):
        return self.last(torch.tanh(x.flatten(1) @ self.kept[0].T + self.first.bias))


@pytest.mark.parametrize("path", [None, "graph", "dispatch"])
def test_a_model_that_reaches_its_parameters_by_other_ways_is_refused(path):
    torch.manual_seed(0)
    case = objective(Loose())
    directions = fs.Directions(case, 4)
    why = r"must give the response that its operations give, got an (even|odd) response"
    refused = [
        lambda: fs.responses(case, directions, [1e-4, 1e-2], precision="difference", method=path),
        lambda: fs.mean_quadratic_form(case, directions, groups=2),
    ]
    if path is None:  # which falls to losses at displaced weights, written where every way finds them
        forms = fs.quadratic_forms(case, directions)
        assert forms.path.name == "forwards"
        assert re.search(why, forms.path.reason)
    else:
        refused.append(lambda: fs.quadratic_forms(case, directions, method=path))
    for work in refused:
        with pytest.raises(fs.UntraceableError, match=why):
            work()
    truth = fs.responses(case, directions, [1e-2], precision="float64", method="loop")
    found = fs.responses(case, directions, [1e-2])  # in float32, where this processor's noise allows
    np.testing.assert_allclose(found.even, truth.even, rtol=1e-5, atol=4 * found.noise.max())


class Cast(nn.Module):
    """Computes in float32 inside, where the weights are wide."""

    def __init__(self, dtype):
        super().__init__()
        self.first, self.last, self.dtype = nn.Linear(64, 8), nn.Linear(8, 10), dtype

    def forward(self, x):
        return self.last(torch.tanh(self.first(x.flatten(1)).to(self.dtype)).to(x.dtype))


def test_a_narrow_step_inside_is_no_reason_to_refuse():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        case = objective(Cast(dtype))
        directions = fs.Directions(case, 3)
        wide = copy.deepcopy(case.model)
        wide.dtype = torch.float64
        truth = fs.quadratic_forms(objective(wide), directions).curvature
        found = fs.quadratic_forms(case, directions).curvature
        np.testing.assert_allclose(found, truth, rtol=0.2 if dtype == torch.bfloat16 else 1e-4)
        fs.responses(case, directions, [1e-5, 1e-2], precision="difference")


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        out = self.linear(x.flatten(1))
        return out + 1e-9 * torch.randn_like(out)


def test_a_random_loss_is_refused_before_any_work():
    case = objective(Noisy())
    directions = fs.Directions(case, 4)
    for work in (
        lambda: fs.responses(case, directions, [1e-2], precision="difference"),
        lambda: fs.quadratic_forms(case, directions),
        lambda: fs.mean_quadratic_form(case, directions, groups=2),
    ):
        with pytest.raises(fs.NondeterministicLossError):
            work()


class Rounding(TorchDispatchMode):
    """A processor that makes matrix products of float32 operands in bfloat16."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.fastscape.linear_difference.default:
            args = [a.bfloat16().float() if isinstance(a, torch.Tensor) and a.dtype == torch.float32 else a for a in args]
        return func(*args, **(kwargs or {}))


@BF16_PRODUCTS
@pytest.mark.parametrize("rounds", [False, True])
def test_the_result_names_what_the_products_were(rounds, monkeypatch):
    """torch ignores the request on some processors, and for small shapes, without a word."""

    @contextmanager
    def products(name):
        with Rounding() if rounds and name == "bfloat16" else nullcontext():
            yield

    monkeypatch.setattr(lanes_module, "rounded_products", products)
    case = objective(zoo.mlp(hidden=(8,)))
    directions = fs.Directions(case, 2)
    found, plain = (fs.responses(case, directions, SMALL_TO_LARGE, precision=p) for p in ("difference-bf16", "difference"))
    words = "operands of matrix products were rounded" if rounds else "no product was rounded to bfloat16"
    assert words in found.reason
    assert words in found.path.reason
    assert np.array_equal(found.even, plain.even) is not rounds
    assert "bfloat16" not in plain.reason
    probe = fs.ProbeSettings(count=2, banks=2, precision="difference-bf16")
    probed = fs.multifractal(case, probe, fs.AnalysisSettings(bootstrap=50, permutations=99))
    assert words in probed.meta["path"]["reason"]


def test_bfloat16_products_are_refused_where_the_processor_has_none(monkeypatch):
    monkeypatch.setattr(evaluator_module, "_multiplies_bfloat16", lambda _device: False)
    case = objective(zoo.mlp(hidden=(4,)))
    with pytest.raises(ValueError, match="precision must be 'difference' on this device, got 'difference-bf16'"):
        fs.responses(case, fs.Directions(case, 2), SMALL_TO_LARGE, precision="difference-bf16")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("precision", ["difference", BY_BF16, None])
def test_weights_that_are_not_finite_give_responses_that_are_not(value, precision):
    torch.manual_seed(0)
    model = zoo.mlp(hidden=(8,))
    with torch.no_grad():
        model[-1].weight[0, 0] = value
        model[-1].bias[1] = value
    case = objective(model)
    directions = fs.Directions(case, 2)
    found = fs.responses(case, directions, SMALL_TO_LARGE, precision=precision)
    assert not np.isfinite(found.even).any()
    assert not found.trusted.any()
    assert not np.isfinite(fs.quadratic_forms(case, directions).curvature).any()


def test_an_overflow_of_one_radius_leaves_the_others_alone():
    """exp overflows float32 lanes at the largest radius only, where the response is no number that float32 holds."""

    class Exponential(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return torch.exp(self.w * x)

    case = fs.Objective(Exponential(), [(torch.ones(2), torch.zeros(2))], criterion=lambda out, _: out.mean())
    directions = fs.Directions.given(case, {"w": torch.ones(2)}, scale="unit")
    with DifferenceEvaluator(case, gate=False) as evaluator:
        even = evaluator.responses(directions, (0,), [1e-3, 1.0, 800.0])[0][:, 0]
    expected = np.e * (2 * np.cosh(np.array([1e-3, 1.0]) / np.sqrt(2)) - 2)
    np.testing.assert_allclose(even[:2], expected, rtol=1e-6)
    assert not np.isfinite(even[2])


@pytest.mark.parametrize("precision", ["difference", None])
def test_a_loss_that_nothing_moves_has_responses_of_zero(precision):
    case = fs.Objective(zoo.mlp(hidden=(4,)), ragged(), loss=lambda _model, batch: batch[0].square().mean())
    directions = fs.Directions(case, 4)
    found = fs.responses(case, directions, [1e-6, 1e-2, 1e-1], precision=precision)
    np.testing.assert_array_equal(found.even, 0)
    np.testing.assert_array_equal(found.odd, 0)
    np.testing.assert_array_equal(fs.quadratic_forms(case, directions).slope, 0)
    assert fs.mean_quadratic_form(case, directions, groups=2).value == 0


# ---------------------------------------------------------------------- no trace


PUBLIC = {
    "difference": lambda o, d, **k: fs.responses(o, d, [1e-4, 1e-2], precision="difference", **k),
    "bf16": lambda o, d, **k: fs.responses(o, d, [1e-4, 1e-2], precision="difference-bf16", **k),
    "dispatch": lambda o, d, **k: fs.responses(o, d, [1e-4, 1e-2], precision="difference", method="dispatch", **k),
    "chosen": lambda o, d, **k: fs.responses(o, d, [1e-4, 1e-2], **k),
    "forms": lambda o, d, **k: fs.quadratic_forms(o, d, **k),
    "mean": lambda o, d: fs.mean_quadratic_form(o, d, groups=2),
    "operators": lambda o, _d: fs.operators(o),
}
NAMES = [pytest.param(name, marks=BF16_PRODUCTS) if name == "bf16" else name for name in PUBLIC]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_no_public_call_leaves_a_trace(bn_net, digits, untouched, name, batch_norm):
    data = [(digits[0][0][:20], digits[0][1][:20])]
    with untouched(bn_net):
        case = fs.Objective(bn_net, data, criterion=F.cross_entropy, batch_norm=batch_norm)
        PUBLIC[name](case, fs.Directions(case, 4))


@pytest.mark.parametrize("name", NAMES[:5])
def test_ctrl_c_between_blocks_leaves_the_first_directions_and_no_trace(bn_net, bn_objective, untouched, name):
    known = []

    def stop(done, _total):
        known.append(done)
        raise KeyboardInterrupt

    directions = fs.Directions(bn_objective, 4)
    with untouched(bn_net):
        found = PUBLIC[name](bn_objective, directions, progress=stop)
    assert found.stop_reason == "interrupted"
    assert known == [(found.curvature if name == "forms" else found.even).shape[-1]]


class Fragile(nn.Module):
    """Raises at a given call."""

    def __init__(self, plan):
        super().__init__()
        self.linear, self.norm, self.plan = nn.Linear(64, 10), nn.BatchNorm1d(10), plan

    def forward(self, x):
        _count(self.plan)
        return self.norm(self.linear(x.flatten(1)))


CALLS = {}


def _count(plan):
    CALLS[plan] = CALLS.get(plan, 0) + 1
    if CALLS[plan] == plan[1]:
        raise plan[2]("midway")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind_whenever_the_model_raises(untouched, name, error):
    CALLS.clear()
    raised = []
    for at in range(1, 12):
        model = Fragile((name, at, error))
        model.linear(torch.ones(2, 64)).sum().backward()
        case = objective(model)
        directions = fs.Directions(case, 4)
        with untouched(model):
            try:
                PUBLIC[name](case, directions)
            except (error, fs.UntraceableError) as caught:
                raised.append(caught)
    assert len(raised) >= (1 if name == "operators" else 4)
    assert all("midway" in str(caught) for caught in raised)


@pytest.mark.skipif(not _native.library.available, reason="no C++ library")
@pytest.mark.parametrize("path", ["graph", "dispatch"])
def test_a_kernel_that_fails_is_named_and_no_other_evaluation_stands_in(monkeypatch, tanh_objective, path):
    """As a chip without room for its tiles does; memory that is full stays that error."""
    directions, called = fs.Directions(tanh_objective, count=2), type(_native.library).call
    expected = fs.responses(tanh_objective, directions, [1e-2], precision="difference", method=path)

    def failing(error):
        def call(self, name, task):
            if name == "pointwise":
                raise error
            return called(self, name, task)

        monkeypatch.setattr(type(_native.library), "call", call)

    failing(RuntimeError("out of resource: shared memory"))
    with pytest.raises(
        (KernelError, UntraceableError), match=r"C\+\+ kernel of fastscape::pointwise_difference failed with .*shared"
    ):
        fs.responses(tanh_objective, directions, [1e-2], precision="difference", method=path)
    other = fs.responses(tanh_objective, directions, [1e-2])
    assert other.precision != "difference"
    assert "fastscape::pointwise_difference" in other.reason
    np.testing.assert_allclose(other.even, expected.even, rtol=1e-6)
    failing(torch.OutOfMemoryError("full"))
    with pytest.raises((torch.OutOfMemoryError, UntraceableError), match="full"):
        fs.responses(tanh_objective, directions, [1e-2], precision="difference", method=path)


def test_lanes_take_the_users_weights_where_they_are_in_their_dtype():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    objective = fs.Objective(model, [(torch.randn(6, 4), torch.arange(6) % 3)], criterion=F.cross_entropy, params="2.*")
    with DifferenceEvaluator(objective) as evaluator:
        found = evaluator.responses(fs.Directions(objective, 1), [0], [0.1])
        values = evaluator._lanes.propagations[0]._inputs
        for name, tensor in model.named_parameters():
            assert values[f"parameter:model.{name}"].base.narrow(torch.float32).data_ptr() == tensor.data_ptr()
    wide = objective.at({name: tensor.double() for name, tensor in model.state_dict().items()})
    with DifferenceEvaluator(wide) as evaluator:
        expected = evaluator.responses(fs.Directions(objective, 1), [0], [0.1])
    for one, other in zip(found, expected, strict=True):
        assert (one == other).all()
