"""Cost of a loss evaluation in the probe, in plain forwards of the same model, dtype and batch.

Directions are included: every repeat draws new ones, so that nothing is left over from the one before.
"""

import copy
import itertools

import numpy as np
import pytest
import torch
from interleave import medians, record
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.evaluation.evaluator import Evaluator


def images(count):
    """Noise in the shape of CIFAR-10."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(count, 3, 32, 32, generator=generator), torch.randint(0, 10, (count,), generator=generator))]


MODELS = {  # model, data, directions a repeat, paths
    "mlp, batch 128": (zoo.mlp, lambda: zoo.digits(samples=128), 32, ("loop", "vmap")),
    "cnn, batch 128": (zoo.cnn, lambda: zoo.digits(samples=128), 8, ("loop", "vmap")),
    "tiny_transformer, batch 8": (zoo.tiny_transformer, lambda: zoo.pydoc_text(samples=8, batch_size=8), 4, ("loop",)),
    "resnet18, batch 16": (zoo.resnet18, lambda: images(16), 1, ("loop",)),
}
RADII = np.logspace(-3, -1, 8)
POINTS = [*RADII, *-RADII]  # 16 evaluations per direction, none of them at w


@pytest.mark.parametrize(
    ("precision", "distribution"), [("float64", "gaussian"), ("float32", "gaussian"), ("float32", "rademacher")]
)
@pytest.mark.parametrize("name", MODELS)
def test_evaluation(benchmark, name, precision, distribution):
    build, load, count, paths = MODELS[name]
    torch.manual_seed(0)
    model, data = build(), load()
    objective = fs.Objective(model, data, criterion=F.cross_entropy)
    directions = fs.Directions(objective, count, distribution=distribution)
    dtype, seeds = getattr(torch, precision), itertools.count(1)
    plain = copy.deepcopy(model).to(dtype).eval()
    inputs, targets = data[0]
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs

    def forward():
        with torch.no_grad():
            return F.cross_entropy(plain(inputs), targets)

    written, originals = [tensor.data for tensor in plain.parameters()], [tensor.clone() for tensor in plain.parameters()]

    def copied():
        """The least that any method does which writes weights before a forward."""
        with torch.no_grad():
            torch._foreach_copy_(written, originals)
        return forward()

    def probe(evaluator):
        return evaluator.losses(directions.with_seed(next(seeds)), range(count), POINTS)

    with Evaluator(objective, dtype, method="loop") as loop, Evaluator(objective, dtype, method=paths[-1]) as other:
        evaluators = dict(zip(paths, (loop, other), strict=False))
        for evaluator in evaluators.values():
            found = float(evaluator.losses(directions, [0], [0.0])[0, 0])
            assert found == pytest.approx(float(forward()), rel=1e-5)
            evaluator.prepare(directions, POINTS)
        rivals = {f"fastscape, {path}": lambda e=evaluator: probe(e) for path, evaluator in evaluators.items()}
        rivals["forwards"] = lambda: [forward() for _ in range(count * len(POINTS))]
        rivals["copy of the weights and forward"] = lambda: [copied() for _ in range(count * len(POINTS))]
        times = medians(rivals, repeats=15 if count > 4 else 5 if count > 1 else 3)
        title = f"loss evaluation, {name}, {precision}, {distribution}"
        record(benchmark, title, times, baseline="forwards", per=count * len(POINTS), unit="us")
        benchmark.pedantic(probe, (loop,), rounds=1)
