"""Every op on a CUDA device against the CPU: the comparisons of the contract suite, on hardware (``make gpu``)."""

import pytest
import torch
from ops.samples import BITWISE, SAMPLES, flat
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.ops._registry import OPERATORS

pytestmark = pytest.mark.gpu
CASES = [(name, index) for name in OPERATORS for index in range(len(list(SAMPLES[name]())))]


def moved(value, device):
    """Arguments or results with their tensors on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return type(value)(moved(item, device) for item in value) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(("name", "index"), CASES)
def test_the_device_gives_the_results_of_the_cpu(name, index):
    arguments = list(SAMPLES[name]())[index]
    expected = flat(OPERATORS[name](*arguments))
    found = flat(moved(OPERATORS[name](*moved(arguments, "cuda")), "cpu"))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, **tolerance(name, other))


def tolerance(name, expected):
    """None for bits; plain differences of float32, at large radii, lose digits relative to the largest."""
    if name in BITWISE:
        return {"rtol": 0.0, "atol": 0.0}
    if name.endswith("_difference") and expected.numel():
        return {"rtol": 0.0, "atol": 32 * torch.finfo(expected.dtype).eps * float(expected.nan_to_num().abs().max())}
    return {}


@pytest.mark.parametrize("path", ["loop", "vmap"])
def test_responses_of_a_model_are_those_of_the_cpu(path):
    torch.manual_seed(0)
    model, data = zoo.mlp(activation="tanh"), zoo.digits(samples=64)
    results = []
    for device in ("cpu", "cuda"):
        objective = fs.Objective(model, data, criterion=F.cross_entropy, device=device)
        results.append(fs.responses(objective, fs.Directions(objective, 4), [1e-2, 1e-1], method=path))
    assert results[1].even == pytest.approx(results[0].even, rel=1e-6, abs=1e-12)
    assert results[1].odd == pytest.approx(results[0].odd, rel=1e-6, abs=1e-12)
