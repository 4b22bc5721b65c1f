"""Spectra that go on after whatever ended them: the bytes of a run that nothing disturbed, and no product made twice."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.curvature.products import Products

SETTINGS = {"k": 3, "nodes": 12, "targets": {"trace": 0.3}, "seed": 3}
VARYING = {"seconds", "created", "budget", "refused", "reason"}  # entries of meta that tell of the run, or of its clock


def network(shift=0.0, width=6, batches=(5, 5, 2)):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))
    with torch.no_grad():
        model[0].weight.add_(shift)
    return fs.Objective(model, [(torch.randn(n, 6), torch.randint(0, 3, (n,))) for n in batches], criterion=F.cross_entropy)


ADAM = torch.optim.Adam(network().model.parameters(), lr=0.01)


def adam(objective):
    """The state of Adam after a few steps of a copy."""
    model = copy.deepcopy(objective.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(F.cross_entropy(model(inputs), targets) for inputs, targets in objective.batches).backward()
        optimizer.step()
    return fs.OptimizerState.of(optimizer, model) if hasattr(fs, "OptimizerState") else optimizer.state_dict()


class Made:
    """Vectors that are multiplied, trials apart; the block of some number fails."""

    def __init__(self, monkeypatch):
        self.vectors, self.blocks, self.fails, self.error = 0, 0, None, RuntimeError("killed")
        real = Products._multiply

        def multiply(products, rows, out, forms):
            if self.blocks == self.fails:
                raise self.error
            self.blocks += 1
            self.vectors += len(rows)
            real(products, rows, out, forms)

        monkeypatch.setattr(Products, "_multiply", multiply)

    def by(self, work, fails=None):
        """What some work gives, with blocks and vectors that it took."""
        self.blocks = self.vectors = 0
        self.fails = fails
        return work(), self.blocks, self.vectors


@pytest.fixture
def made(monkeypatch):
    return Made(monkeypatch)


def bits(value):
    """All numbers of a result, without what tells of its run."""
    if isinstance(value, fs.SpectrumTrajectory):
        return [bits(point) for point in value.points]
    document = {name: part for name, part in vars(value).items() if name not in ("meta", "vectors")}
    document["vectors"] = None if getattr(value, "vectors", None) is None else value.vectors.numpy().tobytes()
    document["meta"] = {name: part for name, part in getattr(value, "meta", {}).items() if name not in VARYING}
    return repr([(name, exact(part)) for name, part in document.items()])


def exact(part):
    if isinstance(part, np.ndarray):
        return part.tobytes()
    if hasattr(part, "__dataclass_fields__"):
        return [exact(inner) for inner in vars(part).values()]
    return part.hex() if isinstance(part, float) else part


def chosen(folder):
    """What the first run chose is measured; a folder with that and no product, to begin again from."""
    for path in folder.glob("evaluations.*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line for line in lines if not any(kind in line for kind in KINDS)))


KINDS = (b'"product.', b'"forms.', b'"numbers.', b'"gradient.', b'"batch-sharpness.', b'"start.')
DOORS = {
    "spectrum": lambda objective, folder, **more: fs.spectrum(objective, resume=folder, **SETTINGS | more),
    "ggn": lambda objective, folder, **more: fs.spectrum(objective, operator="ggn", resume=folder, **SETTINGS | more),
    "stable": lambda objective, folder, **more: fs.spectrum(
        objective, optimizer=adam(objective), resume=folder, **SETTINGS | more
    ),
    "edge": lambda objective, folder, **more: fs.edge_of_stability(objective, adam(objective), resume=folder, seed=3, **more),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_run_that_failed_at_any_product_goes_on_to_the_same_bytes(tmp_path, made, door):
    objective, work = network(), DOORS[door]
    whole, blocks, vectors = made.by(lambda: work(objective, tmp_path))
    assert blocks > 4
    for fails in range(0, blocks, 1 if door == "spectrum" else 3):
        chosen(tmp_path)
        with pytest.raises((RuntimeError, fs.SpectrumError)):
            made.by(lambda: work(objective, tmp_path), fails)
        before = made.vectors
        found, _, after = made.by(lambda: work(objective, tmp_path))
        assert bits(found) == bits(whole)
        assert before + after == vectors, "what is done is not done again"
    found, blocks, _ = made.by(lambda: work(objective, tmp_path))
    assert (bits(found), blocks) == (bits(whole), 0)
