"""A leading eigenpair takes the least basis where there is no room for more."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.objective import examination
from fastscape.probes.spectrum import memory


def test_a_leading_eigenpair_is_found_in_eight_vectors(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    data = [(torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 3)]
    objective = fs.Objective(model, data, criterion=F.cross_entropy)
    targets = {"eigenvalues": 1e-3, "trace": None}
    monkeypatch.setattr(memory, "available_memory", lambda _: 4 * 8 * 8 * objective.size)
    with pytest.raises(ValueError, match="at least .* bytes for a basis of 14 vectors, got"):
        fs.spectrum(objective, 1, targets=targets)
    monkeypatch.setattr(examination, "LARGE", 0)
    with pytest.raises(ValueError, match="at least .* bytes for a basis of 14 vectors, got"):
        fs.spectrum(objective, 1, block=4, targets=targets)
    found = fs.spectrum(objective, 1, targets=targets)
    dense = fs.hessian(objective) @ torch.eye(objective.size, dtype=torch.float64)
    assert float(found.eigenvalues[0]) == pytest.approx(float(torch.linalg.eigvalsh((dense + dense.T) / 2)[-1]), rel=2e-3)
    monkeypatch.setattr(memory, "available_memory", lambda _: 4 * 7 * 8 * objective.size)
    with pytest.raises(ValueError, match="for a basis of 8 vectors, got"):
        fs.spectrum(objective, 1, targets=targets)
