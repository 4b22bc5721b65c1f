"""Blocks by halves where memory runs out."""

import numpy as np
import pytest
import torch

import fastscape as fs
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.evaluation.evaluator import Evaluator

RADII = [1e-3, 1e-2]


def short_of_memory(kind, most, monkeypatch, error):
    """``kind`` fails for more than ``most`` directions at a time; the sizes that were tried."""
    whole, tried = kind.responses, []

    def responses(self, directions, indices, radii, **options):
        tried.append(len(indices))
        if len(indices) > most:
            raise error
        return whole(self, directions, indices, radii, **options)

    monkeypatch.setattr(kind, "responses", responses)
    return tried


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("can't allocate memory: x")])
@pytest.mark.parametrize(
    ("kind", "precision", "path"), [(DifferenceEvaluator, "difference", "graph"), (Evaluator, "float64", "vmap")]
)
def test_responses_are_those_of_whole_blocks(kind, precision, path, error, tanh_objective, monkeypatch, untouched):
    directions = fs.Directions(tanh_objective, count=8)
    whole = fs.responses(tanh_objective, directions, RADII, precision=precision, method=path)
    assert whole.workers == {}
    with untouched(tanh_objective.model):
        tried = short_of_memory(kind, 2, monkeypatch, error)
        found = fs.responses(tanh_objective, directions, RADII, plan=whole.plan)
    assert found.workers == {"lanes": 2, "bitwise": False}
    np.testing.assert_allclose(found.even, whole.even, rtol=1e-4, atol=4 * whole.noise.max())
    assert max(tried) > 2


def test_a_loss_without_memory_for_one_direction_raises(tanh_objective, monkeypatch):
    directions = fs.Directions(tanh_objective, count=4)
    whole = fs.responses(tanh_objective, directions, RADII, precision="difference")
    short_of_memory(DifferenceEvaluator, 0, monkeypatch, MemoryError("no more"))
    with pytest.raises(MemoryError, match="no more"):
        fs.responses(tanh_objective, directions, RADII, plan=whole.plan)


def test_a_probe_says_that_it_was_short_of_memory(tanh_objective, monkeypatch):
    settings = fs.ProbeSettings(count=8, banks=2, radii=(1e-4, 1e-3, 1e-2, 1e-1), precision="difference")
    whole = fs.multifractal(tanh_objective, settings)
    assert "bitwise" not in whole.meta
    short_of_memory(DifferenceEvaluator, 1, monkeypatch, torch.OutOfMemoryError("CUDA"))
    found = fs.multifractal(tanh_objective, settings, plan=whole)
    assert found.meta["bitwise"] is False
    assert found.meta["lanes"] == 1
    scale = np.abs(whole.measured.even).max()
    np.testing.assert_allclose(found.measured.even, whole.measured.even, rtol=1e-4, atol=1e-6 * scale)
