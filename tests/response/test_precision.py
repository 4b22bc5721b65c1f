"""Which arithmetic is chosen, what is said about it, and whether its stated noise covers its error."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.differences.propagation import MissingRuleError
from fastscape.evaluation.evaluator import Evaluator
from fastscape.response import precision as choosing
from fastscape.response.precision import choose_precision, measure_noise

LARGE, SMALL, WIDE = np.array([0.3, 1.0, 3.0]), np.array([1e-9, 1e-8, 1e-7]), np.array([1e-7, 1e-4, 1e-1])


@pytest.fixture
def case():
    torch.manual_seed(0)
    x, y = zoo.digits(samples=64)[0]
    return fs.Objective(zoo.mlp(hidden=(16,), activation="tanh"), [(x, y)], criterion=F.cross_entropy)


def unit(objective, count=4):
    return fs.Directions(objective, count, scale="unit")


@pytest.fixture
def seconds(monkeypatch):
    """Set what a response takes in each arithmetic: ``seconds["float32"] = 1e-3``."""
    taken = {"float64": 1.0, "float32": 1.0, "difference": 1.0}

    def timed(self, evaluator, count):
        evaluator.responses(self.directions, range(count), self.radii)
        if isinstance(evaluator, DifferenceEvaluator):
            return taken["difference"]
        return taken["float64" if evaluator.dtype == torch.float64 else "float32"]

    monkeypatch.setattr(choosing._Arithmetics, "_timed", timed)
    return taken


@pytest.mark.parametrize("quickest", ["float64", "float32", "difference"])
def test_the_quickest_of_those_that_resolve_the_radii_is_chosen(case, seconds, quickest):
    seconds[quickest] = 0.25
    chosen = choose_precision(case, unit(case), LARGE)
    assert chosen.name == quickest
    assert chosen.seconds == seconds
    for other in set(seconds) - {quickest}:
        assert f"{other} is 4.0x slower" in chosen.reason
    found = fs.responses(case, unit(case), LARGE)
    assert found.precision == quickest
    assert found.trusted.all()


def test_float32_is_chosen_at_large_radii_only(case, seconds):
    seconds["float32"] = 0.01
    assert choose_precision(case, unit(case), LARGE).name == "float32"
    chosen = choose_precision(case, unit(case), WIDE)
    assert chosen.name in ("float64", "difference")
    assert "float32: rounding noise at radii up to" in chosen.reason


def test_small_radii_leave_difference_propagation_alone_however_slow(case, seconds):
    seconds["difference"] = 100.0
    chosen = choose_precision(case, unit(case), SMALL)
    assert chosen.name == "difference"
    assert "float32: rounding noise at radii up to" in chosen.reason
    assert "float64: rounding noise at radii up to" in chosen.reason
    found = fs.responses(case, unit(case), SMALL)
    assert found.trusted.all()
    assert found.reason == chosen.reason


def test_noise_makes_an_arithmetic_refused(case, seconds, monkeypatch):
    seconds["difference"] = 0.01
    measured = choosing.measure_noise

    def noisy(evaluator, directions, radii):
        noise = measured(evaluator, directions, radii)
        return choosing.Noise(1e3 * noise.sigma + 1e3, noise.calibrated, noise.narrow, noise.evaluations)

    monkeypatch.setattr(choosing, "measure_noise", noisy)
    chosen = choose_precision(case, unit(case), LARGE)
    assert chosen.name != "difference"
    assert "difference: its error is above a tenth of the responses" in chosen.reason


def test_where_nothing_resolves_the_radii_float64_says_so(case, seconds, monkeypatch):
    def refuse(self):
        raise MissingRuleError("operation x in module y")

    monkeypatch.setattr(choosing._Arithmetics, "_difference", refuse)
    chosen = choose_precision(case, unit(case), SMALL)
    assert chosen.name == "float64"
    for words in (
        "difference: operation x in module y",
        "float32: rounding noise",
        "float64: rounding noise at radii up to",
    ):
        assert words in chosen.reason
    assert not fs.responses(case, unit(case), SMALL).trusted.all()


@torch.library.custom_op("fastscape_precision_tests::bend", mutates_args=())
def bend(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


@bend.register_fake
def _(x):
    return torch.empty_like(x)


class Inner(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def with_inside(function):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Inner(function), nn.Linear(8, 10))
    return fs.Objective(model, zoo.digits(samples=32), criterion=F.cross_entropy)


def written(z):
    z = z.clone()
    z[:, :4].mul_(2.0)
    return z if len(torch.nonzero(z.sum() > -1e9)) else -z  # a shape that depends on the weights: no graph


def handed(z):
    if len(torch.nonzero(z.sum() > -1e9)) == 0:
        return -z
    return z * float(np.asarray(z.detach().numpy()).dtype.itemsize > 1)  # dispatch has no NumPy arrays


UNSUPPORTED = {
    "vmap": (lambda z: torch.func.vmap(torch.tanh)(z), "must not use torch.func transforms"),
    "written": (written, "^operation mul_ writes in place"),
    "handed": (handed, "must run on tensors that carry lanes .*numpy"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_followed_is_answered_in_float64_with_the_reason(name):
    function, words = UNSUPPORTED[name]
    case = with_inside(function)
    directions = fs.Directions(case, 2)
    found = fs.responses(case, directions, WIDE)
    assert found.precision == "float64"
    assert "difference: " in found.reason
    assert found.path.name in ("loop", "vmap")
    truth = fs.responses(case, directions, WIDE, precision="float64", method="loop")
    np.testing.assert_allclose(found.even, truth.even, rtol=0, atol=10 * truth.noise[0])
    with pytest.raises((fs.UntraceableError, fs.MissingRuleError), match=words):
        fs.responses(case, directions, WIDE, precision="difference")


def test_a_forced_mode_names_module_and_operation():
    case = with_inside(lambda z: bend(z))
    directions = fs.Directions(case, 2)
    for work in (
        lambda: fs.responses(case, directions, WIDE, precision="difference", method="graph"),
        lambda: fs.quadratic_forms(case, directions, method="graph"),
        lambda: fs.operators(case, method="graph"),
    ):
        with pytest.raises(fs.UntraceableError, match=r"fastscape_precision_tests::bend in module model\.2 \(Inner\)"):
            work()


def test_a_custom_operation_is_evaluated_locally_by_dispatch_and_named():
    case, plain = with_inside(lambda z: bend(z)), with_inside(torch.sin)
    directions = fs.Directions(case, 3)
    found, truth = (fs.responses(o, directions, WIDE, precision="difference") for o in (case, plain))
    np.testing.assert_allclose(found.even, truth.even, rtol=1e-5)
    assert set(found.fallbacks) == {"fastscape_precision_tests.bend.default"}
    forms, exact = (fs.quadratic_forms(o, directions) for o in (case, plain))
    np.testing.assert_allclose(forms.curvature, exact.curvature, rtol=1e-5)
    table = fs.operators(case)
    assert table.fallbacks == ("fastscape_precision_tests.bend.default",)
    assert table.front_end == "dispatch"
    assert len(table.rows) > 4
    assert "only what moves is listed" in str(table)


@pytest.mark.parametrize(
    ("path", "precision"), [("loop", "float64"), ("vmap", "float64"), ("graph", "difference"), ("dispatch", "difference")]
)
def test_a_path_restricts_the_choice(case, seconds, path, precision):
    seconds["float32"] = 0.01
    found = fs.responses(case, unit(case), LARGE, method=path)
    assert (found.precision, found.path.name) == (precision, path)
    assert found.reason == f"method={path!r} was asked for"


def test_decisions_that_depend_on_the_weights_refuse_the_mode(seconds):
    """The branch is the same at every radius, so that responses agree; whether it would be, nobody knows beforehand."""
    seconds["difference"] = 0.01
    case = with_inside(lambda z: z * 2 if z.abs().sum() > 0 and float(z.detach().max()) > -9e9 else -z)
    directions = fs.Directions(case, 3)
    chosen = choose_precision(case, directions, WIDE)
    assert chosen.name == "float64"
    assert "difference: decisions that depend on the weights: aten.item.default" in chosen.reason
    forced = fs.responses(case, directions, WIDE, precision="difference")
    assert forced.frozen
    assert not forced.trusted.any()
    truth = fs.responses(case, directions, WIDE, precision="float64", method="loop")
    np.testing.assert_allclose(forced.even[-1], truth.even[-1], rtol=1e-5)


def test_a_short_budget_tries_nothing_but_float64(case):
    chosen = choose_precision(case, unit(case), WIDE, trial=1e-9)
    assert chosen.name == "float64"
    assert "the budget is too short to try others" in chosen.reason
    assert set(chosen.seconds) == {"float64"}


def test_the_trial_measures_what_it_says(case, monkeypatch, clock):
    """An arithmetic that takes long is not chosen."""
    respond = DifferenceEvaluator.responses

    def slow(self, *arguments, **options):
        clock.now += 0.02
        return respond(self, *arguments, **options)

    monkeypatch.setattr(DifferenceEvaluator, "responses", slow)
    chosen = choose_precision(case, unit(case), LARGE)
    assert chosen.name in ("float32", "float64")
    assert chosen.seconds["difference"] >= 0.02 / 12


# ---------------------------------------------------------------------- noise


def _classes(model, **options):
    torch.manual_seed(1)
    x, y = zoo.digits(samples=48)[0]
    return fs.Objective(model(), [(x[:30], y[:30]), (x[30:], y[30:])], **({"criterion": F.cross_entropy} | options))


NETS = {
    "relu": lambda: _classes(lambda: zoo.mlp(hidden=(16, 12))),
    "tanh": lambda: _classes(lambda: zoo.mlp(hidden=(16,), activation="tanh")),
    "gelu": lambda: _classes(lambda: zoo.mlp(hidden=(16, 16), activation="gelu")),
    "cnn": lambda: _classes(lambda: zoo.cnn(width=3)),
    "batch_norm": lambda: _classes(lambda: zoo.cnn(width=3), batch_norm="batch"),
    "text": lambda: fs.Objective(
        zoo.tiny_transformer(width=8, layers=1, heads=2, context=8),
        zoo.pydoc_text(samples=6, context=8),
        criterion=F.cross_entropy,
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_the_stated_noise_covers_the_error_and_is_not_absurd(name):
    case = NETS[name]()
    directions, radii = fs.Directions(case, 8), np.logspace(-6, -0.5, 7)
    with DifferenceEvaluator(case) as evaluator:
        found, odd, _ = evaluator.responses(directions, range(8), radii)
        exact = evaluator.responses(directions, range(8), radii, lanes=torch.float64)[0]
        noise = measure_noise(evaluator, directions, radii)
    error = np.sqrt(np.mean((found - exact) ** 2, axis=1))
    assert (noise.sigma >= error).all(), noise.sigma / error
    assert (noise.sigma <= 100 * np.maximum(error, 1e-7 * np.sqrt(np.mean(exact**2, axis=1)))).all()
    assert noise.calibrated is None
    assert noise.trusted(found, odd).all()


def test_noise_leaves_no_directions_out_that_matter(case):
    """The trust of float32 subtraction is calibrated, that of float64 and of difference propagation modelled."""
    directions = unit(case, 3)
    with pytest.warns(fs.PrecisionWarning):
        single = fs.responses(case, directions, WIDE, precision="float32")
    double = fs.responses(case, directions, WIDE, precision="float64")
    difference = fs.responses(case, directions, WIDE, precision="difference")
    assert single.trusted.tolist()[:2] == [False, False]
    assert not double.trusted[0]
    assert difference.trusted.all()
    assert (difference.noise < 1e-4 * np.abs(difference.even).max(1)).all()


def test_trials_leave_no_trace(case, untouched):
    with untouched(case.model):
        choose_precision(case, unit(case), WIDE)
        choose_precision(case, unit(case), LARGE)


def test_another_error_of_the_model_is_not_swallowed(case, monkeypatch):
    def broken(self, *_):
        raise ZeroDivisionError("bug")

    monkeypatch.setattr(Evaluator, "responses", broken)
    with pytest.raises(ZeroDivisionError):
        choose_precision(case, unit(case), LARGE)
