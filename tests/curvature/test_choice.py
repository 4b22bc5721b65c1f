"""The path is chosen by measuring, under a cap; what fails is refused with its reason, and says what remains."""

import re

import pytest
import torch
from curvature_dense import identity, objective, relative
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.curvature.compiled import CompiledPath
from fastscape.evaluation.footprint import enough as enough_for
from fastscape.runs.peak import MemoryCapError, PeakMemory, peak_bytes


@pytest.fixture
def digits_batch(digits):
    return digits[0][0][:64], digits[0][1][:64]


def enough(refused):
    return int(re.search(r"(\d+) bytes are enough", str(refused.value))[1])


def smooth_mlp():
    torch.manual_seed(0)
    return zoo.mlp(hidden=(16,), activation="tanh")


class Once(torch.autograd.Function):
    """The square, whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class Wrong(torch.autograd.Function):
    """The square, whose backward treats its input as a constant, so that products are not symmetric."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, gradient):
        x, y = ctx.saved_tensors
        return gradient * y, gradient * x.detach()


class With(nn.Module):
    """A linear layer, an operation on its output, and another layer."""

    def __init__(self, operation):
        super().__init__()
        self.first, self.last, self.operation = nn.Linear(4, 5), nn.Linear(5, 3), operation

    def forward(self, inputs):
        return self.last(self.operation(self.first(inputs)))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=generator, dtype=torch.float64), torch.randint(3, (6,), generator=generator)


def test_the_choice_is_the_fastest_of_what_was_timed(digits_batch):
    operator = fs.hessian(objective(smooth_mlp(), digits_batch))
    for count in (1, 8):
        choice = operator.prepare(count, thorough=True)
        assert choice.seconds[choice.name] == min(choice.seconds.values())
        assert choice.gradients == pytest.approx(choice.seconds[choice.name] / operator.gradient_seconds)
        assert operator.prepare(count) is choice
        assert {"graph", "replay"} <= choice.seconds.keys()
        assert choice.asymmetry < 1e-4


def test_an_operation_without_second_derivative_falls_to_differences_and_says_so(batch):
    torch.manual_seed(0)
    model = With(Once.apply).double()
    expected = fs.hessian(objective(_with_same_weights(model, torch.square), batch))
    operator = fs.hessian(objective(model, batch))
    found = operator @ identity(operator)
    assert relative(found, expected @ identity(expected)) < 1e-6
    assert operator.choice.name == "gradient difference"
    assert "symmetric" in operator.choice.refused["graph"]  # torch takes such a backward for a constant, without a word
    assert 0 < operator.choice.error < 1e-6


def _with_same_weights(model, operation):
    other = With(operation).double()
    other.load_state_dict(model.state_dict())
    return other


def test_a_path_asked_for_that_fails_says_why(batch):
    model = With(Once.apply).double()
    for path, message in (("graph", "once_differentiable"), ("forward", r"forward: .*; method=None tries .*gradient difference")):
        operator = fs.hessian(objective(model, batch), method=path)
        with pytest.raises(ValueError, match=message):
            operator @ torch.ones(operator.shape[0])


def test_the_operation_without_derivative_is_named():
    class Flash(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(4, 12)

        def forward(self, inputs):
            query, key, value = self.project(inputs).view(2, 3, 3, 4).unbind(2)
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query[None], key[None], value[None])[0].flatten(
                0, 2
            )

    torch.manual_seed(0)
    batch = torch.randn(6, 4, dtype=torch.float64), torch.randint(4, (6,))
    operator = fs.hessian(objective(Flash().double(), batch))
    found = operator @ identity(operator)
    assert relative(found, found.T) < 1e-5
    assert operator.choice.name == "gradient difference"
    assert "flash_attention_for_cpu_backward has no second derivative" in operator.choice.refused["graph"]


def test_products_that_are_not_symmetric_are_refused(batch):
    torch.manual_seed(0)
    operator = fs.hessian(objective(With(lambda x: Wrong.apply(x, x.flip(-1))).double(), batch))
    operator.prepare(1)
    assert operator.choice.name == "gradient difference"
    assert "u'Hv and v'Hu" in operator.choice.refused["graph"]
    alone = fs.hessian(operator.objective, method="graph")
    with pytest.raises(fs.AsymmetricProductError, match="custom backward"):
        alone @ torch.ones(alone.shape[0])


def test_a_random_loss_is_refused_before_any_product(batch):
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).double()

    class Noisy(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, inputs):
            return F.dropout(self.inner(inputs), 0.5, training=True)

    with pytest.raises(fs.NondeterministicLossError, match="random numbers"):
        fs.hessian(objective(Noisy(model), batch))


def test_a_model_that_raises_does_so_with_its_own_error(batch):
    def fail(_):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fs.hessian(objective(With(fail).double(), batch))


def test_differences_in_a_rough_loss_are_refused_as_hopeless(batch):
    model = With(lambda x: (1e6 * x).sin())
    operator = fs.hessian(objective(model, (batch[0].float(), batch[1])), method="gradient difference")
    with pytest.raises(ValueError, match=r"estimated relative error .* above 0.01.*float64"):
        operator @ torch.ones(operator.shape[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method must be one of graph"),
        ({"memory": 0}, "memory must be a positive"),
        ({"memory": -5}, "memory"),
    ],
)
def test_bad_options_are_refused(batch, options, message):
    with pytest.raises(ValueError, match=message):
        fs.hessian(objective(With(torch.tanh).double(), batch), **options)


def test_a_model_in_place_of_an_objective_is_refused():
    with pytest.raises(TypeError, match=r"fastscape\.Objective"):
        fs.hessian(nn.Linear(2, 2))


def test_the_gauss_newton_matrix_needs_a_criterion(batch):
    made = fs.Objective(With(torch.tanh).double(), [batch], loss=lambda model, pair: F.cross_entropy(model(pair[0]), pair[1]))
    with pytest.raises(ValueError, match=r"criterion=.*fs\.hessian"):
        fs.ggn(made)
    with pytest.raises(ValueError, match="Gauss-Newton"):
        fs.ggn(objective(With(torch.tanh).double(), batch), method="reverse")


def test_memory_cuts_blocks_and_refuses_what_does_not_fit(digits_batch):
    model = smooth_mlp()
    made = objective(model, digits_batch)
    free = fs.hessian(made)
    block = torch.eye(made.size)[:, :16].clone()
    expected = free @ block
    peaks = []
    with pytest.raises(ValueError, match=r"memory must hold 8 products .* for which \d+ bytes are enough, got 80000"):
        fs.hessian(made, memory=80_000) @ block
    for memory in (400_000, 200_000):
        operator = fs.hessian(made, memory=memory)
        with PeakMemory() as spent:
            found = operator @ block
        peaks.append(spent.peak - found.numel() * 4)  # of the transpose
        assert operator.choice.peak <= memory
        assert peaks[-1] <= memory
        assert relative(found, expected) < 3e-3
    assert peaks[0] > peaks[-1]


def test_under_a_tight_cap_batches_are_cut_and_nothing_else_changes(digits_batch):
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), *(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(8))
    )
    model.append(nn.Linear(4, 10))
    made = objective(model, digits_batch, (digits_batch[0][:7], digits_batch[1][:7]))
    block = torch.randn(made.size, 3, generator=torch.Generator().manual_seed(0))
    free, tight = fs.hessian(made), fs.hessian(made, memory=40_000)
    expected, forms = free.forms(block)
    found, cut = tight.forms(block)
    assert "cut in" in tight.choice.reason
    allowed = max(1e-5, 10 * (tight.choice.error or 0.0))  # of the whole: single forms may cancel
    assert allowed < 2e-2
    assert relative(found, expected) < allowed
    assert cut.shape == (2, 3)
    assert relative(torch.from_numpy(cut), torch.from_numpy(forms)) < allowed
    assert relative(torch.from_numpy(tight.quadratic_forms(block)), (block * expected).sum(0).double()) < allowed


def test_batches_whose_samples_are_mixed_are_not_cut(digits_batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), *(nn.Tanh() for _ in range(40)), nn.Linear(4, 10))
    made = objective(model, digits_batch, batch_norm="batch")
    operator = fs.hessian(made, memory=40_000)
    with pytest.raises(ValueError, match=r"memory must hold a gradient, .* bytes are enough, got 40000") as refused:
        operator @ torch.ones(operator.shape[0])
    operator = fs.hessian(made, memory=enough(refused))
    operator @ torch.ones(operator.shape[0])


def test_a_cap_that_nothing_fits_is_an_error_that_says_so(digits_batch):
    made = objective(smooth_mlp(), digits_batch)
    with pytest.raises(ValueError, match=r"memory must hold a copy .* bytes are enough, got 20000") as refused:
        fs.hessian(made, memory=20_000)
    operator = fs.hessian(made, memory=enough(refused))
    operator @ torch.ones(operator.shape[0])


def test_graphs_of_many_batches_are_kept_only_while_they_fit(digits_batch):
    inputs, targets = digits_batch
    model = smooth_mlp()
    batches = list(zip(inputs.split(16), targets.split(16), strict=True))
    whole = fs.hessian(objective(model, digits_batch), method="graph")
    memory = None
    for kept in (4, 2):
        operator = fs.hessian(objective(model, *batches), method="graph", memory=memory)
        vector = torch.ones(operator.shape[0])
        assert relative(operator @ vector, whole @ vector) < 1e-5
        candidate = operator._products.selection.chosen[1]
        assert len(candidate.built) == kept
        room = 8 * operator.shape[0] + 1.5 * candidate.held + candidate.peak  # of two graphs, while one is used
        memory = enough_for(room)
        operator.release()
        assert not candidate.built


def test_peak_memory_counts_what_lives_at_once():
    def work():
        first = torch.ones(1000, dtype=torch.float64)
        second = first + 1
        del first
        view = second[:10]
        return torch.ones(500, dtype=torch.float64) + view.sum()

    found, peak = peak_bytes(work)
    assert found.shape == (500,)
    assert 16_000 <= peak < 17_000
    with PeakMemory() as spent:
        kept = torch.ones(1000)
        assert spent.alive == 4000
        del kept
        assert spent.alive == 0
    existing = torch.ones(10_000)
    assert peak_bytes(lambda: existing[:5].view(5))[1] == 0
    with pytest.raises(MemoryCapError, match="more than"):
        peak_bytes(work, 10_000)


def test_the_wrong_double_backward_of_torchs_weight_norm_is_caught(batch):
    """On CPUs torch 2.14 differentiates its fused weight norm twice to a matrix that is not symmetric."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)).double()
    operator = fs.hessian(objective(model, batch))

    def loss(vector):
        bias, magnitude, direction, last, last_bias = vector.split((5, 5, 20, 15, 3))
        direction = direction.view(5, 4)
        weight = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
        return F.cross_entropy(F.linear(F.linear(batch[0], weight, bias).tanh(), last.view(3, 5), last_bias), batch[1])

    assert [name.split(".")[-1] for name in operator.names] == ["bias", "original0", "original1", "weight", "bias"]
    expected = torch.autograd.functional.hessian(loss, torch.cat([tensor.detach().flatten() for tensor in model.parameters()]))
    assert relative(operator @ identity(operator), expected) < 1e-6


def test_a_compiled_graph_is_taken_only_where_its_products_are_right(digits_batch, monkeypatch):
    made = objective(smooth_mlp(), digits_batch)
    calls = []

    def compiled(traced, **_):
        calls.append(traced)
        return traced if right else lambda *block: [part + 1 for part in traced(*block)]

    monkeypatch.setattr(torch, "compile", compiled)
    for right in (True, False):
        operator = fs.hessian(made, compile=True)
        choice = operator.prepare(8)
        assert ("compiled" in choice.seconds) == right
        assert ("differ" in choice.refused.get("compiled", "")) != right
    operator.prepare(1)
    assert len(calls) == 3
    plain = fs.hessian(made)
    block = torch.randn(made.size, 3)
    right = True
    operator = fs.hessian(made, compile=True)
    operator._products.selection._makers = lambda program, key, found, **_: iter([lambda: CompiledPath(program, key)])
    assert relative(operator @ block, plain @ block) < 1e-5
    assert operator.choice.name == "compiled"


@pytest.mark.slow
def test_inductor_compiles_the_graph(digits_batch):
    made = objective(smooth_mlp(), digits_batch)
    operator = fs.hessian(made, compile=True)
    choice = operator.prepare(8)
    assert "compiled" in choice.seconds


class Constant(torch.autograd.Function):
    """The square, whose backward keeps its input as a constant: a symmetric matrix, and the wrong one."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = x.detach().clone()
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.kept * gradient


def test_a_backward_with_a_constant_in_it_is_caught_by_a_difference_of_gradients(batch):
    torch.manual_seed(0)
    model = With(Constant.apply).double()
    expected = fs.hessian(objective(_with_same_weights(model, torch.square), batch))
    operator = fs.hessian(objective(model, batch))
    assert relative(operator @ identity(operator), expected @ identity(expected)) < 1e-6
    assert "difference of gradients" in operator.choice.refused["graph"]


class Listed(nn.Module):
    """A layer that reaches its parameters by a list of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.held = [self.layer.weight, self.layer.bias]

    def forward(self, inputs):
        return F.linear(inputs, *self.held).tanh()


@pytest.mark.parametrize("path", ["forward", "replay"])
@pytest.mark.parametrize("make", [fs.hessian, fs.ggn])
def test_paths_that_would_miss_parameters_are_refused(batch, make, path):
    made = objective(Listed().double(), batch)
    assert (make(made) @ torch.ones(made.size)).any()
    with pytest.raises(ValueError, match="outside named_parameters"):
        make(made, method=path) @ torch.ones(made.size)


def test_memory_for_not_even_a_vector_is_refused_at_once(batch):
    with pytest.raises(ValueError, match=r"memory must hold .* got 1; raise memory="):
        fs.hessian(objective(With(torch.tanh).double(), batch), memory=1)


def test_a_small_model_in_long_use_is_offered_what_takes_long_to_set_up(digits_batch, monkeypatch):
    monkeypatch.setattr("fastscape.curvature.products.REPLAY_AFTER", 0.0)
    made = objective(smooth_mlp(), digits_batch)
    operator = fs.hessian(made)
    block = torch.randn(made.size, 4)
    assert "replay" not in operator.prepare(4).seconds
    first = operator @ block
    assert "replay" in operator.prepare(4).seconds
    last = operator @ block
    assert relative(last, first) < 1e-5
