"""Signatures: assembled from whatever there is, with intervals, reasons for what is missing, warnings and comparisons."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import spectra
import torch
from scipy import stats

import fastscape as fs
from fastscape.numerics.estimate import Estimate
from fastscape.numerics.spectra import Stability
from fastscape.probes.sharpness.result import SharpnessResult
from fastscape.probes.signature.comparison import Comparison, compare
from fastscape.probes.signature.quantities import QUANTITIES
from fastscape.probes.signature.result import Signature
from fastscape.probes.signature.rules import Condition, Rule, above_edge
from fastscape.reports.html import write_html

NAN = math.nan
META = {
    "weight_fingerprint": "aa" * 32,
    "data_fingerprint": "dd" * 32,
    "model": "MLP",
    "seed": 3,
    "seconds": 1.5,
    "evaluations": 7,
}


def between(low, high):
    return Estimate((low + high) / 2, (high - low) / 4, (low, high), 10)


def spectrum(seed=0, **fields):
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((12, 12))
    made = spectra.spectrum_of(half @ half.T - 0.5 * np.eye(12), seed=seed)
    return dataclasses.replace(made, **{"meta": made.meta | META, **fields})


def stability(ratio=1.5, critical=40.0):
    return Stability("SGD", 0.05, critical, ratio * critical, None, ratio, 3.0, 0.1, None, ("read from its state",))


def bowl(curvature=2.0, **fields):
    """A slice result of h alpha^2 / 2 and of four times it, as the slice probe gives it."""
    alphas = np.linspace(-1, 1, 21)
    return SimpleNamespace(
        kind="slice",
        name="model",
        step=None,
        alphas=alphas,
        losses=np.stack([0.5 * curvature * alphas**2, 2 * curvature * alphas**2]),
        roughness=between(0.1, 0.3),
        detrended=between(1e-6, 3e-6),
        noise_floor=1e-12,
        meta=META | {"settings": {"radius": 1.0}},
        notes=(),
        **fields,
    )


def sharp(worst=2e-5, bound=5e-5, variant="normalized", **fields):
    content = {
        "name": "model",
        "step": None,
        "variant": variant,
        "epsilon": 1e-2,
        "loss": 0.3,
        "worst": worst,
        "random": between(1e-7, 2e-7),
        "first_order": 1e-5,
        "quadratic": 4e-5,
        "quadratic_bound": bound,
        "restarts": np.array([worst, worst / 2]),
        "starts": ("first order", "random"),
        "curves": np.zeros((2, 3)),
        "random_rises": np.zeros(4),
        "m": None,
        "group_worst": np.empty(0),
        "nonfinite": 0,
        "noise": 1e-9,
        "meta": META,
    }
    return SharpnessResult(**content | fields)


def result(kind, **fields):
    return SimpleNamespace(**{"kind": kind, "name": "model", "step": None, "meta": META, "notes": (), **fields})


def barrier(low=1.1, high=1.4):
    return result("barrier", linear=between(low, high), end=between(low, high), max=between(low + 0.3, high + 0.3))


def everything():
    return (
        spectrum(stability=stability(), name="late", step=40),
        bowl(),
        sharp(),
        barrier(),
        result("temperature", temperature=None, temperature_h=None, noise_scale=between(30, 50), notes=("Adam preconditions",)),
        result(
            "difficulty",
            value=2.5,
            dimensionless=0.4,
            discretisation=-0.5,
            nodes=np.arange(4),
            meta=META | {"weight_fingerprint": "bb" * 32},
        ),
    )


def test_every_result_contributes_its_fields_with_intervals():
    given = everything()
    found = Signature.of(*given)
    assert (found.name, found.step) == ("late", 40)
    assert found.trace is given[0].trace
    low, high = found.lambda_max.interval
    assert low == given[0].lambda_max - given[0].residuals[0]
    assert high == given[0].lambda_max + given[0].residuals[0]
    assert found.spectral_norm.value == given[0].spectral_norm
    assert found.roughness == given[1].roughness
    assert found.roughness_noise == Estimate(1e-12, 0.0, (1e-12, 1e-12), 1)
    assert found.barrier == between(1.1, 1.4)
    assert found.noise_scale == between(30, 50)
    assert found.difficulty.interval == (2.0, 3.0)
    assert found.difficulty_dimensionless.interval == pytest.approx((0.32, 0.48))
    assert found.critical_sharpness == 40.0
    assert found.preconditioned_sharpness.interval == (59.9, 60.1)
    assert found.loss == 0.31


def test_the_worst_slice_has_the_variance_of_the_steepest_bowl():
    """R = h^2 A^4 / 45, here with h = 4 x 2."""
    assert Signature.of(bowl()).roughness_worst.value == pytest.approx(8.0**2 / 45, rel=1e-12)
    assert math.isnan(Signature.of(bowl()).roughness_worst.interval[0])


def test_the_spectral_norm_covers_both_ends():
    made = spectrum(
        eigenvalues=np.array([2.0]), residuals=np.array([0.5]), smallest=np.array([-2.2]), smallest_residuals=np.array([0.1])
    )
    found = Signature.of(made).spectral_norm
    assert found.value == 2.2
    assert found.interval == pytest.approx((2.1, 2.5))


def test_normalized_sharpness_reaches_from_the_rise_found_to_the_quadratic_bound():
    assert Signature.of(sharp(2e-5, 5e-5)).normalized_sharpness.interval == (2e-5, 5e-5)
    assert Signature.of(sharp(2e-5, 1e-5)).normalized_sharpness.interval == (2e-5, math.inf)  # the loss is no quadratic
    assert Signature.of(sharp(2e-5, NAN)).normalized_sharpness.interval == (2e-5, math.inf)
    found = Signature.of(sharp(variant="sam"))
    assert found.normalized_sharpness is None
    assert "'sam'" in found.missing["normalized_sharpness"]


def test_a_critical_sharpness_that_is_none_says_why():
    loss = lambda model, _: torch.exp(-model.weight).sum()  # noqa: E731
    objective = fs.Objective(torch.nn.Linear(1, 1, bias=False), [torch.zeros(1)], loss=loss)
    found = Signature.of(fs.critical_sharpness(objective, curvature=False))
    assert found.lambda_c is None
    assert found.missing["lambda_c"].startswith("The loss does not rise along the update: none up to eta")
    assert found.loss == pytest.approx(objective.loss())


def test_the_upper_end_of_normalized_sharpness_is_named_a_bound_of_the_quadratic_model():
    found = Signature.of(sharp(2e-5, 5e-5), barrier())
    rows = {quantity.label: quantity.value for quantity in found.section().quantities}
    assert rows["NS_eps"] == ">= 2e-05 (<= 5e-05 in the quadratic model)"
    assert found.to_dict()["normalized_sharpness"]["shown"] == rows["NS_eps"]
    assert "bound of the quadratic model only" in found.meaning("normalized_sharpness")
    isolated = next(verdict for verdict in found.warnings() if verdict.rule == "flat but isolated")
    assert "in the quadratic model" in isolated.evidence
    beyond = {quantity.label: quantity.value for quantity in Signature.of(sharp(2e-5, 1e-5)).section().quantities}
    assert beyond["NS_eps"] == ">= 2e-05"


def test_what_is_missing_has_its_reason():
    found = Signature.of(
        spectrum(), result("temperature", temperature=None, temperature_h=None, noise_scale=between(1, 2), notes=("Adam",))
    )
    absent = {name for name in QUANTITIES if getattr(found, name) is None}
    assert absent == set(found.missing)
    assert found.missing["roughness"] == "no slice result was given"
    assert found.missing["temperature"] == "Adam"
    assert "no optimizer" in found.missing["stability_ratio"]
    told = Signature.of(spectrum(), missing={"slice": "no time was left", "barrier": "no other solution"})
    assert told.missing["roughness"] == told.missing["roughness_worst"] == "no time was left"
    assert told.missing["barrier"] == "no other solution"
    with pytest.raises(ValueError, match="missing must name fields or kinds of results, got 'slices'"):
        Signature.of(spectrum(), missing={"slices": "?"})


def test_nan_is_missing_and_not_a_number():
    found = Signature.of(spectrum(trace=Estimate(NAN, NAN, (NAN, NAN), 0)))
    assert found.trace is None
    assert "ended before" in found.missing["trace"]


def test_the_gauss_newton_matrix_is_not_the_hessian():
    found = Signature.of(spectrum(operator="ggn"))
    assert found.lambda_max is None
    assert "GGN" in found.missing["trace"]


def test_results_of_different_weights_are_refused_by_name():
    other = spectrum(name="step-9", meta=META | {"weight_fingerprint": "cc" * 32})
    with pytest.raises(ValueError, match=r"spectrum 'step-9' \(cccccccc\) and slice 'model' \(aaaaaaaa\)"):
        Signature.of(bowl(), other)
    with pytest.raises(ValueError, match="one spectrum, got 'model' and 'step-9'"):
        Signature.of(spectrum(), other)
    with pytest.raises(TypeError, match="got dict"):
        Signature.of({})


def test_a_barrier_has_an_end_at_the_weights_of_the_others():
    ends = {"weight_fingerprints": {"a": "cc" * 32, "b": "aa" * 32}}
    path = barrier()
    path.meta = {**META, "weight_fingerprint": "ee" * 32, **ends}
    assert Signature.of(spectrum(), path).barrier == path.linear
    path.meta = {**path.meta, "weight_fingerprints": {"a": "cc" * 32, "b": "bb" * 32}}
    with pytest.raises(ValueError, match=r"spectrum 'model' \(aaaaaaaa\) and barrier 'model' \(bbbbbbbb/cccccccc\)"):
        Signature.of(spectrum(), path)


def test_results_of_different_data_are_flagged():
    found = Signature.of(bowl(), spectrum(meta=META | {"data_fingerprint": "ee" * 32}))
    assert "different data" in found.flags[0]


def test_vectors_have_nan_where_a_field_is_missing():
    found = Signature.of(spectrum())
    vector = found.as_vector(("trace", "roughness"))
    assert vector[0] == found.trace.value
    assert math.isnan(vector[1])
    assert found.as_vector().shape == (len(QUANTITIES),)
    assert found.table1() == {"trace": found.trace, "lambda_max": found.lambda_max, "roughness": None}
    with pytest.raises(ValueError, match="got 'tracee'; there are lambda_max"):
        found.as_vector(("tracee",))


def test_a_saved_signature_is_read_back_whole(tmp_path):
    found = Signature.of(*everything())
    again = fs.load(found.save(tmp_path / "signature"))
    assert isinstance(again, Signature)
    assert again.to_dict() == found.to_dict()
    assert again.missing == found.missing
    np.testing.assert_equal(dataclasses.asdict(again.lambda_max), dataclasses.asdict(found.lambda_max))
    content = json.loads(found.to_json())
    assert content["trace"]["interval"] == list(found.trace.interval)
    assert content["temperature"] is None
    assert content["missing"]["temperature"] == "Adam preconditions"


def test_the_table_has_every_definition_and_every_rule():
    text = str(Signature.of(*everything()))
    for words in ("lambda_max", "tr(H) / D", "Early warnings", "fired", "lower the learning rate"):
        assert words in text
    section = Signature.of(*everything()).section()
    assert [row.label for row in section.quantities] == [quantity.label for quantity in QUANTITIES.values()]
    assert all(row.meaning for row in section.quantities)


def test_default_warnings_of_a_full_signature():
    verdicts = {verdict.rule: verdict for verdict in Signature.of(*everything()).warnings()}
    assert verdicts["curvature above the edge of stability"].status == "fired"
    assert verdicts["curvature above the edge of stability"].threshold == 40.0
    assert verdicts["flat but isolated"].status == "fired"
    assert verdicts["rugged while flat on average"].status == "not applicable"
    assert "no reference" in verdicts["rugged while flat on average"].reason


def test_rules_of_the_user_are_evaluated_beside_others():
    found = Signature.of(*everything())
    mine = Rule("steep", Condition("trace", ">", -1e9), "look at it")
    doubled = Rule("twice", Condition(lambda signature: 2 * signature.trace.value, ">", 1e9), "never")
    assert [verdict.status for verdict in found.warnings((mine, doubled, above_edge(1e9)))] == ["fired", "not fired", "not fired"]


def test_a_nondeterministic_slice_keeps_roughness_from_firing():
    noisy = bowl()
    noisy.meta = META | {"deterministic": False}
    found = Signature.of(noisy)
    assert not found.deterministic
    assert "not deterministic" in found.warnings()[1].reason


def seeds(architecture, worst, curvature=1.0):
    made = []
    for seed, value in enumerate(worst):
        base = Signature.of(spectrum(seed), bowl(), name=f"{architecture}-{seed}", meta={"model": architecture})
        made.append(
            dataclasses.replace(
                base, roughness_worst=Estimate(value, NAN, (NAN, NAN), 2), mean_curvature=between(curvature, curvature)
            )
        )
    return made


def skip_verdict(skip, plain, architectures=("resnet",)):
    return compare(seeds("resnet", skip) + seeds("mlp", plain), skip=architectures).verdicts[0]


def test_the_skip_rule_needs_seeds_of_both_kinds_and_compares_ratios():
    assert skip_verdict([1.0, 1.1, 0.9], [10.0, 11.0, 9.0]).status == "fired"
    assert skip_verdict([10.0, 11.0, 9.0], [1.0, 1.1, 0.9]).status == "not fired"
    assert skip_verdict([1.0, 10.0, 3.0], [2.0, 20.0, 1.0]).status == "inconclusive"
    one = skip_verdict([1.0], [10.0])
    assert one.status == "inconclusive"
    assert one.value == pytest.approx(0.1)
    assert "several seeds" in one.reason
    assert skip_verdict([1.0, 1.1], [2.0, 2.2], None).status == "not applicable"
    assert skip_verdict([1.0, NAN], [NAN, NAN]).status == "not applicable"


def test_the_skip_interval_is_welchs_on_logarithms():
    """Its degrees of freedom are Satterthwaite's, by hand."""
    found = skip_verdict([1.0, 1.1, 1.05, 0.9, 1.0], [8.0, 64.0])
    first, second = np.log([1.0, 1.1, 1.05, 0.9, 1.0]), np.log([8.0, 64.0])
    a, b = first.var(ddof=1) / 5, second.var(ddof=1) / 2
    freedom = (a + b) ** 2 / (a**2 / 4 + b**2 / 1)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(a + b)
    middle = first.mean() - second.mean()
    assert found.value == pytest.approx(math.exp(middle))
    assert found.interval == pytest.approx((math.exp(middle - half), math.exp(middle + half)))


def test_a_comparison_gives_each_signature_the_others_as_reference():
    signatures = [*seeds("a", [1.0], 0.1), *seeds("b", [1.0, 1.0, 1.0, 1.0], 5.0)]
    found = compare(signatures).warnings()
    assert found["a-0"][1].status == "fired"
    assert found["b-0"][1].status == "not fired"
    assert found["b-0"][1].threshold < 5.0


def test_a_comparison_is_saved_shown_and_drawn(tmp_path):
    found = compare(seeds("resnet", [1.0, 2.0]) + seeds("mlp", [3.0, 4.0]), skip=("resnet",))
    again = fs.load(found.save(tmp_path / "comparison"))
    assert isinstance(again, Comparison)
    assert again.to_dict() == found.to_dict()
    assert isinstance(again.signatures[0], Signature)
    assert [verdict.status for verdict in again.verdicts] == [verdict.status for verdict in found.verdicts]
    text = str(found)
    assert "resnet-0" in text
    assert "Comparison rules" in text
    page = write_html(found, tmp_path / "page.html").read_text()
    assert page.count("<svg") >= 1
    assert "one panel per quantity" in page
    assert QUANTITIES["trace"].formula in page


def test_different_settings_do_not_compare():
    other = bowl()
    other.meta = META | {"settings": {"radius": 0.1}}
    found = compare([Signature.of(bowl(), name="a"), Signature.of(other, name="b")])
    assert "the slice results have different settings" in found.flags[0]


def test_arguments_of_a_comparison_are_checked():
    one = Signature.of(bowl())
    with pytest.raises(ValueError, match="at least two, got 1"):
        compare([one])
    with pytest.raises(TypeError, match="got SimpleNamespace"):
        compare([one, bowl()])
    with pytest.raises(ValueError, match="one label per signature, got 1 for 2"):
        compare([one, one], architectures=["a"])
    with pytest.raises(ValueError, match="skip must be among the architectures MLP, got 'resnet'"):
        compare([one, one], skip=["resnet"])


def test_the_page_of_a_signature_has_its_warnings(tmp_path):
    page = write_html(Signature.of(*everything()), tmp_path / "page.html").read_text()
    assert "curvature above the edge of stability" in page
    assert "Distance from the thresholds" in page


def test_panels_draw_one_dot_per_known_value():
    found = compare(seeds("resnet", [1.0, 2.0]) + seeds("mlp", [300.0]))
    axes = found.plot()
    place = found.known().index("roughness_worst")
    dots = [line for line in axes[place].lines if line.get_marker() == "o"]
    assert [float(line.get_xdata()[0]) for line in dots] == [1.0, 2.0, 300.0]
    assert all(line.get_markerfacecolor() == "white" for line in dots)
    assert axes[place].get_xscale() == "log"
    assert axes[found.known().index("roughness")].get_xscale() == "linear"
    import matplotlib.pyplot as plt

    plt.close("all")


def test_infinite_values_leave_a_panel_readable():
    infinite = Estimate(math.inf, NAN, (1.0, math.inf), 4)
    made = [
        dataclasses.replace(each, noise_scale=found)
        for each, found in zip(seeds("a", [1, 2]), (infinite, between(3, 5)), strict=True)
    ]
    found = compare(made)
    place = found.known().index("noise_scale")
    low, high = found.plot()[place].get_xlim()
    assert math.isfinite(low)
    assert high < 20
    both = compare([dataclasses.replace(each, noise_scale=infinite) for each in made])
    assert "no value is finite" in both.plot()[place].texts[0].get_text()
    import matplotlib.pyplot as plt

    plt.close("all")
