"""Write one small result file of every kind into this directory; run it when a kind is new, and keep the files of older versions.

python tests/reports/saved/make.py [KIND ...]
"""

import dataclasses
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.study import study as driver
from fastscape.study.plan import quick

HERE = Path(__file__).parent
DIGITS = partial(zoo.digits, samples=32)
PROBE = fs.ProbeSettings(radii=(0.001, 0.003, 0.01, 0.03, 0.1), count=4, banks=1)
ANALYSIS = fs.AnalysisSettings(bootstrap=20, permutations=19)
SPECTRAL = {"k": 2, "block": 2, "nodes": 8}


def model(seed=0):
    torch.manual_seed(seed)
    return zoo.mlp(hidden=(4,))


def objective():
    return fs.Objective(model(), DIGITS(), criterion=F.cross_entropy)


def states():
    return {f"step{seed}": model(seed).state_dict() for seed in range(2)}


def along(probe, *settings, **named):
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{name}.pt" for name in states()]
        for file, state in zip(files, states().values(), strict=True):
            torch.save(state, file)
        return probe(objective(), files, *settings, **named)


def signature():
    return fs.Signature.of(fs.slice1d(objective(), count=2, points=5))


def tracked():
    net, data = model(), DIGITS()
    probed = fs.Objective(net, data, criterion=F.cross_entropy)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    every = {"what": ("loss", "gradient"), "difficulty": fs.Difficulty(probed, every=2)}
    with fs.Tracker(probed, every=2, share=1e6, **every) as tracker:
        tracker.step(0, optimizer=optimizer)
        for step in range(1, 5):
            optimizer.zero_grad()
            F.cross_entropy(net(data[0][0]), data[0][1]).backward()
            optimizer.step()
            tracker.step(step, optimizer=optimizer)
    return tracker


def study():
    mlp = dataclasses.replace(
        quick(1).architectures[0], build=partial(zoo.mlp, hidden=(2,)), train=DIGITS, test=DIGITS, probed=DIGITS, steps=6
    )
    plan = dataclasses.replace(quick(1), architectures=(mlp,), seconds=1.0, plane=3, lines=2, line_points=5)
    plan = dataclasses.replace(plan, points=2, norms=2, k=2, share=5.0)
    with tempfile.TemporaryDirectory() as folder:
        return driver.study(plan, Path(folder))


MADE = {
    "multifractal": lambda: fs.multifractal(objective(), PROBE, ANALYSIS),
    "trajectory": lambda: along(fs.trajectory, PROBE, ANALYSIS),
    "spectrum": lambda: fs.spectrum(objective(), **SPECTRAL),
    "spectra": lambda: along(fs.spectra, **SPECTRAL),
    "slice": lambda: fs.slice1d(objective(), count=2, points=5),
    "plane": lambda: fs.slice2d(objective(), points=3),
    "sharpness": lambda: fs.sharpness(objective(), 0.1, restarts=1, steps=2, samples=4, products=6),
    "critical_sharpness": lambda: fs.critical_sharpness(objective(), optimizer=torch.optim.SGD(model().parameters(), lr=0.1)),
    "diagonal": lambda: fs.diagonal(objective(), 8, estimator="xdiag"),
    "barrier": lambda: fs.barrier(objective(), *states().values(), points=3, start=3),
    "barriers": lambda: fs.barriers(objective(), states(), points=3, start=3),
    "curve": lambda: fs.connect(objective(), *states().values(), steps=2),
    "temperature": lambda: fs.temperature(objective(), batch_size=8, learning_rate=0.1, products=3),
    "signature": signature,
    "comparison": lambda: fs.compare([signature(), signature()]),
    "probe": lambda: fs.probe(
        objective(), ("slice", "spectrum"), options={"slice": {"count": 2, "points": 5}, "spectrum": SPECTRAL}
    ),
    "bench": lambda: fs.bench(objective(), budget=0.5, count=1),
    "doctor": lambda: fs.doctor(objective()),
    "track": lambda: tracked().result,
    "difficulty": lambda: tracked().difficulty.result,
    "study": study,
    "study-run": lambda: study().runs[0],
}

if __name__ == "__main__":
    for kind in sys.argv[1:] or MADE:
        MADE[kind]().save(HERE / kind)
