"""Two probes in two threads beside a thread of the user, which draws random numbers and looks at its settings meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from conftest import model_state
from injection import whole_state
from torch.nn import functional as F

import fastscape as fs

from .subjects import network

GENERATORS = {"torch rng", "numpy rng", "python rng"}  # of the user, who draws
RADII = [1e-5, 1e-3, 1e-1]


def _jobs(seed: int) -> tuple[torch.nn.Module, list[Callable[[], bytes]]]:
    model, data = network(seed)
    objective = fs.Objective(model, data, criterion=F.cross_entropy)
    along = fs.Directions(objective, count=4)

    def responses(precision: Any, method: Any = None) -> Callable[[], bytes]:
        def job() -> bytes:
            found = fs.responses(objective, along, RADII, precision=precision, method=method)
            return found.even.tobytes() + found.odd.tobytes() + found.noise.tobytes()

        return job

    return model, [
        responses("float64", "loop"),
        responses("float32", "loop"),
        responses("float64", "vmap"),
        responses("difference"),
        lambda: b"".join(part.numpy().tobytes() for part in objective.gradient().values()),
        lambda: fs.slice1d(objective, count=2, points=5).losses.tobytes(),
        lambda: (fs.ggn(objective) @ torch.ones(objective.size)).numpy().tobytes(),
    ]


def _draw() -> tuple[float, ...]:
    return (*torch.randn(2).tolist(), float(np.random.rand()), random.random())  # noqa: NPY002 - the global one is looked at


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def trial(seconds: int, seed: int) -> dict[str, Any]:
    """Counts of a trial that lasts so many seconds."""
    subjects = [_jobs(seed + index) for index in range(2)]
    expected = [[job() for job in jobs] for _, jobs in subjects]
    models = [model_state(model) for model, _ in subjects]
    before, stop = whole_state(), time.monotonic() + seconds
    found, failures = Counter[str](), []

    def probe(which: int) -> None:
        chance = random.Random(f"{seed} {which}")
        while time.monotonic() < stop:
            job = chance.randrange(len(expected[which]))
            try:
                same = subjects[which][1][job]() == expected[which][job]
            except Exception as error:
                failures.append(f"probe {job}: {type(error).__name__}: {error}")
                return
            found["calls of probes"] += 1
            found["results that are not the serial ones"] += not same

    _seed(seed)
    threads = [threading.Thread(target=probe, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    drawn = []
    while any(thread.is_alive() for thread in threads):
        drawn.append(_draw())
        x = torch.randn(1)
        plain = x.dtype == torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
        found["looks of the user"] += 1
        found["looks that saw another dtype or no gradients"] += not plain
        time.sleep(1e-3)  # else little is left for the probes
    for thread in threads:
        thread.join()
    after = whole_state()
    _seed(seed)
    alone = []
    for _ in drawn:
        alone.append(_draw())
        torch.randn(1)
    values = list(zip(*drawn, strict=True))
    found["numbers drawn"] = sum(map(len, values))
    found["numbers drawn twice"] = sum(len(each) - len(set(each)) for each in values[2:])  # of 53 bits
    found["draws that are not those alone"] = sum(one != other for one, other in zip(drawn, alone, strict=True))
    changed = sorted(key for key in before if before[key] != after[key] and key not in GENERATORS)
    changed += sorted(key for key in GENERATORS if whole_state()[key] != after[key])
    found["settings changed afterwards"] = len(changed)
    found["models changed"] = sum(model_state(model) != was for (model, _), was in zip(subjects, models, strict=True))
    wrong = (
        *("results that are not the serial ones", "looks that saw another dtype or no gradients", "numbers drawn twice"),
        *("draws that are not those alone", "settings changed afterwards", "models changed"),
    )
    return {
        "tried": found["calls of probes"],
        "failed": sum(found[key] for key in wrong) + len(failures),
        "counts": {**found, **{key: found[key] for key in wrong}},
        "failures": [*failures, *changed][:50],
    }
