"""Weights are floating-point numbers: codes of quantised ones are refused by name, wherever a state comes in."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.runs.checkpoints import checkpoints

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CODES = (
    *(torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz),
)


@pytest.fixture
def objective():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    return fs.Objective(model, [(torch.randn(6, 4), torch.arange(6) % 3)], criterion=F.cross_entropy)


def state_in(objective, dtype, name="0.weight"):
    state = {key: value.clone() for key, value in objective.model.state_dict().items()}
    return state | {name: state[name].to(dtype)}


@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_codes_of_weights_are_refused_by_name(objective, dtype, untouched, tmp_path):
    state = state_in(objective, dtype)
    words = rf"0\.weight holds {dtype}, the model torch\.float32; pass weights of the model's dtype.*dequantised"
    with untouched(objective.model):
        with pytest.raises(ValueError, match=words):
            objective.at(state)
        with pytest.raises(ValueError, match=words):
            fs.barrier(objective, None, state)
        with pytest.raises(ValueError, match=words):
            fs.Directions.difference(objective, objective.model.state_dict(), state)
    torch.save(state, tmp_path / "codes.pt")
    (file,) = checkpoints([tmp_path / "codes.pt"])
    with pytest.raises(ValueError, match=rf"codes\.pt: .*{words}"):
        file.at(objective)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_wider_float_is_a_weight(objective, dtype):
    assert objective.at(state_in(objective, dtype)).loss() == pytest.approx(objective.loss(), rel=2e-2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32])
def test_counters_may_be_of_another_dtype(objective, dtype):
    """Averages over checkpoints make floats of them."""
    assert objective.at(state_in(objective, dtype, "1.num_batches_tracked")).loss() == objective.loss()


def test_running_statistics_are_weights_too(objective):
    with pytest.raises(ValueError, match=r"1\.running_mean holds torch\.int8"):
        objective.at(state_in(objective, torch.int8, "1.running_mean"))
