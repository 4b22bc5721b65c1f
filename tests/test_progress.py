"""A progress callback that is no function is refused at the door."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo

FORWARDS = []


class Counting(nn.Module):
    """Notes that it runs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        FORWARDS.append(1)
        return self.linear(x)


torch.manual_seed(0)
OBJECTIVE = fs.Objective(Counting(), [(torch.ones(2, 4), torch.tensor([0, 2]))], criterion=F.cross_entropy)
STATE = OBJECTIVE.model.state_dict()
DIRECTIONS = fs.Directions(OBJECTIVE, 2)
DOORS = {
    "responses": lambda progress: fs.responses(OBJECTIVE, DIRECTIONS, [0.1], progress=progress),
    "quadratic_forms": lambda progress: fs.quadratic_forms(OBJECTIVE, DIRECTIONS, progress=progress),
    "forwards": lambda progress: fs.quadratic_forms(OBJECTIVE, DIRECTIONS, method="forwards", progress=progress),
    "multifractal": lambda progress: fs.multifractal(OBJECTIVE, progress=progress),
    "trajectory": lambda progress: fs.trajectory(OBJECTIVE, ["missing.pt"], progress=progress),
    "spectrum": lambda progress: fs.spectrum(OBJECTIVE, progress=progress),
    "spectra": lambda progress: fs.spectra(OBJECTIVE, ["missing.pt"], progress=progress),
    "slice1d": lambda progress: fs.slice1d(OBJECTIVE, progress=progress),
    "slice2d": lambda progress: fs.slice2d(OBJECTIVE, progress=progress),
    "critical_sharpness": lambda progress: fs.critical_sharpness(OBJECTIVE, progress=progress),
    "diagonal": lambda progress: fs.diagonal(OBJECTIVE, progress=progress),
    "barrier": lambda progress: fs.barrier(OBJECTIVE, STATE, STATE, progress=progress),
    "barriers": lambda progress: fs.barriers(OBJECTIVE, [STATE, STATE], progress=progress),
    "connect": lambda progress: fs.connect(OBJECTIVE, STATE, STATE, progress=progress),
    "bench": lambda progress: fs.bench(OBJECTIVE, progress=progress),
    "run": lambda progress: fs.spectrum(OBJECTIVE, run=fs.Run(progress=progress)),
    "train": lambda progress: zoo.train(nn.Linear(4, 3), OBJECTIVE.batches, "nowhere", progress=progress),
}


@pytest.mark.parametrize("value", [3, "bar", [], True])
@pytest.mark.parametrize("name", DOORS)
def test_what_cannot_be_called_is_refused_before_any_work(name, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FORWARDS.clear()
    with pytest.raises(TypeError, match=f"progress must be a function .*, got {type(value).__name__} "):
        DOORS[name](value)
    assert not FORWARDS
    assert not list(tmp_path.iterdir())
