"""Critical sharpness against closed forms and plain loops; errors over samples; nothing of the user's is touched."""

import math

import numpy as np
import pytest
import torch
from quadratics import Weights
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.numerics.student import quantile
from fastscape.probes.critical.search import SURE
from fastscape.reports.html import write_html

DIAGONAL = torch.tensor([1.0, 7.0, 2.0, 0.5], dtype=torch.float64)
POINT = torch.tensor([0.3, -1.0, 0.6, 2.0], dtype=torch.float64)


def bowl(point=POINT, diagonal=DIAGONAL):
    """w'diag(d)w / 2, which has no samples."""
    return fs.Objective(Weights(point), [torch.zeros(1)], loss=lambda model, _: (diagonal * model() ** 2).sum() / 2)


def along(function, start=0.0):
    """A function of one weight; u = 1."""
    point = torch.tensor([start], dtype=torch.float64)
    return fs.Objective(Weights(point), [torch.zeros(1)], loss=lambda model, _: function(model()).sum())


ONE = {"parts.0": torch.ones(1, dtype=torch.float64)}


# ---------------------------------------------------------------------- closed forms


def test_on_the_top_eigenvector_the_gradient_gives_the_largest_eigenvalue():
    found = fs.critical_sharpness(bowl(torch.tensor([0.0, 3.0, 0.0, 0.0], dtype=torch.float64)))
    assert found.outcome == "found"
    for value in (found.lambda_c.value, found.curvature, found.quadratic):
        assert value == pytest.approx(7.0, rel=1e-6)
    assert found.lambda_c.value == pytest.approx(7.0, rel=1e-12)


@pytest.mark.parametrize("guess", [None, 1e-3, 0.5, 40.0])
def test_any_update_of_a_diagonal_quadratic(guess):
    update = torch.tensor([-0.2, 0.9, 0.1, -3.0], dtype=torch.float64)
    found = fs.critical_sharpness(bowl(), update, guess=guess)
    root = float(-2 * (DIAGONAL * POINT) @ update / (DIAGONAL @ update**2))
    assert found.eta_c.value == pytest.approx(root, rel=1e-10)
    low, high = found.bracket
    assert low <= root <= high
    assert high - low <= 0.1 * (high + low)
    assert found.lambda_c.value == pytest.approx(2 / root, rel=1e-10)
    assert found.curvature == pytest.approx(float(DIAGONAL @ update**2 / update.square().sum()), rel=1e-5)
    assert found.slope == pytest.approx(float((DIAGONAL * POINT) @ update), rel=1e-5)
    assert found.quadratic == pytest.approx(found.lambda_c.value, rel=1e-5)


@pytest.mark.parametrize("exponent", [-400, -100, 100, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_length_of_the_update_is_a_unit(exponent, dtype):
    """Also where float32 does not hold it: a power of two moves no bit."""
    plain = fs.critical_sharpness(bowl(POINT.to(dtype), DIAGONAL.to(dtype)), -POINT, guess=0.3, curvature=False)
    unit = 2.0**exponent
    found = fs.critical_sharpness(
        bowl(POINT.to(dtype), DIAGONAL.to(dtype)), -POINT * unit, guess=0.3 / unit, curvature=False, tolerance=np.float32(0.1)
    )
    assert found.eta_c.value == plain.eta_c.value / unit
    np.testing.assert_array_equal(found.differences, plain.differences)


def test_a_guess_beyond_all_numbers_comes_back():
    found = fs.critical_sharpness(bowl(POINT.float(), DIAGONAL.float()), -POINT, guess=1e308, curvature=False)
    assert found.eta_c.value == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize(
    ("function", "root"),
    [(lambda x: x**3 - 3 * x, math.sqrt(3)), (lambda x: x**4 - 8 * x, 2.0), (lambda x: torch.exp(x) - 1 - 2 * x, 1.2564312086)],
)
@pytest.mark.parametrize("tolerance", [0.1, 1e-3])
def test_roots_of_other_functions_lie_in_the_bracket(function, root, tolerance):
    found = fs.critical_sharpness(along(function), ONE, tolerance=tolerance, curvature=False)
    low, high = found.bracket
    assert low <= root <= high
    assert high - low <= tolerance * (high + low)
    assert found.eta_c.value == pytest.approx(root, rel=tolerance / 2)  # interpolated
    assert math.isnan(found.curvature)


def test_a_loss_that_never_rises():
    found = fs.critical_sharpness(along(lambda x: torch.exp(-x), 1.0), ONE)
    assert found.outcome == "never rises"
    assert found.bracket[0] >= 100  # times ||w||
    assert found.bracket[1] == math.inf
    assert math.isnan(found.eta_c.value)
    assert math.isnan(found.lambda_c.value)
    assert "none up to eta = " in found.verdict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_that_rises_at_once(dtype):
    """No step lowers it, and rounding is no descent."""
    point = torch.tensor([0.3, -1.0, 0.6], dtype=dtype)
    objective = fs.Objective(Weights(point), [torch.zeros(1)], loss=lambda model, _: (model() ** 2).sum())
    found = fs.critical_sharpness(objective, point.clone())
    assert found.outcome == "rises at once"
    assert math.isnan(found.eta_c.value)
    assert 0 < found.bracket[1] < 100 * torch.finfo(dtype).eps  # the loss is known to 8 roundings, the step tried next is 8 times
    assert found.bracket[0] == 0
    assert "below the smallest step that can be resolved" in found.verdict()
    assert found.slope > 0
    assert any("precision='float64' resolves" in flag for flag in found.flags) == (dtype == torch.float32)


def test_what_half_precision_cannot_resolve_is_said_and_found_in_a_wider_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)).to(torch.bfloat16)
    inputs, targets = zoo.digits(samples=64)[0]
    objective = fs.Objective(model, [(inputs.to(torch.bfloat16), targets)], criterion=F.cross_entropy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)  # whose step is no rounding of a bfloat16 weight
    narrow, wide, exact = (
        fs.critical_sharpness(objective, optimizer=optimizer, precision=precision, curvature=False)
        for precision in (None, "float32", "float64")
    )
    assert (wide.outcome, exact.outcome) == ("found", "found")
    assert wide.eta_c.value == pytest.approx(exact.eta_c.value, rel=0.05)
    assert narrow.noise > 1e3 * wide.noise
    unresolved = np.abs(narrow.differences) <= narrow.noise
    assert unresolved.any()
    assert not narrow.decided[unresolved].any()


def test_a_nan_beyond_a_step_is_a_rise():
    found = fs.critical_sharpness(along(lambda x: -torch.sqrt(2.0 - x) * 0 - x + 0 * torch.log(2.0 - x)), ONE, curvature=False)
    assert found.bracket[0] < 2 <= found.bracket[1]
    assert any("NaN or infinite loss" in note for note in found.notes)


def test_a_loss_of_minus_infinity_is_a_fall():
    found = fs.critical_sharpness(
        along(lambda x: torch.where((x > 1) & (x < 4.5), torch.log(x * 0), x**2 - 4 * x)), ONE, guess=3.0, curvature=False
    )
    assert found.outcome == "found"
    low, high = found.bracket
    assert low <= 4.5 <= high
    assert found.eta_c.value == (low + high) / 2  # no line goes through minus infinity
    assert any(note.endswith("with a loss of minus infinity, taken as a fall") for note in found.notes)
    assert not any("taken as a rise" in note for note in found.notes)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("update", [None, ONE])
def test_a_loss_that_is_not_finite_gives_a_result_that_says_so(value, update):
    found = fs.critical_sharpness(along(lambda x: x * value + value, 1.0), update)
    assert found.outcome == "undefined"
    assert not math.isfinite(found.loss)
    assert "the loss at w is" in found.verdict()
    str(found)


# ---------------------------------------------------------------------- forwards


@pytest.fixture
def counted(tanh_net, digits):
    """An objective, and the forwards of its model and its copies so far."""

    class Counting(nn.Module):
        forwards = 0

        def __init__(self):
            super().__init__()
            self.net = tanh_net

        def forward(self, x):
            Counting.forwards += 1
            return self.net(x)

    return fs.Objective(Counting(), digits, criterion=F.cross_entropy), Counting


@pytest.mark.parametrize("off", [0.55, 0.8, 1.0, 1.3, 1.9])
def test_from_the_last_eta_six_forwards_are_enough(counted, off):
    objective, counting = counted
    update = {name: -part for name, part in objective.gradient().items()}
    first = fs.critical_sharpness(objective, update, curvature=False)
    before = counting.forwards
    found = fs.critical_sharpness(objective, update, guess=off * first.eta_c.value, curvature=False)
    assert counting.forwards - before == found.meta["steps"] <= 6
    assert found.outcome == "found"
    low, high = found.bracket
    assert high - low <= 0.1 * (high + low)
    assert found.eta_c.value == pytest.approx(first.eta_c.value, rel=0.05)


# ---------------------------------------------------------------------- samples


class Lines(nn.Module):
    """One weight; a sample (a, b) has the loss a w + b w^2 / 2."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return x[:, 0] * self.w + x[:, 1] * self.w**2 / 2


def identity(outputs, _targets, reduction="mean"):
    return outputs if reduction == "none" else outputs.mean()


def sampled(slopes, curvatures, **options):
    x = torch.stack([torch.as_tensor(slopes), torch.as_tensor(curvatures)], 1).double()
    data = [(x, torch.zeros(len(x)))]
    return fs.Objective(Lines(), data, criterion=identity, **options)


def test_standard_errors_are_of_paired_samples():
    generator = np.random.default_rng(0)
    slopes, curvatures = generator.normal(-1, 0.5, 40), generator.normal(1, 0.3, 40)
    found = fs.critical_sharpness(sampled(slopes, curvatures), {"w": torch.ones(1)}, curvature=False)
    eta, root = found.steps[:, None], -2 * slopes.mean() / curvatures.mean()
    paired = slopes * eta + curvatures * eta**2 / 2
    np.testing.assert_allclose(found.differences, paired.mean(1), rtol=1e-9)
    np.testing.assert_allclose(found.stderr, paired.std(1, ddof=1) / math.sqrt(40), rtol=1e-9)
    np.testing.assert_array_equal(found.decided, np.abs(found.differences) > SURE * found.stderr)
    assert found.eta_c.value == pytest.approx(root, rel=1e-9)
    at_root = (slopes * root + curvatures * root**2 / 2).std(ddof=1) / math.sqrt(40)
    assert found.eta_c.stderr == pytest.approx(at_root / (root * curvatures.mean() / 2), rel=0.05)
    assert found.eta_c.n == 40


def test_intervals_over_samples_hold_the_root_of_the_population():
    """200 sets of 30 samples of slope -1 and curvature 1, whose common root is 2."""
    generator, held = np.random.default_rng(1), 0
    for _ in range(200):
        slopes, curvatures = generator.normal(-1, 0.6, 30), generator.normal(1, 0.4, 30)
        found = fs.critical_sharpness(sampled(slopes, curvatures), {"w": torch.ones(1)}, guess=1.5, curvature=False)
        low, high = found.eta_c.interval
        held += low <= 2 <= high
        assert found.lambda_c.interval == pytest.approx((2 / high, 2 / low))
    assert 0.9 <= held / 200 <= 0.99  # of 95 %, four standard errors below


@pytest.mark.parametrize("batches", [1, 2])
def test_batches_that_contradict_each_other_are_undecided(batches):
    """One falls along the update as fast as the other rises, up to a share of the standard error."""
    slopes, curvatures = [-1.0, 0.98] * 4, [0.02] * 8
    objective = sampled(slopes, curvatures)
    if batches == 2:
        x = objective.batches[0][0]
        data = [(x[half::2], torch.zeros(4)) for half in (0, 1)]
        objective = fs.Objective(Lines(), data, loss=lambda model, batch: model(batch[0]).mean(), weight=lambda _: 1)
    found = fs.critical_sharpness(objective, {"w": torch.ones(1)}, curvature=False)
    assert found.outcome == "undecided"
    assert not found.decided.any()
    assert (np.abs(found.differences) < found.stderr).all()
    assert found.verdict().startswith("Undecided")
    assert any("beyond two standard errors" in flag for flag in found.flags)
    assert found.meta["errors_over"] == ("samples" if batches == 1 else "batches")
    assert found.lambda_c.interval[1] == math.inf


def test_a_slope_within_its_error_ends_the_halving():
    slopes = [1.1, -1.0] * 4  # rises, but not so that it means anything
    found = fs.critical_sharpness(sampled(slopes, [0.0] * 8), {"w": torch.ones(1)}, curvature=False)
    assert found.outcome == "undecided"
    assert len(found.steps) <= 8


def test_the_quantile_is_students():
    found = fs.critical_sharpness(sampled([-1.0, -1.2, -0.9], [1.0, 1.1, 0.9]), {"w": torch.ones(1)}, curvature=False)
    low, high = found.eta_c.interval
    assert (high - low) / 2 == pytest.approx(quantile(3) * found.eta_c.stderr)


# ---------------------------------------------------------------------- relative to another objective


def test_following_another_objective_is_a_plain_loop(tanh_net, digits):
    model = tanh_net.double()
    images, targets = digits[0][0].double(), digits[0][1]
    one = fs.Objective(model, [(images[:64], targets[:64])], criterion=F.cross_entropy)
    other = fs.Objective(model, [(images[64:96], targets[64:96])], criterion=F.cross_entropy)
    found = fs.critical_sharpness(one, relative_to=other, tolerance=0.02, curvature=False)

    parameters = list(model.parameters())
    start = [tensor.detach().clone() for tensor in parameters]
    steps = torch.autograd.grad(F.cross_entropy(model(images[64:96]), targets[64:96]), parameters)

    def difference(eta):
        moved = {name: w - eta * g for (name, _), w, g in zip(model.named_parameters(), start, steps, strict=True)}
        with torch.no_grad():
            after = F.cross_entropy(torch.func.functional_call(model, moved, (images[:64],)), targets[:64])
            return float(after - F.cross_entropy(model(images[:64]), targets[:64]))

    np.testing.assert_allclose(found.differences, [difference(eta) for eta in found.steps], atol=1e-13)
    low, high = found.bracket
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if difference(middle) > 0 else (middle, high)
    assert found.bracket[0] <= low <= found.bracket[1]
    assert found.eta_c.value == pytest.approx(low, rel=1e-3)
    assert found.update == "negative gradient of the other objective"
    own = fs.critical_sharpness(one, curvature=False)
    assert own.eta_c.value != pytest.approx(low, rel=0.05)


# ---------------------------------------------------------------------- updates


def test_ways_to_give_one_update_are_the_same(tanh_objective, tanh_net):
    before = {name: tensor.clone() for name, tensor in tanh_net.state_dict().items()}
    steps = {name: -part.double() for name, part in tanh_objective.gradient().items()}
    after = {name: before[name].double() + steps[name] for name in before}
    flat = torch.cat([part.flatten() for part in steps.values()])
    expected = fs.critical_sharpness(tanh_objective, steps, curvature=False)
    for update in (flat, {name: part.float() for name, part in steps.items()}):
        assert fs.critical_sharpness(tanh_objective, update, curvature=False).eta_c == expected.eta_c
    wide = fs.Objective(tanh_net, tanh_objective.batches, criterion=F.cross_entropy, dtype=torch.float64)
    pair = fs.critical_sharpness(wide, ({name: t.double() for name, t in before.items()}, after), curvature=False)
    assert pair.eta_c.value == pytest.approx(expected.eta_c.value, rel=1e-4)
    plain = fs.critical_sharpness(tanh_objective, guess=1.0, curvature=False)
    assert plain.eta_c == expected.eta_c
    sgd = fs.critical_sharpness(tanh_objective, optimizer=torch.optim.SGD(tanh_net.parameters(), lr=0.5), curvature=False)
    assert sgd.eta_c.value == pytest.approx(expected.eta_c.value, rel=0.01)  # from another guess
    assert sgd.critical == 4.0
    assert (sgd.rate, sgd.update) == (0.5, "step of SGD")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"update": {"nothing": torch.ones(1)}}, "update names 'nothing', which is not a probed parameter"),
        ({"update": {"parts.0": torch.ones(3)}}, r"update\['parts.0'\] must be a real tensor of shape \[4\], got shape \[3\]"),
        ({"update": {"parts.0": 1.0}}, r"update\['parts.0'\] must be a real tensor of shape \[4\], got 1.0"),
        ({"update": torch.ones(5)}, r"update must have shape \[D = 4\], got \[5\]"),
        ({"update": torch.zeros(4)}, "update must not be zero"),
        ({"update": torch.full((4,), math.nan)}, "update must be finite, got NaN or inf"),
        ({"update": ({}, {})}, r"update\[0\]: state must match"),
        ({"update": 3.0}, "update must map parameter names to tensors, or be .* got 3.0"),
        ({"update": torch.ones(4), "optimizer": torch.optim.SGD([torch.ones(1)])}, "pass either update= or optimizer="),
        ({"update": torch.ones(4), "relative_to": bowl()}, "relative_to must come without update="),
        ({"relative_to": along(lambda x: x)}, "relative_to must be an objective of the same parameters"),
        ({"relative_to": bowl(2 * POINT)}, "relative_to must be an objective at the same weights"),
        ({"relative_to": 3}, "relative_to: objective must be a fastscape.Objective, got int"),
        ({"update": torch.ones(4, device="meta")}, r"must be a real tensor of shape \[4\], got shape \[4\], .* on meta"),
        ({"guess": 0.0}, "guess must be positive and finite, got 0.0"),
        ({"tolerance": 1.0}, "tolerance must lie between 0 and 1, got 1.0"),
        ({"curvature": 1}, "curvature must be True or False, got 1"),
        ({"precision": "float16"}, "precision must be 'float64', 'float32' or None"),
        ({"optimizer": 3}, "optimizer must be a torch.optim.Optimizer"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        fs.critical_sharpness(bowl(), **options)


def test_a_stationary_point_has_no_gradient_to_follow():
    with pytest.raises(ValueError, match="the gradient must not be zero"):
        fs.critical_sharpness(bowl(torch.zeros(4, dtype=torch.float64)))


# ---------------------------------------------------------------------- state, and what ends it


def test_the_user_sees_no_trace(untouched, bn_net, bn_objective):
    optimizer = torch.optim.Adam(bn_net.parameters(), lr=1e-2)
    for parameter in bn_net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = {key: {k: v.clone() for k, v in each.items()} for key, each in optimizer.state_dict()["state"].items()}
    with untouched(bn_net):
        found = fs.critical_sharpness(bn_objective, optimizer=optimizer)
    assert found.outcome == "found"
    assert found.meta["batch_norm"] == "batch"  # as it is trained
    for key, each in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, state[key][name]) for name, value in each.items())


def failing(after, error):
    calls = []

    def loss(model, batch):
        calls.append(1)
        if len(calls) > after:
            raise error
        return F.cross_entropy(model(batch[0]), batch[1])

    return loss


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ArithmeticError("broken")])
def test_what_ends_a_search_leaves_the_steps_before(error, untouched, tanh_net, digits):
    update = {name: torch.ones_like(part) for name, part in tanh_net.named_parameters()}
    whole = fs.Objective(tanh_net, digits, loss=failing(math.inf, error))
    expected = fs.critical_sharpness(whole, update, guess=1e-6, curvature=False)
    taken = int(expected.meta["evaluations"]) + 4  # and what the examination of a new objective takes
    objective = fs.Objective(tanh_net, digits, loss=failing(taken - 3, error))
    with untouched(tanh_net):
        if isinstance(error, KeyboardInterrupt):
            found = fs.critical_sharpness(objective, update, guess=1e-6, curvature=False)
            assert found.meta["stop_reason"] == "interrupted"
        else:
            with pytest.raises(fs.PartialResultError, match="failed after .* ArithmeticError: broken") as caught:
                fs.critical_sharpness(objective, update, guess=1e-6, curvature=False)
            found = caught.value.partial
    assert found.outcome == "unfinished"
    assert 0 < len(found.steps) < len(expected.steps)
    np.testing.assert_array_equal(found.differences, expected.differences[: len(found.steps)])
    str(found)


def test_a_random_loss_is_refused(digits):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    objective = fs.Objective(net, digits, loss=lambda model, batch: F.cross_entropy(F.dropout(model(batch[0]), 0.5), batch[1]))
    with pytest.raises(fs.NondeterministicLossError):
        fs.critical_sharpness(objective)


def test_progress_is_told_after_every_step():
    states = []
    found = fs.critical_sharpness(bowl(), progress=states.append, curvature=False)
    assert [state.done for state in states] == list(range(1, len(found.steps) + 1))
    assert all(state.unit == "step" and 0 < state.fraction <= 1 for state in states)


# ---------------------------------------------------------------------- the result


def test_the_result_is_saved_read_back_printed_and_shown(tanh_objective, tanh_net, tmp_path):
    import matplotlib as mpl

    mpl.use("agg")
    optimizer = torch.optim.SGD(tanh_net.parameters(), lr=0.5)
    found = fs.critical_sharpness(tanh_objective, optimizer=optimizer, name="net", step=7)
    again = fs.load(found.save(tmp_path / "critical"))
    assert isinstance(again, fs.CriticalSharpnessResult)
    assert (again.eta_c, again.bracket, again.step) == (found.eta_c, found.bracket, 7)
    np.testing.assert_array_equal(again.differences, found.differences)
    for words in ("eta_c", "lambda_c", "bracket", "2 / rate", "u'Hu / u'u", "forwards", "step of SGD"):
        assert words in str(found)
    page = write_html(found, tmp_path / "page.html").read_text()
    assert page.count("<svg") == 1
    assert "the dashed line the learning rate" in page
    ax = found.plot()
    assert len(ax.containers) == 2  # decided and undecided
    share = 0.5 / found.eta_c.value
    assert f"the optimizer's step {'raises' if share > 1 else 'lowers'} the loss" in found.verdict()


def test_numbers_are_the_same_again(tanh_objective):
    first, second = (fs.critical_sharpness(tanh_objective) for _ in range(2))
    assert (first.eta_c, first.curvature) == (second.eta_c, second.curvature)
