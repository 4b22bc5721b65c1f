"""Rules fire where the whole interval is beyond the threshold, and say why where they cannot tell."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from fastscape.numerics.estimate import Estimate
from fastscape.probes.signature.rules import (
    DEFAULT_RULES,
    Condition,
    Rule,
    above_edge,
    beyond,
    conjunction,
    flat_but_isolated,
    rugged_but_flat,
)
from fastscape.probes.spectrum import critical as stability

INF, NAN = math.inf, math.nan


@dataclass
class Stub:
    """The fields of a signature that the default rules look at."""

    lambda_max: Estimate | None = None
    preconditioned_sharpness: Estimate | None = None
    critical_sharpness: float | None = None
    roughness_detrended: Estimate | None = None
    roughness_noise: float | None = None
    mean_curvature: Estimate | None = None
    normalized_sharpness: Estimate | None = None
    barrier: Estimate | None = None
    deterministic: bool | None = True
    missing: dict[str, str] = field(default_factory=dict)


def between(low, high):
    return Estimate((low + high) / 2, (high - low) / 4, (low, high), 10)


@pytest.mark.parametrize(
    ("operator", "below", "touching", "crossing", "above"),
    [
        (">", False, False, None, True),
        (">=", False, None, None, True),
        ("<", True, None, None, False),
        ("<=", True, True, None, False),
    ],
)
def test_an_interval_is_beyond_a_threshold_only_as_a_whole(operator, below, touching, crossing, above):
    assert beyond(operator, (1, 2), 3) is below
    assert beyond(operator, (1, 2), 2) is touching
    assert beyond(operator, (1, 2), 1.5) is crossing
    assert beyond(operator, (1, 2), 0.5) is above
    assert beyond(operator, (NAN, NAN), 1) is None
    assert beyond(operator, (1, 2), NAN) is None


@pytest.mark.parametrize(("operator", "at"), [(">", False), (">=", True), ("<", False), ("<=", True)])
def test_an_exact_number_at_the_threshold_is_decided_by_equality(operator, at):
    assert beyond(operator, (2, 2), 2) is at


def test_a_lower_bound_can_refute_smallness_but_never_show_it():
    assert beyond("<=", (1e-5, INF), 1e-4) is None
    assert beyond("<=", (1e-3, INF), 1e-4) is False
    assert beyond(">", (1e-3, INF), 1e-4) is True


def test_conjunction_is_kleenes():
    table = {
        (True, True): True,
        (True, None): None,
        (True, False): False,
        (None, None): None,
        (None, False): False,
        (False, False): False,
    }
    for (a, b), expected in table.items():
        assert conjunction([a, b]) is expected
        assert conjunction([b, a]) is expected
    assert conjunction([True, None, False]) is False


RULE = Rule("both", (Condition("a", ">", 1.0), Condition("b", "<", 5.0)), "do this", "a paper")
YES_A, NO_A, OPEN_A = between(2, 3), between(0, 0.5), between(0, 3)
YES_B, NO_B, OPEN_B = between(1, 2), between(6, 7), between(4, 6)


@pytest.mark.parametrize(
    ("a", "b", "status"),
    [
        (YES_A, YES_B, "fired"),
        (YES_A, NO_B, "not fired"),
        (YES_A, OPEN_B, "inconclusive"),
        (YES_A, None, "not applicable"),
        (OPEN_A, OPEN_B, "inconclusive"),
        (OPEN_A, NO_B, "not fired"),
        (OPEN_A, None, "not applicable"),
        (NO_A, OPEN_B, "not fired"),
        (NO_A, None, "not fired"),
        (None, NO_B, "not fired"),
        (None, YES_B, "not applicable"),
        (None, None, "not applicable"),
    ],
)
def test_combined_rules_follow_the_three_valued_table(a, b, status):
    signature = SimpleNamespace(a=a, b=b, missing={"a": "no time", "b": "no time"})
    found = RULE.verdict(signature)
    assert found.status == status
    assert found.advice == "do this"
    assert found.source == "a paper"
    assert (found.reason == "") == (status == "fired")
    if status == "not applicable":
        assert "no time" in found.reason


def test_every_verdict_prints_value_interval_threshold_and_source():
    text = str(RULE.verdict(SimpleNamespace(a=YES_A, b=YES_B)))
    for words in ("both: fired", "a = 2.5 [2, 3], fires at > 1", "b = 1.5 [1, 2], fires at < 5", "do this", "(a paper)"):
        assert words in text
    text = str(RULE.verdict(SimpleNamespace(a=OPEN_A, b=YES_B)))
    assert "inconclusive: the interval of a crosses 1" in text
    assert "[0, 3]" in text


def test_the_deciding_condition_gives_value_and_threshold():
    found = RULE.verdict(SimpleNamespace(a=YES_A, b=NO_B))
    assert (found.value, found.interval, found.threshold) == (6.5, (6, 7), 5.0)


def test_estimates_without_interval_are_inconclusive():
    single = Estimate(7.0, NAN, (NAN, NAN), 1)
    found = Rule("r", Condition("a", ">", 1.0), "").verdict(SimpleNamespace(a=single))
    assert found.status == "inconclusive"
    assert "has no interval" in found.reason


@pytest.mark.parametrize("answer", [(3.0, (2.5, 3.5)), Estimate(3.0, 0.1, (2.5, 3.5), 4), 3.0])
def test_user_rules_may_be_functions_of_the_signature(answer):
    rule = Rule("mine", Condition(lambda signature: answer, ">", 2.0, "my number"), "wait")
    found = rule.verdict(SimpleNamespace())
    assert found.status == "fired"
    assert "my number = 3" in found.evidence
    assert found.source == "user"


@pytest.mark.parametrize("bad", [lambda s: s.nothing, lambda s: "text", lambda s: (1, 2, 3)])
def test_a_user_function_that_raises_loses_no_other_rule(bad):
    found = Rule("mine", Condition(bad, ">", 2.0), "").verdict(SimpleNamespace())
    assert found.status == "not applicable"
    assert "the condition raised" in found.reason


def test_a_rule_on_an_unknown_field_is_an_error():
    with pytest.raises(ValueError, match="'lamda_max', which is no field of Stub"):
        Rule("typo", Condition("lamda_max", ">", 1.0), "").verdict(Stub())


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="operator must be one of"):
        Condition("a", "==", 1.0)
    with pytest.raises(ValueError, match="threshold must be a number"):
        Condition("a", ">", NAN)
    with pytest.raises(TypeError, match="quantity must be"):
        Condition(3, ">", 1.0)
    with pytest.raises(TypeError, match="when must be a Condition"):
        Rule("r", (), "")
    with pytest.raises(ValueError, match="r0 must be positive"):
        rugged_but_flat(0)
    with pytest.raises(ValueError, match="quantile must lie"):
        rugged_but_flat(quantile=1.0)


@pytest.mark.parametrize(
    ("critical", "expected"),
    [
        (stability.gradient_descent(0.05), 2 / 0.05),
        (stability.polyak(0.05, 0.9), 2 * 1.9 / 0.05),
        (stability.nesterov(0.05, 0.9), (2 + 2 * 0.9) / ((1 + 2 * 0.9) * 0.05)),
        (stability.averaged_momentum(0.05, 0.9), 38 / 0.05),
    ],
    ids=["gradient descent", "heavy ball", "Nesterov", "Adam"],
)
def test_the_edge_is_that_of_the_optimizer(critical, expected):
    at = lambda factor: Stub(  # noqa: E731
        preconditioned_sharpness=between(0.99 * factor * expected, 1.01 * factor * expected), critical_sharpness=critical
    )
    found = above_edge().verdict(at(1.1))
    assert found.status == "fired"
    assert found.threshold == pytest.approx(expected, rel=1e-12)
    assert above_edge().verdict(at(0.9)).status == "not fired"
    assert above_edge().verdict(at(1.0)).status == "inconclusive"


def test_the_edge_without_an_optimizer_is_not_applicable_and_a_users_threshold_is():
    signature = Stub(lambda_max=between(9, 10), missing={"preconditioned_sharpness": "no optimizer was given"})
    assert above_edge().verdict(signature).status == "not applicable"
    assert "no optimizer was given" in above_edge().verdict(signature).reason
    found = above_edge(8.0).verdict(signature)
    assert found.status == "fired"
    assert "threshold of the user" in found.source


FLAT = [Stub(mean_curvature=between(c, c)) for c in (1.0, 2.0, 3.0, 4.0)]  # 25 % quantile 1.75


def rough(roughness, noise=1e-9, curvature=None, **fields):
    return Stub(roughness_detrended=roughness, roughness_noise=noise, mean_curvature=curvature or between(0.9, 1.1), **fields)


def test_roughness_counts_above_its_noise_floor_and_beside_small_curvature():
    rule = rugged_but_flat(r0=10)
    assert rule.verdict(rough(between(1.1e-8, 2e-8)), FLAT).status == "fired"
    assert rule.verdict(rough(between(0.9e-8, 2e-8)), FLAT).status == "inconclusive"
    assert rule.verdict(rough(between(1e-9, 0.9e-8)), FLAT).status == "not fired"
    steep = rule.verdict(rough(between(1e-7, 2e-7), curvature=between(1.8, 2.0)), FLAT)
    assert steep.status == "not fired"
    assert steep.threshold == 1.75


def test_what_is_small_needs_a_reference():
    found = rugged_but_flat().verdict(rough(between(1e-7, 2e-7)), FLAT[:3])
    assert found.status == "not applicable"
    assert "no reference: tr(H) / D of 4 other signatures" in found.reason
    assert rugged_but_flat().verdict(rough(between(1e-9, 2e-9)), ()).status == "not fired"


def test_roughness_of_a_nondeterministic_loss_never_fires():
    found = rugged_but_flat().verdict(rough(between(1e-2, 2e-2), deterministic=False), FLAT)
    assert found.status == "not applicable"
    assert "not deterministic" in found.reason


def test_flat_but_isolated_needs_an_upper_bound_of_the_sharpness():
    rule = flat_but_isolated()
    isolated = between(1.2, 1.5)
    assert rule.verdict(Stub(normalized_sharpness=between(2e-5, 9e-5), barrier=isolated)).status == "fired"
    assert rule.verdict(Stub(normalized_sharpness=Estimate(5e-5, NAN, (5e-5, INF), 4), barrier=isolated)).status == "inconclusive"
    assert rule.verdict(Stub(normalized_sharpness=Estimate(2e-4, NAN, (2e-4, INF), 4), barrier=isolated)).status == "not fired"
    assert rule.verdict(Stub(normalized_sharpness=between(2e-5, 9e-5), barrier=between(0.8, 1.3))).status == "inconclusive"


def test_the_default_rules_say_what_is_missing_of_an_empty_signature():
    assert [rule.verdict(Stub()).status for rule in DEFAULT_RULES] == ["not applicable"] * 3
