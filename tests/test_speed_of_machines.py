"""How fast a machine is decides what an answer costs, and none of its numbers."""

import numpy as np
import pytest
import torch
from torch import nn

import fastscape as fs
from fastscape.evaluation.effort import multiplications

RADII = (1e-4, 1e-3, 1e-2, 1e-1)


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    draw = torch.Generator().manual_seed(1)
    data = [(torch.randn(10, 6, generator=draw), torch.randint(0, 3, (10,), generator=draw)) for _ in range(2)]
    return fs.Objective(model, data, criterion=nn.functional.cross_entropy)


def of_responses(precision, method):
    def call(objective):
        directions = fs.Directions(objective, count=5)
        found = fs.responses(objective, directions, RADII, precision=precision, method=method)
        return found.even, found.odd, found.noise

    return call


def of_probe(objective):
    settings = fs.ProbeSettings(count=4, banks=2, radii=RADII, precision="difference")
    found = fs.multifractal(objective, settings, method="graph").measured
    return found.even, found.odd, found.noise


def of_spectrum(objective):
    found = fs.spectrum(objective, k=2, method="graph", nodes=8)
    return found.eigenvalues, found.residuals, found.trace.value, np.array(found.trace.stderr)


def of_slice(objective):
    found = fs.slice1d(objective, points=7)
    return found.losses, found.noise_floor


def of_forms(objective):
    found = fs.quadratic_forms(objective, fs.Directions(objective, count=4), method="graph")
    return found.curvature, found.slope


CALLS = {
    "responses, float64": of_responses("float64", "loop"),
    "responses, float32": of_responses("float32", "vmap"),
    "responses, difference": of_responses("difference", "graph"),
    "multifractal": of_probe,
    "spectrum": of_spectrum,
    "slice": of_slice,
    "forms": of_forms,
}


@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
@pytest.mark.parametrize("name", CALLS)
def test_numbers_do_not_depend_on_how_long_a_forward_takes(name, clock):
    found = []
    for clock.tick in (1e-6, 1.0):  # seconds between two looks at the clock
        found.append(CALLS[name](small()))
    for fast, slow in zip(*found, strict=True):
        assert np.asarray(fast).tobytes() == np.asarray(slow).tobytes()


def test_multiplications_are_counted_from_parameters_and_samples():
    objective = small()
    assert multiplications(objective) == (6 * 8 + 8 + 8 * 3 + 3) * 20
    assert multiplications(objective, 10) == multiplications(objective) / 2
