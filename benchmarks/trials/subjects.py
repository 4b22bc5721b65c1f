"""Every public probe on one tiny network that has all that could be disturbed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastscape as fs

Call = Callable[[fs.Objective, Any], Any]
PROBE = fs.ProbeSettings(count=2, banks=2, radii=(1e-4, 1e-3, 1e-2, 1e-1))
ANALYSIS = fs.AnalysisSettings(bootstrap=10, permutations=9)


class Net(nn.Module):
    """Batch norm, dropout, a frozen bias, a buffer, hooks and gradients; calls ``tick`` in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.3)
        self.last = nn.Linear(5, 3)
        self.register_buffer("shift", torch.zeros(3))
        self.last.bias.requires_grad_(False)
        self.tick: Callable[[], None] = lambda: None

    def forward(self, x: Tensor) -> Tensor:
        self.tick()
        return self.last(self.drop(torch.tanh(self.norm(self.first(x))))) + self.shift


def network(seed: int = 0) -> tuple[Net, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(seed)
    model = Net().train()
    data = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(2)]
    F.cross_entropy(model(data[0][0]), data[0][1]).backward()
    model.first.register_forward_hook(lambda *_: None)
    return model, data


def checkpoints(model: nn.Module, folder: Path) -> list[Path]:
    """Two files of weights."""
    for index in range(2):
        generator = torch.Generator().manual_seed(index)
        moved = {
            name: value + 0.1 * index * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
            for name, value in model.state_dict().items()
        }
        torch.save(moved, folder / f"step{index}.pt")
    return [folder / f"step{index}.pt" for index in range(2)]


def calls(model: nn.Module, files: list[Path]) -> dict[str, Call]:
    """What is tried, by name: functions of an objective and of the ``progress`` that they report to, where they do."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ones = lambda o, *shape: torch.ones(o.size, *shape)  # noqa: E731

    def along(o: fs.Objective, count: int = 2) -> fs.Directions:
        return fs.Directions(o, count=count)

    def tracker(o: fs.Objective, _p: Any) -> Any:
        with fs.Tracker(o, every=1, share=50.0, what=("loss", "gradient"), difficulty=None) as found:
            for step in range(3):
                found.step(step, optimizer=optimizer)
        return found.result

    def difficulty(o: fs.Objective, _p: Any) -> Any:
        found = fs.Difficulty(o, every=1)
        for step in range(2):
            found.step(step, optimizer=optimizer)
        return found.finish()

    def part(what: str, **options: Any) -> dict[str, Any]:
        return {"options": {what: options}, "budget": 60}

    return {
        "loss": lambda o, _p: o.loss(),
        "accuracy": lambda o, _p: o.accuracy(),
        "gradient": lambda o, _p: o.gradient(),
        "losses": lambda o, _p: fs.losses(o, along(o), [1e-3, 1e-2], method="loop"),
        "losses by vmap": lambda o, _p: fs.losses(o, along(o), [1e-3], method="vmap"),
        "responses": lambda o, _p: fs.responses(o, along(o), [1e-3, 1e-2], precision="difference"),
        "responses in float32": lambda o, _p: fs.responses(o, along(o, 6), [1e-2, 1e-1], precision="float32", method="loop"),
        "responses in float64": lambda o, _p: fs.responses(o, along(o), [1e-3, 1e-2], precision="float64", method="loop"),
        "quadratic forms": lambda o, _p: fs.quadratic_forms(o, along(o)),
        "forms by forwards": lambda o, _p: fs.quadratic_forms(o, along(o), method="forwards"),
        "mean form": lambda o, _p: fs.mean_quadratic_form(o, along(o, 4), groups=2),
        "operators": lambda o, _p: fs.operators(o),
        "hessian": lambda o, _p: fs.hessian(o) @ ones(o),
        "ggn": lambda o, _p: fs.ggn(o) @ ones(o, 2),
        "spectrum": lambda o, p: fs.spectrum(o, k=1, nodes=5, progress=p),
        "spectra": lambda o, p: fs.spectra(o, files, k=1, nodes=5, progress=p),
        "edge of stability": lambda o, _p: fs.edge_of_stability(o, optimizer, max_products=10),
        "multifractal": lambda o, p: fs.multifractal(o, PROBE, ANALYSIS, progress=p),
        "trajectory": lambda o, p: fs.trajectory(o, files, PROBE, ANALYSIS, progress=p),
        "slice1d": lambda o, p: fs.slice1d(o, count=2, points=5, progress=p),
        "slice2d": lambda o, p: fs.slice2d(o, points=3, progress=p),
        "sharpness": lambda o, _p: fs.sharpness(o, restarts=1, steps=2, samples=4, products=6),
        "barrier": lambda o, p: fs.barrier(o, files[0], files[1], points=5, start=3, progress=p),
        "barriers": lambda o, p: fs.barriers(o, files, points=5, start=3, progress=p),
        "connect": lambda o, p: fs.connect(o, files[0], files[1], steps=2, points=5, start=3, progress=p),
        "temperature": lambda o, _p: fs.temperature(o, batch_size=4, learning_rate=0.1, products=3),
        "signature": lambda o, _p: fs.signature(o, what=("slice",), **part("slice", count=2, points=5)),
        "probe": lambda o, _p: fs.probe(o, ("slice",), **part("slice", count=2, points=5)),
        "bench": lambda o, p: fs.bench(o, budget=1, count=2, repeats=1, progress=p),
        "doctor": lambda o, _p: fs.doctor(o),
        "tracker": tracker,
        "difficulty": difficulty,
    }
