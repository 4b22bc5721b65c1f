"""Cost of a loss evaluation in the probe, in plain forwards of the same model, dtype and batch."""

import copy

import numpy as np
import pytest
import torch
from interleave import medians
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.evaluation.evaluator import Evaluator

MODELS = {
    "mlp": lambda: (zoo.mlp(), zoo.digits(samples=128)),
    "cnn": lambda: (zoo.cnn(), zoo.digits(samples=128)),
    "tiny_transformer": lambda: (zoo.tiny_transformer(), zoo.pydoc_text(samples=8, batch_size=8)),
}
RADII = np.logspace(-3, -1, 8)
DIRECTIONS = 8


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
def test_evaluation(benchmark, name, precision):
    torch.manual_seed(0)
    model, data = MODELS[name]()
    objective = fs.Objective(model, data, criterion=F.cross_entropy)
    directions = fs.Directions(objective, DIRECTIONS)
    dtype = getattr(torch, precision)
    plain = copy.deepcopy(model).to(dtype).eval()
    inputs, targets = data[0]
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    radii = [0.0, *RADII, *-RADII]
    points = DIRECTIONS * len(radii)

    def forward():
        with torch.no_grad():
            return F.cross_entropy(plain(inputs), targets)

    with Evaluator(objective, dtype, path="loop") as loop, Evaluator(objective, dtype, path="vmap") as vmap:
        rivals = {
            path.prepare(directions, radii).name: lambda path=path: path.losses(directions, range(DIRECTIONS), radii)
            for path in (loop, vmap)
        }
        for run in rivals.values():
            assert float(run()[0, 0]) == pytest.approx(float(forward()), rel=1e-5)
        times = medians({**rivals, "forwards": lambda: [forward() for _ in range(points)]}, repeats=5)
    benchmark.extra_info["evaluation / forward"] = {path: round(times[path] / times["forwards"], 3) for path in rivals}
    chosen = fs.responses(objective, directions, RADII, precision=precision).path
    benchmark.extra_info["chosen path"] = f"{chosen.name}: {chosen.reason}"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.pedantic(fs.losses, (objective, directions, radii), {"path": chosen.name}, rounds=3, warmup_rounds=1)
