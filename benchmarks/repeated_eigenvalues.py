"""One eigenvalue three times: power iteration from three starts beside the three largest eigenvalues of the Hessian.

Power iteration converges to the eigenvalue of largest modulus from almost every start. Run again from another start for "the
second" and "the third", without projecting out the vectors found before, it gives the first three times. This script trains the
zoo MLP on the digits for a few steps, and prints those three, what SciPy's ``eigsh`` finds of the Hessian in float64, and what
``fs.spectrum`` finds in float32, with residuals ||Hv - lambda v||; and the whole result of ``fs.spectrum``. The iteration
multiplies by plain double backward, so that nothing of it is fastscape's. Run it with ``make eigenvalues``; figures go to
benchmarks/results/repeated_eigenvalues.json, and from there into the README.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.reports import tables
from fastscape.zoo.data import Batches

RESULTS = Path(__file__).parent / "results" / "repeated_eigenvalues.json"
COUNT = 3
SETTLED = 1e-6  # relative change of a Rayleigh quotient at which an iteration is taken as converged
LONGEST = 1000  # products of one iteration
BATCH = 64  # of training and of the loss, so that the batch sharpness is that of the training
WIDTH = 110  # columns of the printed result


def double_backward(model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Product of the cross-entropy's Hessian with ``[D]``, from one graph of the gradient."""
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(F.cross_entropy(model(inputs), targets), parameters, create_graph=True)
    flat = torch.cat([part.flatten() for part in gradient])

    def product(vector: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(flat @ vector, parameters, retain_graph=True)])

    return product


def power_iteration(product: Callable[[Tensor], Tensor], start: Tensor) -> dict:
    """Rayleigh quotient, residual and products of power iteration from one start, with nothing projected out."""
    vector, value, count = start / start.norm(), math.nan, 0
    while True:
        image, before, count = product(vector), value, count + 1
        value = float(vector @ image)
        if abs(value - before) <= SETTLED * abs(value) or count == LONGEST:
            return {"value": value, "residual": float((image - value * vector).norm()), "products": count}
        vector = image / image.norm()


def starts(like: Tensor, count: int = COUNT) -> list[Tensor]:
    """Gaussian vectors ``[D]``, each of its own seed."""
    return [torch.randn(like.numel(), generator=torch.Generator().manual_seed(seed), dtype=like.dtype) for seed in range(count)]


def measured(model: nn.Module, data: Batches, optimizer: Path | None = None) -> dict:
    """The three largest eigenvalues by un-deflated power iterations, by ``eigsh`` in float64, and by ``fs.spectrum``."""
    inputs, targets = (torch.cat([batch[part] for batch in data]) for part in (0, 1))
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    product = double_backward(model, inputs, targets)
    power = [power_iteration(product, start) for start in starts(flat)]

    double = fs.Objective(copy.deepcopy(model).double(), [(inputs.double(), targets)], criterion=F.cross_entropy)
    (start,) = starts(flat.double(), 1)
    exact = eigsh(fs.hessian(double).to_scipy(), COUNT, which="LA", tol=1e-10, v0=start.numpy(), return_eigenvectors=False)

    objective = fs.Objective(model, data, criterion=F.cross_entropy)
    found = fs.spectrum(objective, k=COUNT, optimizer=optimizer, name="mlp")
    ours = [
        {"value": value, "residual": residual}
        for value, residual in zip(found.eigenvalues.tolist(), found.residuals.tolist(), strict=True)
    ]
    printed = tables.as_text(found.table(), WIDTH)
    return {
        "size": objective.size,
        "power": power,
        "eigsh": np.sort(exact)[::-1].tolist(),
        "spectrum": ours,
        "products": found.products,
        "printed": "\n".join(line.rstrip() for line in printed.splitlines()),
    }


def markdown(found: dict) -> str:
    """The three numbers of each, with residuals."""
    heads = ("", "power iteration, three starts", "residual", "`eigsh`, float64", "`fs.spectrum`, float32", "residual")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, power, exact, ours in zip("₁₂₃", found["power"], found["eigsh"], found["spectrum"], strict=True):
        cells = [
            f"{power['value']:.4f}",
            f"{power['residual']:.0e}",
            f"{exact:.4f}",
            f"{ours['value']:.4f}",
            f"{ours['residual']:.0e}",
        ]
        lines.append(f"| λ{name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30, help="of training")
    parser.add_argument("--samples", type=int, default=256, help="digits the loss is on")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = zoo.mlp()
    with tempfile.TemporaryDirectory() as folder:
        zoo.train(model, zoo.digits(), folder, steps=arguments.steps, checkpoints=3, batch_size=BATCH)
        found = measured(
            model.eval(),
            zoo.digits(samples=arguments.samples, batch_size=BATCH),
            Path(folder) / f"step{arguments.steps}.optimizer.pt",
        )
    table = markdown(found)
    print(table)
    print(found["printed"])
    document = {
        "model": f"zoo.mlp, {arguments.steps} steps on the digits, loss on {arguments.samples} of them",
        "versions": {"fastscape": fs.__version__, "torch": torch.__version__},
        **found,
        "markdown": table,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
