"""Two small networks, trained here, as populations of 20,000 directions; their responses are kept in build/coverage."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import fastscape as fs

from .populations import Population, sampled

FOLDER = Path(__file__).parents[2] / "build" / "coverage"
DIRECTIONS = 20_000
RADII = np.logspace(-3, -0.3, 9)
ACTIVATIONS = {"ReLU": torch.nn.ReLU, "tanh": torch.nn.Tanh}
STEPS = 150


def network(kind: str) -> Population:
    """A trained network with this activation."""
    path = FOLDER / f"{kind}-{STEPS}-{DIRECTIONS}.npz"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        eps, even = responses(kind)
        np.savez(path, eps=eps, even=even)
    with np.load(path) as stored:
        return sampled(f"{kind} network, trained", np.log(stored["eps"]), stored["even"])


def responses(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Radii ``[K]`` and even responses ``[K, N]`` at the end of training."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 12), ACTIVATIONS[kind](), torch.nn.Linear(12, 3))
    inputs, targets = torch.randn(24, 6), torch.randint(0, 3, (24,))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    batch = (inputs.double(), targets)
    objective = fs.Objective(copy.deepcopy(model).double(), [batch], criterion=F.cross_entropy)
    found = fs.responses(objective, fs.Directions(objective, count=DIRECTIONS, seed=11), RADII, precision="float64")
    return found.eps_abs, found.even
