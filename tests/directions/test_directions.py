"""Normalisation rules have their defining norms, scales theirs, and a direction is the same whoever asks."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.directions.normalise import RULES, Normaliser
from fastscape.ops.direction_dot.reference import squares
from fastscape.runs.peak import PeakMemory

EXACT = 1e-11  # c = 1e-12 in the division, relative to norms of order one


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


@pytest.fixture
def objective(net, digits):
    return fs.Objective(net, digits, criterion=F.cross_entropy, dtype=torch.float64)


def norm(tensors):
    return torch.cat([tensor.double().flatten() for tensor in tensors]).norm()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", ["unit", "relative"])
def test_scales_give_unit_and_relative_norms(objective, rule, scale):
    directions = fs.Directions(objective, 3, normalize=rule, scale=scale)
    expected = 1.0 if scale == "unit" else objective.norm
    for index, direction in enumerate(directions):
        assert float(norm(direction.values())) == pytest.approx(expected, rel=EXACT)
        assert directions.tensors(index)[1] == pytest.approx(expected, rel=EXACT)


def test_tensor_rule_matches_every_tensors_norm(objective):
    direction, base = fs.Directions(objective, 1)[0], objective.base
    for name, tensor in base.items():
        assert float(direction[name].norm()) == pytest.approx(float(tensor.norm()), rel=EXACT, abs=1e-30)


def test_filter_rule_matches_every_filters_norm_and_leaves_biases(objective):
    directions = fs.Directions(objective, 1, normalize="filter", scale="none")
    direction, base = directions[0], objective.base
    for name in ("0.weight", "4.weight"):
        torch.testing.assert_close(direction[name].flatten(1).norm(dim=1), base[name].flatten(1).norm(dim=1), rtol=EXACT, atol=0)
    still = [name for name, tensor in direction.items() if not tensor.any()]
    assert still == ["0.bias", "1.weight", "1.bias", "4.bias"]
    assert directions.skipped_fraction == pytest.approx(22 / objective.size)


def test_filter_dim_and_one_d_are_honoured(objective):
    base = objective.base
    raw = [torch.randn_like(tensor) for tensor in base.values()]
    moved, _ = Normaliser(base, "filter", one_d="same", filter_dim={"4.weight": 1})(raw, "none", torch.float64)
    named = dict(zip(base, moved, strict=True))
    torch.testing.assert_close(named["4.weight"].norm(dim=0), base["4.weight"].norm(dim=0), rtol=EXACT, atol=0)
    assert float(named["0.bias"].norm()) == pytest.approx(float(base["0.bias"].norm()), rel=EXACT)
    still = fs.Directions(objective, 1, one_d="zero")
    assert [name for name, tensor in still[0].items() if not tensor.any()] == ["0.bias", "1.weight", "1.bias", "4.bias"]


def test_module_rule_matches_the_norm_of_every_modules_parameters(objective):
    direction, base = fs.Directions(objective, 1, normalize="module", scale="none")[0], objective.base
    for module in ("0", "1", "4"):
        pair = [f"{module}.weight", f"{module}.bias"]
        assert float(norm([direction[name] for name in pair])) == pytest.approx(
            float(norm([base[name] for name in pair])), rel=EXACT
        )


def test_global_element_and_none_rules_are_their_formulas(objective):
    base = objective.base
    raw = fs.Directions(objective, 1, normalize="none", scale="none")[0]
    factor = float(norm(base.values()) / norm(raw.values()))
    scaled = fs.Directions(objective, 1, normalize="global", scale="none")[0]
    by_weight = fs.Directions(objective, 1, normalize="element", scale="none")[0]
    for name in base:
        torch.testing.assert_close(scaled[name], raw[name] * factor, rtol=EXACT, atol=0)
        torch.testing.assert_close(by_weight[name], raw[name] * base[name].abs(), rtol=EXACT, atol=0)


def test_a_direction_does_not_depend_on_count_order_or_other_directions(objective):
    many, few = fs.Directions(objective, 9, seed=5), fs.Directions(objective, 2, seed=5)
    backwards = [many[index] for index in (8, 4, 1, 0)]
    for name in objective.names:
        assert torch.equal(backwards[2][name], few[1][name])
        assert torch.equal(backwards[3][name], few[0][name])
        assert torch.equal(many[-1][name], backwards[0][name])
        assert torch.equal(many.with_seed(6)[3][name], fs.Directions(objective, 4, seed=6)[3][name])


def test_blocks_of_large_directions_are_made_tensor_by_tensor(monkeypatch):
    model, data = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(8))), [(torch.randn(4, 16), torch.arange(4))]
    directions = fs.Directions(fs.Objective(model, data, criterion=F.cross_entropy), 3)
    expected = directions.block([0, 2], torch.float64)
    monkeypatch.setattr("fastscape.directions.noise._TOGETHER", 0)
    with PeakMemory() as spent:
        found = directions.block([0, 2], torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert spent.peak <= (8 + 3.5) * found[0].nbytes


def test_another_seed_has_norms_of_its_own(objective):
    first = fs.Directions(objective, 2, seed=5)
    first.scales(0)  # keeps the norms of its own directions
    assert (first.with_seed(6).scales(0) == fs.Directions(objective, 2, seed=6).scales(0)).all()
    assert (first.with_seed(6).scales(0) != first.scales(0)).any()


def test_directions_can_be_copied(objective):
    directions = fs.Directions(objective, 2, seed=5)
    other = copy.deepcopy(directions)
    assert all(torch.equal(one, two) for one, two in zip(directions[1].values(), other[1].values(), strict=True))


@pytest.mark.parametrize("rule", ["module", "global"])
def test_what_does_not_move_has_no_part_in_its_groups_norm(objective, rule):
    direction = fs.Directions(objective, 1, normalize=rule, one_d="zero", scale="none")[0]
    moved = [name for name, tensor in objective.base.items() if tensor.ndim > 1]
    whole = norm([direction[name] for name in moved]), norm([objective.base[name] for name in moved])
    assert float(whole[0]) == pytest.approx(float(whole[1]), rel=EXACT)
    if rule == "module":
        for name in moved:
            assert float(direction[name].norm()) == pytest.approx(float(objective.base[name].norm()), rel=EXACT)


@pytest.mark.parametrize("rule", RULES)
def test_infinite_weights_that_do_not_move_change_nothing(net, digits, rule):
    """A class switched off by a bias of -inf has a finite loss."""
    plain = fs.Directions(fs.Objective(net, digits, criterion=F.cross_entropy), 2, normalize=rule, one_d="zero", scale="unit")
    expected = plain[1]
    with torch.no_grad():
        net[4].bias[3] = -torch.inf
    found = fs.Directions(fs.Objective(net, digits, criterion=F.cross_entropy), 2, normalize=rule, one_d="zero", scale="unit")[1]
    assert all(torch.equal(one, other) for one, other in zip(found.values(), expected.values(), strict=True))


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_a_subset_of_parameters_gets_the_same_bits(net, digits, objective, distribution):
    with torch.no_grad():
        net[1].bias.fill_(0.1)  # nothing skipped: the relative factor is exactly 1
    whole = fs.Directions(objective, 2, distribution=distribution)
    part = fs.Objective(net, digits, criterion=F.cross_entropy, dtype=torch.float64, params=["4.*", "1.bias"])
    for name, tensor in fs.Directions(part, 2, distribution=distribution)[1].items():
        assert torch.equal(tensor, whole[1][name])


def test_the_same_raw_bits_serve_every_checkpoint(net, objective):
    before = fs.Directions(objective, 1, scale="none")[0]
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.mul_(2)  # a power of two rescales without rounding
    after = fs.Directions(objective, 1, scale="none")[0]
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], 2 * tensor, rtol=EXACT, atol=0)


def test_zero_groups_are_skipped_or_refused(net, objective):
    with torch.no_grad():
        net[4].bias.zero_()
        net[4].weight[3].zero_()
    directions = fs.Directions(objective, 1)
    assert not directions[0]["4.bias"].any()
    assert directions.skipped_fraction == pytest.approx((10 + 4) / objective.size)  # batch-norm's bias starts at zero
    assert float(norm(directions[0].values())) == pytest.approx(objective.norm, rel=EXACT)
    rows = fs.Directions(objective, 1, normalize="filter")
    assert not rows[0]["4.weight"][3].any()
    with pytest.raises(ValueError, match="zero_norm='error', got zero-norm weights in '1.bias'"):
        fs.Directions(objective, 1, zero_norm="error")


def test_norms_do_not_depend_on_threads():
    values = torch.randn(200_001, generator=torch.Generator().manual_seed(0))
    before, sums = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            sums.add(float(squares(values)))
    finally:
        torch.set_num_threads(before)
    assert len(sums) == 1
    assert sums.pop() == pytest.approx(float(values.double().square().sum()), rel=1e-14)


def test_given_directions_are_scaled_and_absent_names_stay(objective):
    tensor = torch.randn(10, generator=torch.Generator().manual_seed(0))
    direction = fs.Directions.given(objective, {"4.bias": tensor})[0]
    torch.testing.assert_close(direction["4.bias"], tensor.double() / tensor.double().norm())
    assert not any(value.any() for name, value in direction.items() if name != "4.bias")
    relative = fs.Directions.given(objective, [{"4.bias": tensor}] * 3, scale="relative")
    assert len(relative) == 3
    assert float(norm(relative[2].values())) == pytest.approx(objective.norm, rel=EXACT)
    assert float(norm(fs.Directions.given(objective, {"4.bias": tensor}, scale="none")[0].values())) == pytest.approx(
        float(tensor.norm())
    )


def test_difference_points_from_one_checkpoint_to_the_other(net, objective):
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    end = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in start.items()}
    directions = fs.Directions.difference(objective, start, end, scale="none")
    at_end = fs.losses(objective.at(start), directions, [1.0], method="loop")
    buffers = {name: end[name] if name in objective.names else tensor for name, tensor in start.items()}
    assert float(at_end) == pytest.approx(objective.at(buffers).loss(), abs=1e-6)


def test_gradient_direction_has_the_slope_of_the_gradient_norm(objective):
    gradient = objective.gradient()
    found = fs.responses(objective, fs.Directions.gradient(objective), [1e-5], method="loop")
    assert float(found.odd[0, 0] / 1e-5) == pytest.approx(float(norm(gradient.values())), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, r"count must be an integer in \[1, 2\^32\), got 0"),
        ({"seed": -1}, r"seed must be an integer in \[0, 2\^64\), got -1"),
        ({"distribution": "cauchy"}, "distribution must be 'gaussian' or 'rademacher', got 'cauchy'"),
        ({"normalize": "layer"}, "normalize must be one of tensor, filter, module, global, element, none, got 'layer'"),
        ({"scale": "absolute"}, "scale must be 'unit', 'relative' or 'none', got 'absolute'"),
        ({"one_d": "skip"}, "one_d must be 'same', 'zero' or None, got 'skip'"),
        ({"zero_norm": "ignore"}, "zero_norm must be 'skip' or 'error', got 'ignore'"),
        ({"filter_dim": {"4.weight": 2}}, "filter_dim must name a dimension of a probed parameter, got '4.weight': 2"),
    ],
)
def test_bad_arguments_are_named(objective, arguments, message):
    with pytest.raises(ValueError, match=message):
        fs.Directions(objective, **arguments)


def test_a_model_is_no_objective(net):
    for call in (lambda: fs.Directions(net), lambda: fs.Directions.given(net, {}), lambda: fs.losses(net, None, [0.1])):
        with pytest.raises(TypeError, match="objective must be a fastscape.Objective, got Sequential"):
            call()


def test_bad_given_directions_are_named(objective):
    for tensors, message in (
        ({"nope": torch.ones(1)}, "'nope', which is not a probed parameter"),
        ({"4.bias": torch.ones(3)}, r"must have shape \(10,\), got \(3,\)"),
        ({"4.bias": torch.full((10,), torch.nan)}, "must be finite"),
        ({"4.bias": torch.zeros(10)}, "must not be zero"),
        ([], "at least one direction"),
    ):
        with pytest.raises(ValueError, match=message):
            fs.Directions.given(objective, tensors)
    with pytest.raises(IndexError, match="direction 4 is out of range for 4 directions"):
        fs.Directions(objective, 4)[4]
    zero = fs.Objective(_zero_net(), [(torch.ones(1, 2), torch.ones(1, 1))], criterion=F.mse_loss)
    with pytest.raises(ValueError, match="zero-norm weights in every group that one_d='same' moves"):
        fs.Directions(zero)


def _zero_net():
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model
