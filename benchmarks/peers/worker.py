"""One process of measurements: a job as JSON in its argument, events as lines of JSON on its standard output."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Emit = Callable[..., None]
WRONG = 1e-3  # relative error of a product or form in float32 above which it is no success
LEAST_SECONDS = 0.01  # of gradients in one reading of the clock


def products(job: dict[str, Any], emit: Emit) -> None:
    """Seconds of a block of products by every method in turn, checked first, and of a gradient between them."""
    from peers.measure import seconds
    from peers.methods import methods
    from peers.problems import Problem, Truth, signs

    problem = Problem(job["network"], Path(job["folder"]))
    vectors = signs(problem.size, job["count"])
    if job["count"] == 1:
        vectors = vectors.contiguous()
    checked = min(job["count"], 2)
    expected = Truth(problem).products(vectors[:, :checked])
    ready = {}
    for name, make in methods(job["count"]).items():
        if name in job["methods"]:
            emit("begin", method=name)
            try:
                found: dict[str, Any] = {}
                setup = seconds(lambda make=make, found=found: found.update(multiply=make(problem)))
                result = found["multiply"](vectors)[:, :checked].double()
            except Exception as error:
                emit("failed", method=name, why=f"{type(error).__name__}: {first_line(error)}")
                continue
            emit("checked", method=name, error=float((result - expected).norm() / expected.norm()), setup=setup)
            ready[name] = found["multiply"]
    emit("begin", method="gradient")
    calls = max(1, round(LEAST_SECONDS / min(seconds(problem.gradient) for _ in range(3))))
    names = list(ready)
    for turn in range(job["repeats"]):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            emit("begin", method=name)
            gradient = seconds(lambda: [problem.gradient() for _ in range(calls)]) / calls
            own = seconds(lambda name=name: [ready[name](vectors) for _ in range(calls)]) / calls
            emit("time", method=name, seconds=own, gradient=gradient)


def training(job: dict[str, Any], emit: Emit) -> None:
    """Leave the weights of a network in a folder."""
    from peers.problems import train

    emit("begin", method="training")
    train(job["network"], Path(job["folder"]))


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


PACKAGES: dict[str, Callable[[dict[str, Any], Emit], None]] = {"training": training, "products": products}


def main() -> None:
    job = json.loads(sys.argv[1])
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a peer prints is no event
    warnings.filterwarnings("ignore")
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job.get("seed", 0))

    def emit(kind: str, **values: Any) -> None:
        events.write(json.dumps({"kind": kind, **values}) + "\n")

    PACKAGES[job["package"]](job, emit)


if __name__ == "__main__":
    main()
