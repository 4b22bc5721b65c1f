"""The probe end to end: known functions, banks, flags, interruption, extension; no trace on the user's model."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from mixed_precision import BY_BF16
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.probes.multifractal.result import Measured

RADII = tuple(np.logspace(-3, -1, 8))
QUICK = fs.AnalysisSettings(bootstrap=50, permutations=99)


class Point(nn.Module):
    """Parameters as a point; the loss is a function of them."""

    def __init__(self, values):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values))

    def forward(self, x):
        return self.w * x


def function_of(values, function):
    return fs.Objective(Point(values), [torch.ones(len(values))], loss=lambda model, batch: function(model(batch)))


def test_a_quadratic_loss_has_common_scaling_and_slope_two():
    """T3 through loss evaluations: tau = 0 and h = 2, and the report says that the quadratic form describes it."""
    weights = torch.linspace(0.5, 2.0, 30)
    objective = function_of(weights.tolist(), lambda w: (torch.linspace(1, 3, 30).to(w) * w**2).sum() / 2)
    probe = fs.ProbeSettings(radii=tuple(np.logspace(-2, 0, 8)), count=64, banks=2)
    result = fs.multifractal(objective, probe, QUICK)
    assert result.analysis.estimates["m_tau"].value < 1e-8
    assert result.analysis.estimates["h_mean"].value == pytest.approx(2, abs=1e-9)
    assert result.analysis.quadratic
    assert "the quadratic form d'Hd describes it" in result.verdict()


def test_power_law_losses_have_their_exponent():
    """T4: L = sum |w_i|^a at w = 0, absolute radii, has h_i = a and tau = 0."""
    for power in (0.5, 1.0, 1.5, 3.0):
        objective = function_of([0.0] * 12, lambda w, a=power: w.abs().pow(a).sum())
        probe = fs.ProbeSettings(radii=RADII, count=16, banks=1, normalize="none", scale="unit", precision="float64")
        result = fs.multifractal(objective, probe, QUICK)
        np.testing.assert_allclose(result.analysis.pooled[0][0].holder.h, power, atol=1e-12)
        assert result.analysis.estimates["m_tau"].value < 1e-11


def test_a_direction_dependent_power_is_multiscale():
    exponents = torch.linspace(1, 2, 16)
    objective = function_of([0.0] * 16, lambda w: (w.abs().pow(exponents.to(w))).sum())
    probe = fs.ProbeSettings(radii=RADII, count=64, banks=1, normalize="none", scale="unit")
    result = fs.multifractal(objective, probe, QUICK)
    assert result.analysis.scaling == "multiscale"
    assert result.analysis.estimates["h_std"].value > 0.01
    assert result.analysis.p_value < 0.05


def test_banks_have_their_seeds_and_are_pooled(tanh_objective):
    probe = fs.ProbeSettings(radii=RADII, count=6, banks=3, seed=4, stride=1000)
    result = fs.multifractal(tanh_objective, probe, QUICK, method="loop")
    for bank in range(3):
        directions = fs.Directions(tanh_objective, 6, seed=4 + 1000 * (bank + 1))
        alone = fs.responses(tanh_objective, directions, RADII, method="loop")
        np.testing.assert_array_equal(result.measured.even[bank], alone.even)
        np.testing.assert_array_equal(result.measured.odd[bank], alone.odd)
    assert result.directions == 18
    assert len(result.analysis.pooled) == 1
    assert result.measured.batches.tolist() == [0, 0, 0]


def test_rotated_banks_see_one_batch_each_and_are_not_pooled(tanh_net, digits):
    x, y = digits[0]
    batches = [(x[:100], y[:100]), (x[100:], y[100:])]
    objective = fs.Objective(tanh_net, batches, criterion=F.cross_entropy)
    probe = fs.ProbeSettings(radii=RADII, count=4, banks=3, bank_batches="rotate")
    result = fs.multifractal(objective, probe, QUICK, method="loop")
    assert result.measured.batches.tolist() == [0, 1, 0]
    assert len(result.analysis.pooled) == 2
    for bank in range(3):
        single = objective.on(bank % 2)
        alone = fs.responses(single, fs.Directions(single, 4, seed=probe.bank_seed(bank)), RADII, method="loop")
        np.testing.assert_array_equal(result.measured.even[bank], alone.even)
        assert result.measured.base[bank] == alone.base


def test_extension_equals_one_run(tanh_objective):
    short = fs.multifractal(tanh_objective, fs.ProbeSettings(radii=RADII, count=5), QUICK, method="loop")
    extended = fs.multifractal(tanh_objective, fs.ProbeSettings(radii=RADII, count=12), QUICK, extend=short)
    whole = fs.multifractal(tanh_objective, fs.ProbeSettings(radii=RADII, count=12), QUICK, method="loop")
    np.testing.assert_array_equal(extended.measured.even, whole.measured.even)
    assert extended.analysis.estimates == whole.analysis.estimates


def test_extension_of_another_run_is_refused_and_says_what_differs(tanh_net, tanh_objective):
    probe = fs.ProbeSettings(radii=RADII, count=2)
    short = fs.multifractal(tanh_objective, probe, QUICK)
    with torch.no_grad():
        tanh_net[1].bias[0] += 1
    with pytest.raises(ValueError, match="got other weights; start a new result"):
        fs.multifractal(tanh_objective, probe, QUICK, extend=short)
    with pytest.raises(ValueError, match="got other weights, settings"):
        fs.multifractal(tanh_objective, dataclasses.replace(probe, seed=1), QUICK, extend=short)


def test_nan_weights_give_a_result_with_flags(tanh_net, tanh_objective):
    with torch.no_grad():
        tanh_net[1].weight[0, 0] = torch.nan
    result = fs.multifractal(tanh_objective, fs.ProbeSettings(count=2), QUICK)
    assert not result.analysis.valid
    assert math.isnan(result.loss)
    assert "weights hold NaN or inf in 1.weight" in result.flags
    assert any("12 of 12 scales have losses that are not finite" in flag for flag in result.flags)
    assert "No multifractal numbers" in result.summary()


def test_float32_is_gated_flagged_and_warned_about(trained_mlp, digits):
    objective = fs.Objective(trained_mlp, digits, criterion=F.cross_entropy)
    with pytest.warns(fs.PrecisionWarning, match="rounding noise"):
        result = fs.multifractal(objective, fs.ProbeSettings(count=8, precision="float32"), QUICK)
    assert not result.analysis.trust.mask[:4].any()
    assert any("are rounding noise" in flag for flag in result.flags)


def test_a_loss_that_ignores_the_model_is_flagged(tanh_net, digits):
    outer = tanh_net
    objective = fs.Objective(tanh_net, digits, loss=lambda _model, batch: F.cross_entropy(outer(batch[0].float()), batch[1]))
    result = fs.multifractal(objective, fs.ProbeSettings(count=2, precision="float32"), QUICK)
    assert any("does loss= use the model it is given?" in flag for flag in result.flags)


def test_a_narrow_step_in_the_loss_is_flagged(trained_mlp, digits):
    objective = fs.Objective(
        trained_mlp, digits, loss=lambda model, batch: F.cross_entropy(model(batch[0]).float(), batch[1]), weight=lambda _: 1
    )
    result = fs.multifractal(objective, fs.ProbeSettings(count=2, precision="float64"), QUICK)
    assert any("computes in lower precision" in flag for flag in result.flags)


class Fragile(nn.Module):
    """Raises at a given call."""

    def __init__(self, error, at):
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.norm = nn.BatchNorm1d(10)
        self.plan = (error, at, [])

    def __deepcopy__(self, memo):
        copy = super().__new__(Fragile)
        nn.Module.__init__(copy)
        copy.linear, copy.norm = nn.Linear(64, 10), nn.BatchNorm1d(10)
        copy.linear.weight, copy.linear.bias = (memo[id(p)] for p in (self.linear.weight, self.linear.bias))
        copy.norm.weight, copy.norm.bias = (memo[id(p)] for p in (self.norm.weight, self.norm.bias))
        copy.plan = self.plan
        return copy

    def forward(self, x):
        error, at, calls = self.plan
        calls.append(1)
        if len(calls) == at:
            raise error("at that point")
        return self.norm(self.linear(x.flatten(1)))


def test_ctrl_c_returns_the_partial_result(digits, untouched):
    model = Fragile(KeyboardInterrupt, 150)
    objective = fs.Objective(model, digits, criterion=F.cross_entropy)
    with untouched(model):
        result = fs.multifractal(objective, fs.ProbeSettings(radii=RADII), QUICK, method="loop")
    assert result.meta["stop_reason"] == "interrupted"
    assert 0 < result.directions < 64
    assert "partial result: interrupted" in result.flags
    assert result.analysis.valid
    calm = fs.Objective(_calm(model), digits, criterion=F.cross_entropy)
    whole = fs.multifractal(calm, fs.ProbeSettings(radii=RADII), QUICK, method="loop")
    for bank, count in enumerate(result.measured.counts):
        np.testing.assert_array_equal(result.measured.even[bank, :, :count], whole.measured.even[bank, :, :count])


def _calm(model):
    other = Fragile(RuntimeError, 0)
    other.load_state_dict(model.state_dict())
    return other


def test_a_second_ctrl_c_leaves_out_the_analysis_and_keeps_the_evaluations(digits, untouched, monkeypatch, tmp_path):
    model = Fragile(KeyboardInterrupt, 150)
    objective = fs.Objective(model, digits, criterion=F.cross_entropy)
    analyse = Measured.analyse

    def stop(self, settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(Measured, "analyse", stop)
    with untouched(model):
        result = fs.multifractal(objective, fs.ProbeSettings(radii=RADII), QUICK, method="loop")
    monkeypatch.setattr(Measured, "analyse", analyse)
    assert result.meta["stop_reason"] == "interrupted"
    assert result.directions > 0
    assert not result.analysed
    assert "No multifractal numbers: the analysis was stopped" in result.verdict()
    whole = fs.load(result.save(tmp_path / "stopped")).reanalyse()
    assert whole.analysed
    assert whole.analysis.estimates == result.measured.analyse(QUICK).estimates


def test_ctrl_c_during_the_analysis_makes_it_quicker_and_a_second_one_leaves_it_out(tanh_objective, monkeypatch):
    analyse, calls = Measured.analyse, []

    def stopped(self, settings):
        calls.append(settings.bootstrap)
        if len(calls) <= stops:
            raise KeyboardInterrupt
        return analyse(self, settings)

    monkeypatch.setattr(Measured, "analyse", stopped)
    slow = fs.AnalysisSettings(bootstrap=2000, permutations=99)
    for stops, tried in ((1, [2000, 100]), (2, [2000, 100])):
        calls.clear()
        result = fs.multifractal(tanh_objective, fs.ProbeSettings(radii=RADII, count=3), slow, method="loop")
        assert calls == tried
        assert result.directions == 12
        assert result.meta["stop_reason"] == "interrupted"
        assert result.analysed is (stops == 1)


def test_ctrl_c_before_the_first_direction_is_ctrl_c(digits, untouched):
    model = Fragile(KeyboardInterrupt, 3)
    objective = fs.Objective(model, digits, criterion=F.cross_entropy)
    with untouched(model), pytest.raises(KeyboardInterrupt):
        fs.multifractal(objective, fs.ProbeSettings(radii=RADII), QUICK)


def test_a_model_that_raises_midway_leaves_the_partial_result_on_the_error(digits, untouched):
    model = Fragile(RuntimeError, 200)
    objective = fs.Objective(model, digits, criterion=F.cross_entropy)
    with untouched(model), pytest.raises(fs.ProbeError, match="RuntimeError: at that point") as caught:
        fs.multifractal(objective, fs.ProbeSettings(radii=RADII), QUICK, method="loop", name="mine")
    partial = caught.value.partial.points[0]
    assert partial.directions > 0
    assert partial.name == "mine"
    assert "partial result: failed: RuntimeError" in partial.flags


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
def test_a_probe_leaves_no_trace(bn_net, bn_objective, untouched, precision):
    with untouched(bn_net):
        result = fs.multifractal(bn_objective, fs.ProbeSettings(count=2, precision=precision), QUICK)
        result.reanalyse(q=(-1, 2, 3))
        str(result)


def test_progress_is_monotone_and_ends_at_one(tanh_objective):
    seen = []
    fs.multifractal(tanh_objective, fs.ProbeSettings(radii=RADII, count=8, banks=2), QUICK, progress=seen.append)
    fractions = [state.fraction for state in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert seen[-1].directions == seen[-1].total == 16
    assert seen[-1].m_tau is not None


def test_the_preset_is_the_published_protocol():
    probe, analysis = fs.preset("torok2026")
    np.testing.assert_allclose(probe.radii, np.logspace(-6.5, -1.9, 12))
    assert (probe.count, probe.banks, probe.stride, probe.scale, probe.normalize) == (128, 8, 100_000, "unit", "tensor")
    assert analysis.windows == ((5, 9), (6, 10), (7, 11), (8, 12), (5, 10), (6, 11), (7, 12), (5, 11))
    assert analysis.measure_floor == 1e-10
    assert analysis.authors_trust
    with pytest.raises(ValueError, match="preset must be 'torok2026', got 'other'"):
        fs.preset("other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"radii": (0.1, 0.2, 0.3)}, "radii must hold at least 4 scales, got 3"),
        ({"radii": (0.0, 0.1, 0.2, 0.3)}, r"got radii\[0\] = 0.0"),
        ({"radii": (0.1, 0.1, 0.2, 0.3)}, "strictly ascending"),
        ({"radii": (0.1, 0.2, 0.3, math.nan)}, r"got radii\[3\] = nan"),
        ({"count": 1}, "count must be at least 2, got 1"),
        ({"count": 2.5}, "count must be an integer, got 2.5"),
        ({"count": True}, "count must be an integer, got True"),
        ({"stride": 0}, r"stride must be an integer in \[1, 2\^63\), got 0"),
        ({"banks": 0}, "banks must be at least 1, got 0"),
        ({"seed": -3}, r"seed must be an integer in \[0, 2\^63\), got -3"),
        ({"normalize": "layer"}, "normalize must be one of tensor, filter.*got 'layer'"),
        ({"scale": "none"}, "scale must be 'unit' or 'relative', got 'none'"),
        ({"precision": "half"}, "precision must be one of float64, float32, difference, difference-bf16 or None, got 'half'"),
        ({"bank_batches": "each"}, "bank_batches must be 'all' or 'rotate', got 'each'"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        fs.ProbeSettings(**arguments)


def test_what_is_no_objective_and_no_settings_is_named_before_any_work(tanh_net, tanh_objective, tmp_path):
    missing = [tmp_path / "missing.pt"]
    for probe in (lambda *given: fs.multifractal(*given), lambda objective, *rest: fs.trajectory(objective, missing, *rest)):
        with pytest.raises(
            TypeError, match=r"objective must be a fastscape.Objective, got Sequential; .*fs.Objective\(model, data"
        ):
            probe(tanh_net)
        with pytest.raises(
            TypeError, match=r"probe must be a fastscape.ProbeSettings, got dict; write fs.ProbeSettings\(\*\*settings"
        ):
            probe(tanh_objective, {"count": 4})
        with pytest.raises(
            TypeError, match=r"probe must be a fastscape.ProbeSettings, got int; write fs.ProbeSettings\(name=value"
        ):
            probe(tanh_objective, 0)
        with pytest.raises(TypeError, match=r"probe must be a fastscape.ProbeSettings, got AnalysisSettings"):
            probe(tanh_objective, QUICK)
        with pytest.raises(TypeError, match=r"analysis must be a fastscape.AnalysisSettings, got dict"):
            probe(tanh_objective, None, {})
    with pytest.raises(TypeError, match=r"settings must be a fastscape.AnalysisSettings, got dict"):
        fs.analyse([np.ones((4, 2))], np.arange(1.0, 5), settings={"bootstrap": 3})


def test_a_missing_estimate_says_why(tanh_objective, tmp_path):
    result = fs.multifractal(tanh_objective, fs.ProbeSettings(radii=RADII, count=2), QUICK)
    with pytest.raises(KeyError, match="estimates has no 'mtau': there are h_mean, h_std"):
        result.analysis.estimates["mtau"]
    narrow = fs.multifractal(tanh_objective, fs.ProbeSettings(radii=(1e-3, 2e-3, 3e-3, 4e-3), count=2), QUICK)
    for value in (narrow, fs.load(narrow.save(tmp_path / "narrow"))):
        with pytest.raises(KeyError, match=r"estimates has no 'm_tau': the analysis has no numbers \(the longest run of trusted"):
            value.analysis.estimates["m_tau"]
        assert value.analysis.estimates.get("m_tau") is None


def test_bad_windows_are_found_before_the_work(tanh_objective):
    with pytest.raises(ValueError, match=r"windows\[0\] must hold at least 4 of the 8 scales \(half-open\), got \(2, 9\)"):
        fs.multifractal(tanh_objective, fs.ProbeSettings(radii=RADII), fs.AnalysisSettings(windows=((2, 9),)))


# ---------------------------------------------------------------------- along training


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    return zoo.train(zoo.cnn(width=2), zoo.digits(samples=256), tmp_path, steps=20, checkpoints=4)


@pytest.fixture
def cnn_objective(digits):
    torch.manual_seed(5)
    return fs.Objective(zoo.cnn(width=2), [(digits[0][0][:64], digits[0][1][:64])], criterion=F.cross_entropy)


def test_a_trajectory_is_the_probe_of_every_checkpoint_along_the_same_directions(run, cnn_objective, untouched):
    probe = fs.ProbeSettings(radii=RADII, count=4, banks=2)
    with untouched(cnn_objective.model):
        result = fs.trajectory(cnn_objective, run, probe, QUICK, method="loop")
    assert [point.name for point in result.points] == ["step0", "step1", "step4", "step20"]
    assert result.steps.tolist() == [0, 1, 4, 20]
    for point, file in zip(result.points, run, strict=True):
        model = zoo.cnn(width=2)
        from safetensors.torch import load_file

        model.load_state_dict(load_file(file))
        objective = fs.Objective(model, cnn_objective.batches, criterion=F.cross_entropy)
        alone = fs.multifractal(objective, probe, QUICK, method="loop")
        np.testing.assert_array_equal(point.measured.even, alone.measured.even)
        assert point.loss == alone.loss == objective.loss()
        assert point.accuracy == objective.accuracy()
        assert point.measured.weight_norm == pytest.approx(objective.norm, rel=1e-14)
        assert point.meta["weight_fingerprint"] == objective.weight_fingerprint()
    np.testing.assert_array_equal(result.series("loss")[0], [point.loss for point in result.points])
    value, low, high = result.series("c1")
    assert np.isnan(low).all(), "eight directions have no interval"
    assert np.isnan(high).all()
    assert value[0] == result.points[0].analysis.estimates["c1"].value


def test_a_trajectory_extends(run, cnn_objective):
    short = fs.trajectory(cnn_objective, run[:2], fs.ProbeSettings(radii=RADII, count=2), QUICK, method="loop")
    extended = fs.trajectory(cnn_objective, run[:2], fs.ProbeSettings(radii=RADII, count=5), QUICK, extend=short)
    whole = fs.trajectory(cnn_objective, run[:2], fs.ProbeSettings(radii=RADII, count=5), QUICK, method="loop")
    for a, b in zip(extended.points, whole.points, strict=True):
        np.testing.assert_array_equal(a.measured.even, b.measured.even)
    with pytest.raises(ValueError, match="extend must hold one result per checkpoint, got 2 for 3"):
        fs.trajectory(cnn_objective, run[:3], fs.ProbeSettings(radii=RADII), QUICK, extend=short)


def test_checkpoints_that_do_not_fit_are_found_before_any_work(run, cnn_objective, tmp_path):
    other = zoo.train(zoo.cnn(width=3), zoo.digits(samples=64), tmp_path / "other", steps=1, checkpoints=2)
    with pytest.raises(ValueError, match=r"checkpoint .*step0.safetensors: state must match Sequential.*has shape"):
        fs.trajectory(cnn_objective, [run[0], other[0]], fs.ProbeSettings(radii=RADII, count=2), QUICK)


# ---------------------------------------------------------------------- windows with gaps, identity of runs, counts


def test_scales_between_windows_do_not_reach_p():
    rng = np.random.default_rng(0)
    radii, windows = np.logspace(-4, -1, 12), ((0, 4), (8, 12))
    even = np.abs(rng.standard_normal((12, 64))) * radii[:, None] ** 2
    settings = fs.AnalysisSettings(windows=windows, bootstrap=2, permutations=499)
    clean = fs.analyse([even], radii, settings=settings).p_value
    for bad in (np.nan, 0.0, 1e6):
        gap = even.copy()
        gap[5, 3] = bad
        assert fs.analyse([gap], radii, settings=settings).p_value == clean


def test_extension_of_another_function_is_refused(tanh_net, digits):
    probe = fs.ProbeSettings(radii=RADII, count=2)

    def objective(**arguments):
        return fs.Objective(tanh_net, digits, **({"criterion": F.cross_entropy} | arguments))

    short = fs.multifractal(objective(), probe, QUICK)
    for other, word in (
        (objective(params="3.*"), "parameters"),
        (objective(criterion=lambda out, y: 100 * F.cross_entropy(out, y)), "loss function"),
        (objective(batch_norm="batch"), "batch_norm"),
        (objective(dtype=torch.float64), "dtype"),
    ):
        with pytest.raises(ValueError, match=f"got other .*{word}"):
            fs.multifractal(other, probe, QUICK, extend=short)
    with pytest.raises(TypeError, match="extend must be an earlier result .* got str"):
        fs.multifractal(objective(), probe, QUICK, extend="result.npz")


def test_evaluations_count_forwards(digits):
    class Counted(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            Counted.calls += 1
            return self.linear(x.flatten(1))

    objective = fs.Objective(Counted(), digits, criterion=F.cross_entropy)
    assert objective.remarks == ()  # after a first evaluation, which is no probe's
    Counted.calls = 0
    found = fs.responses(objective, fs.Directions(objective, 4), [0.1, 0.2], method="loop")
    assert found.evaluations == pytest.approx(Counted.calls, abs=1)  # the rounding model looks at one forward


def test_replicates_of_different_batches_are_independent(tanh_net, digits):
    """Sorting the directions of one batch changes no estimate and leaves its standard error about where it was."""
    rng = np.random.default_rng(1)
    radii = np.logspace(-3, -1, 8)
    slopes = 2 + 0.2 * rng.standard_normal((2, 200))
    errors = []
    for order in (slice(None), np.argsort(slopes[1])):
        even = [radii[:, None] ** np.sort(slopes[0]), radii[:, None] ** slopes[1][order]]
        settings = fs.AnalysisSettings(bootstrap=2000, permutations=1)
        errors.append(fs.analyse(even, radii, batches=[0, 1], settings=settings).estimates["h_mean"].stderr)
    expected = 0.2 / np.sqrt(400)
    np.testing.assert_allclose(errors, expected, rtol=0.12)


# ---------------------------------------------------------------------- one arithmetic for a run


@pytest.fixture
def choices(monkeypatch):
    """Names of the arithmetics that runs go on to choose; ``choices.append`` sets the next ones."""
    from fastscape.probes.multifractal import visits
    from fastscape.response.precision import PrecisionChoice

    wanted, asked = [], []

    def choose(*arguments, **options):
        asked.append(options)
        return PrecisionChoice(wanted[len(asked) - 1], f"choice number {len(asked)}")

    monkeypatch.setattr(visits, "choose_precision", choose)
    return wanted, asked


@pytest.mark.parametrize("first", ["difference", "float64"])
def test_a_trajectory_uses_the_arithmetic_of_its_first_checkpoint(run, cnn_objective, choices, first):
    wanted, asked = choices
    wanted.extend([first, "float32", "float32", "float32", "float32"])
    probe = fs.ProbeSettings(radii=RADII, count=2, banks=2)
    result = fs.trajectory(cnn_objective, run, probe, QUICK)
    assert len(asked) == 1
    assert {point.meta["precision"] for point in result.points} == {first}
    assert {point.meta["precision_reason"] for point in result.points} == {"choice number 1"}
    assert {point.meta["path"]["name"] for point in result.points} <= ({"graph"} if first == "difference" else {"loop", "vmap"})


@pytest.mark.parametrize("first", ["difference", "float64"])
def test_an_extension_goes_on_in_the_arithmetic_of_what_it_extends(run, cnn_objective, choices, first, tmp_path):
    """Whether it was asked for (as when another was the default), or chosen."""
    wanted, asked = choices
    wanted.extend([first, "float32", "float32"])
    probe = fs.ProbeSettings(radii=RADII, count=2, banks=1)
    for precision in (None, first):
        short = fs.trajectory(cnn_objective, run[:2], dataclasses.replace(probe, precision=precision), QUICK)
        saved = fs.load(short.save(tmp_path / f"{precision}"))
        for earlier in (short, saved):
            longer = fs.trajectory(cnn_objective, run[:2], dataclasses.replace(probe, count=4), QUICK, extend=earlier)
            assert {point.meta["precision"] for point in longer.points} == {first}
            for a, b in zip(longer.points, earlier.points, strict=True):
                assert a.directions == 4
                np.testing.assert_array_equal(a.measured.even[:, :, :2], b.measured.even)
    assert len(asked) == 1


def test_an_extension_in_another_arithmetic_is_refused(tanh_objective):
    probe = fs.ProbeSettings(radii=RADII, count=2, precision="difference")
    short = fs.multifractal(tanh_objective, probe, QUICK)
    with pytest.raises(ValueError, match="got other precision; start a new result"):
        fs.multifractal(tanh_objective, dataclasses.replace(probe, precision="float64"), QUICK, extend=short)
    same = fs.multifractal(tanh_objective, dataclasses.replace(probe, precision=None, count=3), QUICK, extend=short)
    assert same.meta["precision"] == "difference"


def test_extension_by_difference_equals_one_run(tanh_objective):
    probe = fs.ProbeSettings(radii=RADII, count=5, precision="difference")
    short = fs.multifractal(tanh_objective, probe, QUICK)
    extended = fs.multifractal(tanh_objective, dataclasses.replace(probe, count=11), QUICK, extend=short)
    whole = fs.multifractal(tanh_objective, dataclasses.replace(probe, count=11), QUICK)
    np.testing.assert_allclose(extended.measured.even, whole.measured.even, rtol=1e-5)
    np.testing.assert_array_equal(extended.measured.even[:, :, :5], short.measured.even)


def test_a_probe_notes_what_difference_propagation_could_not_follow(digits):
    class Gamma(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            out = torch.lgamma(2 + self.linear(x.flatten(1)).square())
            return out if float(out.detach().sum()) > -1e9 else -out

    torch.manual_seed(0)
    objective = fs.Objective(Gamma(), digits, criterion=F.cross_entropy)
    result = fs.multifractal(objective, fs.ProbeSettings(radii=RADII, count=2, banks=1, precision="difference"), QUICK)
    assert any("were evaluated in float64: aten.lgamma.default" in flag for flag in result.flags)
    assert any(
        "the forward decides by values that depend on the weights; taken as at w: aten.item" in flag for flag in result.flags
    )


@pytest.mark.parametrize("precision", ["difference", BY_BF16, None])
def test_a_probe_by_differences_leaves_no_trace(bn_net, bn_objective, untouched, precision):
    with untouched(bn_net):
        fs.multifractal(bn_objective, fs.ProbeSettings(count=2, banks=1, precision=precision), QUICK)
