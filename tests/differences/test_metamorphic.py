"""Laws that lanes obey whatever the network: scaling, reflection, independence, symmetries; and truth at 60 digits."""

import mpmath
import numpy as np
import pytest
import torch
from differences.architectures import ARCHITECTURES, Forward, lin, vectors
from differences.harness import problem, relative
from torch import nn
from torch.nn import functional as F

NAMES = (
    "vision_transformer",
    "small_resnet",
    "rotary_decoder",
    "lstm",
    "batch_norm_batch",
    "mixture_dense",
    "kinked_activations",
)
F64 = torch.float64


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    model, data, options = ARCHITECTURES[request.param]()
    return problem(model, data, count=3, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_four_times_the_direction_at_a_quarter_of_the_radius_is_the_same_to_the_bit(case, dtype):
    first, second, _ = case.lanes((2.0**-7, 2.0**-20), dtype)
    wide_first, wide_second, _ = case.lanes((2.0**-9, 2.0**-22), dtype, scale=4.0)
    assert torch.equal(wide_first, 4 * first)
    assert torch.equal(wide_second, 16 * second)


def test_the_opposite_direction_turns_the_first_difference_and_keeps_the_second(case):
    first, second, _ = case.lanes((0.0, 1e-2))
    turned_first, turned_second, _ = case.lanes((0.0, 1e-2), scale=-1.0)
    assert relative(turned_first, -first) < 1e-11
    assert relative(turned_second, second) < 1e-11


def test_lanes_do_not_see_each_other(case):
    first, second, _ = case.lanes((0.0, 1e-6, 1e-2))
    every = case.directions
    for k in range(case.count):
        case.directions = {name: tensor[k : k + 1] for name, tensor in every.items()}
        for s, radius in enumerate((0.0, 1e-6, 1e-2)):
            one_first, one_second, _ = case.lanes((radius,))
            assert relative(one_first[0], first[k, s : s + 1]) < 1e-9
            assert relative(one_second[0], second[k, s : s + 1]) < 1e-9
    case.directions = every


def test_differences_tend_to_derivatives(case):
    first, second, _ = case.lanes((0.0, 1e-9))
    assert relative(first[:, 1], first[:, 0]) < 1e-6
    assert relative(second[:, 1], second[:, 0]) < 1e-6


def test_float32_lanes_are_as_good_at_every_radius(case):
    radii = (0.0, 1e-8, 1e-5, 1e-3, 1e-1)
    first, second, _ = case.lanes(radii)
    narrow_first, narrow_second, _ = case.lanes(radii, torch.float32)
    assert relative(narrow_first, first) < 1e-5
    for j in range(len(radii)):
        assert relative(narrow_second[:, j], second[:, j]) < 2e-5


def test_a_linear_model_with_square_loss_is_scale_free():
    torch.manual_seed(0)
    data = [(torch.randn(7, 5, dtype=F64), torch.randn(7, 3, dtype=F64))]
    case = problem(nn.Linear(5, 3).double(), data, criterion=F.mse_loss)
    radii = (1e-30, 1e-8, 1e-2, 1.0, 1e3)
    weight, bias = (case.directions[f"parameter:model.{name}"] for name in ("weight", "bias"))
    exact = torch.stack([2 * (F.linear(data[0][0], weight[k], bias[k]) ** 2).mean() for k in range(3)])
    torch.testing.assert_close(case.lanes(radii)[1], exact[:, None].expand(3, 5), rtol=1e-13, atol=0)


def test_a_common_shift_of_the_logits_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))
    moved = {name: torch.zeros(1, *tensor.shape, dtype=F64) for name, tensor in model.named_parameters()}
    moved["2.bias"] += 1.0
    case = problem(model, [(torch.randn(6, 5), torch.randint(0, 4, (6,)))], directions=moved)
    first, second, _ = case.lanes((0.0, 1e-6, 1e-1, 1.0))
    assert first.abs().max() < 1e-15
    assert second.abs().max() < 1e-15


@pytest.mark.parametrize("radius", [1e-3, 0.5, 0.9])
def test_scaling_a_relu_layer_scales_the_logits(radius):
    """d = w of a layer without bias: the loss is a known function of e, whatever the kinks."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 9, bias=False), nn.ReLU(), nn.Linear(9, 4, bias=False)).double()
    x, target = torch.randn(6, 5, dtype=F64), torch.randint(0, 4, (6,))
    moved = {"0.weight": model[0].weight.detach()[None].clone(), "2.weight": torch.zeros(1, 4, 9, dtype=F64)}
    case = problem(model, [(x, target)], directions=moved)
    with torch.no_grad():
        logits = model(x)
        losses = [F.cross_entropy((1 + sign * radius) * logits, target) for sign in (-1, 0, 1)]
    exact = (losses[0] - 2 * losses[1] + losses[2]) / radius**2
    assert abs(case.lanes((radius,))[1].item() - exact) < 1e-14 / radius**2 + 1e-12


def test_the_first_and_the_second_difference_of_a_sum_of_models_add():
    torch.manual_seed(0)
    both = Forward(lambda s, x: s.l(x).tanh() + s.k(x).sigmoid(), l=lin(8, 3), k=lin(8, 3))
    data = [(vectors()[0][0], torch.zeros(6, 3))]
    case = problem(both, data, criterion=lambda o, t: o.mean() + 0 * t.sum())
    parts = []
    for name in ("l", "k"):
        moved = {n: case.directions[f"parameter:model.{n}"] * float(n.startswith(name)) for n, _ in both.named_parameters()}
        parts.append(problem(both, data, criterion=lambda o, t: o.mean() + 0 * t.sum(), directions=moved).lanes((0.0, 0.3)))
    first, second, _ = case.lanes((0.0, 0.3))
    assert relative(parts[0][0] + parts[1][0], first) < 1e-13
    assert relative(parts[0][1] + parts[1][1], second) < 1e-12


# ---------------------------------------------------------------- truth at 60 digits
def each(function):
    return np.vectorize(function, otypes=[object])


EXP, LOG, ROOT = each(mpmath.exp), each(mpmath.log), each(mpmath.sqrt)
ACTIVATIONS = {
    "tanh": each(mpmath.tanh),
    "gelu": each(lambda v: v * mpmath.ncdf(v)),
    "relu": each(lambda v: v if v > 0 else mpmath.mpf(0)),
}


def exact(tensor):
    return each(lambda v: mpmath.mpf(float(v)))(tensor.detach().double().numpy())


def cross_entropy(logits, targets):
    return (LOG(EXP(logits).sum(-1)) - logits[np.arange(len(targets)), targets]).sum() / len(targets)


def perceptron(kind):
    def loss(w, x, targets):
        hidden = ACTIVATIONS[kind](exact(x) @ w["0.weight"].T + w["0.bias"])
        return cross_entropy(hidden @ w["2.weight"].T + w["2.bias"], targets.numpy())

    torch.manual_seed(3)
    layer = {"tanh": nn.Tanh, "gelu": nn.GELU, "relu": nn.ReLU}[kind]()
    return nn.Sequential(nn.Linear(5, 8), layer, nn.Linear(8, 4)), [(torch.randn(3, 5), torch.randint(0, 4, (3,)))], loss


class Block(nn.Module):
    """A transformer of one block with two heads."""

    def __init__(self, words=7, width=4):
        super().__init__()
        self.e, self.n, self.m = nn.Embedding(words, width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.out = nn.Linear(width, 8), nn.Linear(8, width), nn.Linear(width, words)

    def forward(self, tokens):
        x = self.e(tokens)
        count, length, width = x.shape
        q, k, v = self.qkv(self.n(x)).view(count, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(count, length, width))
        return self.out(x + self.down(F.gelu(self.up(self.m(x))))).transpose(1, 2)


def norm(x, weight, bias):
    centred = x - x.sum(-1, keepdims=True) / x.shape[-1]
    variance = (centred**2).sum(-1, keepdims=True) / x.shape[-1]
    return centred / ROOT(variance + mpmath.mpf(1e-5)) * weight + bias


def affine(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def transformer():
    def loss(w, tokens, targets):
        total = mpmath.mpf(0)
        for sentence, target in zip(tokens.numpy(), targets.numpy(), strict=True):
            x = w["e.weight"][sentence]
            width, heads = x.shape[-1], []
            qkv = affine(w, "qkv", norm(x, w["n.weight"], w["n.bias"]))
            for head in range(2):
                q, k, v = (qkv[:, part * width + 2 * head : part * width + 2 * head + 2] for part in range(3))
                scores = EXP(q @ k.T / mpmath.sqrt(2)) * np.tril(np.ones((len(x), len(x)), dtype=int))
                heads.append(scores @ v / scores.sum(-1, keepdims=True))
            x = x + affine(w, "o", np.concatenate(heads, 1))
            x = x + affine(w, "down", ACTIVATIONS["gelu"](affine(w, "up", norm(x, w["m.weight"], w["m.bias"]))))
            total += cross_entropy(affine(w, "out", x), target)
        return total / len(tokens)

    torch.manual_seed(3)
    return Block(), [(torch.randint(0, 7, (2, 3)), torch.randint(0, 7, (2, 3)))], loss


@pytest.mark.parametrize("name", ["tanh", "gelu", "relu", "transformer"])
def test_lanes_are_the_truth_at_sixty_digits(name):
    model, data, loss = transformer() if name == "transformer" else perceptron(name)
    case = problem(model, data, count=1)
    radii = (1e-10, 1e-6, 1e-2, 1.0)
    found = {dtype: case.lanes(radii, dtype)[:2] for dtype in (F64, torch.float32)}
    with mpmath.workdps(60):
        w = {key: exact(tensor) for key, tensor in model.named_parameters()}
        d = {key: exact(case.directions[f"parameter:model.{key}"][0]) for key in w}
        here = loss(w, *data[0])
        for s, radius in enumerate(radii):
            step = mpmath.mpf(radius)
            up, down = (loss({key: w[key] + sign * step * d[key] for key in w}, *data[0]) for sign in (1, -1))
            truth = (up - down) / (2 * step), (up - 2 * here + down) / step**2
            conditions = case.conditions(radius)  # up to 2e3 for the curvature of "gelu", which nearly cancels
            for dtype, lanes in found.items():
                for lane, value, condition in zip(lanes, truth, conditions, strict=True):
                    assert abs(lane[0, s].item() - value) <= condition * torch.finfo(dtype).eps * abs(value)
