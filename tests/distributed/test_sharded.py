"""Sharded models (FSDP2, DTensor) give the bits of unsharded ones, on 1, 2 and 4 processes, and are left as they were."""

import numpy as np
import pytest
from cases_sharded import RULES
from launched import sharded

pytestmark = pytest.mark.distributed
SIZES = (1, 2, 4)  # of groups; with 4, one process holds nothing of the last layer


@pytest.fixture(scope="session", params=SIZES, ids="of{}".format)
def found(request, crew):
    """The size of a group, and what its processes found, by case."""
    return request.param, crew("sharded:everything", request.param, sharded(request.param))


def of(found, name):
    size, ranks = found
    if name not in ranks[0]:
        pytest.skip(f"not on {size} processes")
    return ranks[0][name]


def test_all_processes_find_the_same(found):
    _, ranks = found
    own = ("restored",)  # digests of a process's own shards
    for name in set(ranks[0]) - set(own):
        assert all(rank[name] == ranks[0][name] for rank in ranks), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_objective_of_a_sharded_model_is_the_same_function(found, dtype):
    case = of(found, f"same function, {dtype}")
    for name in ("size", "names", "norm", "fingerprint", "loss"):
        plain, cut = case[name]
        assert plain == cut, name
    assert case["gradient"] <= 64 * np.finfo(dtype).eps  # sums over processes in another order
    assert case["kinds"] == ["DTensor"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", ["responses, float32", "responses, float64", "responses, signs"])
def test_responses_are_those_of_the_unsharded_loop_to_the_byte(found, case, rule):
    if rule not in of(found, case):
        pytest.skip("on two processes")
    plain, cut, precision = of(found, case)[rule]
    assert plain == cut
    assert precision == ("float64" if "64" in case else "float32")


def test_losses_of_one_batch_and_norms_of_many_blocks(found):
    for plain, cut in of(found, "one batch, many blocks").values():
        assert plain == cut


def test_the_multifractal_probe_gives_the_same_result(found):
    plain, cut = of(found, "multifractal")
    assert plain == cut


def test_everything_comes_back_also_after_a_forward_that_raises(found):
    for rank in found[1]:
        case = rank["restored"]
        assert case["after"] == case["before"]
        assert case["raised"] == "of the model"
        assert case["then"] == case["before"]


def test_the_guard_against_stale_weights_is_what_makes_displaced_losses_right(found):
    case = of(found, "stale")
    assert case["guarded"] == case["expected"] == case["again"]
    assert case["unguarded"] != case["expected"]


def test_all_processes_make_as_many_forwards(found):
    size, ranks = found
    batches = 5
    assert all(rank["forwards"] == 3 * -(-batches // size) for rank in ranks)  # the gate's two, and the losses


REFUSALS = {
    "param_dtype": r"MixedPrecisionPolicy(param_dtype=torch.bfloat16)",
    "reshard_after_forward": "got reshard_after_forward=False",
    "placement": "got (Shard(dim=1),) for the parameter 'weight'",
    "element": "normalize='element'",
    "precision": "precision must be 'float32'",
    "difference": "precision must be 'float32' or None for a sharded model, got 'difference'",
    "path": "method must be 'loop' or None for a sharded model, got 'vmap'",
    "dtype": "dtype must be the one dtype of the sharded model's parameters, or None, got torch.float64",
    "half": "must be in float32 or float64, got torch.bfloat16",
    "at": "other weights than its own",
    "given": "given directions",
    "batch norm": "batch_norm='batch'",
    "budget": "budget must be None for a sharded model",
    "spectrum budget": "budget must be None for a sharded model",
    "optimizer": "optimizer=",
    "ggn": "operator='ggn'",
    "spectrum path": "method must be 'gradient difference' or None",
    "hessian": "must hold whole weights",
    "slice": "must hold whole weights",
    "sharpness": "must hold whole weights",
    "reduce_dtype": "MixedPrecisionPolicy(reduce_dtype=torch.bfloat16) rounds the gradients",
    "data": "every process must hold the same data, batch weights",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_had_is_refused_by_name_in_every_process(found, name):
    assert set(of(found, "refused")) == set(REFUSALS)
    assert REFUSALS[name] in of(found, "refused")[name]


def test_a_loss_that_changes_is_refused(found):
    words, unchanged = of(found, "nondeterministic")
    assert "the loss must be deterministic" in words
    assert unchanged


@pytest.mark.parametrize("name", ["frozen", "plain beside", "replicated", "cut"])
def test_other_ways_to_hold_parameters(found, name):
    equal, close, off = of(found, "beside")[name]
    assert equal or name == "cut"  # where products of matrices are cut, their sums are in another order
    assert all(close)
    assert off <= 1e-6


def test_groups_that_hold_the_same_shards(found):
    (plain, cut), off = of(found, "hybrid")
    assert plain == cut
    assert off <= 64 * np.finfo(np.float32).eps


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_are_those_of_the_hessian_to_the_error_that_they_state(found, dtype):
    case = of(found, f"products, {dtype}")
    assert case["product"] <= 10 * max(case["error"], np.finfo(dtype).eps ** (2 / 3))
    assert case["restored"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_spectra_are_those_of_the_unsharded_model(found, dtype):
    case = of(found, f"products, {dtype}")
    values, expected = case["eigenvalues"]
    residuals = np.add(*case["residuals"])
    slack = 20 * case["error"] * max(map(abs, expected))
    assert np.abs(np.subtract(values, expected)).max() <= residuals.max() + slack
    assert case["path"] == "gradient difference"
    assert case["data error"] is None
    scale = max(map(abs, expected))
    assert abs(case["traces"][0] - case["traces"][1]) <= 0.05 * scale + 20 * case["error"] * scale
