"""Difference propagation against subtraction, and against automatic differentiation: time, operations and memory.

Times are per response, one direction at one radius, of 12 radii from 1e-5 to 1e-1 of ||w||; directions are made afresh in every
repeat. float64 subtraction takes two evaluations a response where L(w) is shared, as ``fs.responses`` does, and three where every
response stands for itself. A response is valid where the median error over directions is below 5 %.
"""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from bench_memory import ALLOCATOR
from hessian_rivals import Rivals, differentiable
from interleave import keep, medians, record
from networks import NETWORKS, UNTRAINED, objective
from torch.utils.flop_counter import FlopCounterMode

import fastscape as fs
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.evaluation.evaluator import Evaluator

RADII = np.logspace(-5, -1, 12)  # relative to ||w||
FORMS, PART = 16, 4  # directions of quadratic forms; those after which the time of some rivals repeats itself
COUNTS = {"ResNet-18": (2, 3), "vision transformer": (4, 5), "tiny transformer": (8, 5)}  # directions, repeats; else 16 and 9
USABLE = 0.05


def valid(found: np.ndarray, truth: np.ndarray) -> int:
    """Radii whose median relative error is below 5 %."""
    return int((np.median(np.abs(found - truth) / np.abs(truth), axis=1) < USABLE).sum())


@pytest.mark.parametrize("name", [*NETWORKS, *UNTRAINED])
def test_responses(benchmark, name):
    count, repeats = COUNTS.get(name, (16, 9))
    target, seeds = objective(name), itertools.count(1)
    directions = fs.Directions(target, count)
    each = count * len(RADII)

    def run(evaluator):
        return evaluator.responses(directions.with_seed(next(seeds)), range(count), RADII)[0]

    with (
        DifferenceEvaluator(target) as difference,
        DifferenceEvaluator(target, products="bfloat16", gate=False) as narrow,
        Evaluator(target, torch.float64) as wide,
        Evaluator(target, torch.float32) as single,
    ):
        evaluators = {
            "difference": difference,
            "difference-bf16": narrow,
            "float64 subtraction": wide,
            "float32 subtraction": single,
        }
        for evaluator in evaluators.values():
            evaluator.choose(directions, RADII)
        truth = difference.responses(directions, range(count), RADII, lanes=torch.float64)[0]
        found = {mode: evaluator.responses(directions, range(count), RADII)[0] for mode, evaluator in evaluators.items()}
        np.testing.assert_allclose(np.median(found["difference"][-1] / truth[-1]), 1, rtol=1e-4)
        np.testing.assert_allclose(found["float64 subtraction"][-1], truth[-1], rtol=1e-6)
        rivals = {mode: lambda e=evaluator: run(e) for mode, evaluator in evaluators.items()}
        wide.replica.reset()
        rivals["again at w"] = lambda: [wide.replica.loss() for _ in range(each)]
        times = medians(rivals, repeats)
        times["float64 subtraction, three points"] = times["float64 subtraction"] + times.pop("again at w")
        title = f"even response, {name}"
        record(benchmark, title, times, baseline="float64 subtraction", per=each, unit="us")
        share = {mode: valid(even, truth) / len(RADII) for mode, even in found.items()}
        share["float64 subtraction, three points"] = share["float64 subtraction"]
        useful = {mode: seconds / share[mode] for mode, seconds in times.items() if share[mode]}
        if "float64 subtraction" in useful:
            record(benchmark, f"valid even response, {name}", useful, baseline="float64 subtraction", per=each, unit="us")
        benchmark.pedantic(run, (difference,), rounds=1)


@pytest.mark.parametrize("name", ["mlp, relu", "tiny transformer", "ResNet-18"])
def test_quadratic_forms(benchmark, name):
    target, seeds = objective(name), itertools.count(1)
    directions = fs.Directions(target, FORMS)
    rivals = Rivals(target)

    def block(count):
        return directions.with_seed(next(seeds)).block(range(count), torch.float32)

    with DifferenceEvaluator(target) as evaluator:
        evaluator.choose(directions, [0.0])
        truth = evaluator.derivatives(directions, range(FORMS), [0.0], lanes=torch.float64)[1][0]
        found = evaluator.derivatives(directions, range(FORMS), [0.0])[1][0]
        size = np.sqrt(np.mean(truth**2))
        np.testing.assert_allclose(found / size, truth / size, atol=1e-4)
        methods = {
            "jvp of grad, one by one": (rivals.loop, PART),
            f"vmap of jvp of grad, {PART} at a time": (rivals.batched, PART),
            f"vmap of jvp of grad, {FORMS} at a time": (rivals.batched, FORMS),
            "reverse over reverse, graph kept": (rivals.reverse, FORMS),
        }
        for form, count in methods.values():
            values = form(directions.block(range(count), torch.float32)).detach().numpy()
            np.testing.assert_allclose(values / size, truth[:count] / size, atol=1e-3)
        calls = {"fastscape": lambda: evaluator.derivatives(directions.with_seed(next(seeds)), range(FORMS), [0.0])[1][0]}
        calls |= {label: lambda form=form, count=count: form(block(count)) for label, (form, count) in methods.items()}
        times = medians(calls, 2 if name == "ResNet-18" else 7, warm=True)
        times = {label: seconds / methods.get(label, (None, FORMS))[1] for label, seconds in times.items()}
        best = min(methods, key=times.__getitem__)
        record(benchmark, f"quadratic form, {FORMS} directions, {name}", times, baseline=best, unit="us")
        benchmark.pedantic(calls["fastscape"], rounds=1)


def test_operations(benchmark):
    """Matrix products of a response in forwards, which two evaluations take two of."""
    rows = {}
    for name in [*NETWORKS, *UNTRAINED]:
        target = objective(name)
        inputs = target.batches[0][0]
        with differentiable(), torch.no_grad(), FlopCounterMode(display=False) as counter:
            target.model.eval()(inputs)
        forward, count = counter.get_total_flops(), 2 if name == "ResNet-18" else 4
        directions = fs.Directions(target, count)
        with DifferenceEvaluator(target) as evaluator:
            evaluator.choose(directions, RADII)
            for label, lanes, radii in (
                (name, None, RADII),
                (f"{name}, every radius by itself", torch.float32, RADII),
                (f"{name}, radius zero", torch.float32, [0.0]),
            ):
                before = evaluator.operations
                evaluator.responses(directions, range(count), radii, lanes=lanes)
                rows[label] = (evaluator.operations - before) / (count * len(radii) * forward)
    table = {name: {"time": round(value, 3), "ratio": round(2 / value, 3)} for name, value in rows.items()}
    title = "operations of matrix products, in forwards a response"
    keep(benchmark, title, table, unit="forwards", baseline="two forwards")
    benchmark.pedantic(lambda: None, rounds=1)
    assert max(rows.values()) < 4.5  # four, and the products of attention


SCRIPT = """
import json, re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import numpy as np, torch, fastscape as fs
from hessian_rivals import Rivals
from networks import untrained

def resident(kind):
    return int(re.search(rf"{kind}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def measure(objective, what, count):
    directions = fs.Directions(objective, count)
    if what == "forms":
        return fs.quadratic_forms(objective, directions).curvature
    if what == "reverse":
        return Rivals(objective).reverse(directions.block(range(count), torch.float32)).detach().numpy()
    if what == "vmap":
        return Rivals(objective).batched(directions.block(range(count), torch.float32)).numpy()
    path = "loop" if what == "float64" else None
    return fs.responses(objective, directions, np.logspace(-5, -1, 4), precision=what, method=path).even

name, what, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
measure(untrained("mlp, relu"), what, 1)  # whatever is loaded on first use
objective = untrained(name)
with torch.no_grad():
    objective.model.eval()(objective.batches[0][0])
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
found = measure(objective, what, count)
print(json.dumps({"extra": resident("VmHWM") - before, "finite": bool(np.isfinite(found).all())}))
"""
MEMORY = {
    "difference, 1 direction": ("difference", 1),
    f"difference, {FORMS} directions": ("difference", FORMS),
    "float64 subtraction, 1 direction": ("float64", 1),  # more take no more: bench_memory.py
    "quadratic form, 1 direction": ("forms", 1),
    f"quadratic forms, {FORMS} directions": ("forms", FORMS),
    f"vmap of jvp of grad, {FORMS} directions": ("vmap", FORMS),
    f"reverse over reverse, {FORMS} directions": ("reverse", FORMS),
}


def peak(name, what, count):
    """Peak resident MiB that a measurement adds to model and data, in a process of its own."""
    command = [sys.executable, "-c", SCRIPT, name, what, str(count), os.path.dirname(__file__)]  # noqa: PTH120
    run = subprocess.run(command, env=os.environ | ALLOCATOR, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert found["finite"]
    return found["extra"]


@pytest.mark.parametrize("name", ["tiny transformer", "ResNet-18"])
def test_memory(benchmark, name):
    extra = {label: peak(name, *arguments) for label, arguments in MEMORY.items()}
    baseline = "float64 subtraction, 1 direction"
    rows = {label: {"time": round(size, 2), "ratio": round(extra[baseline] / size, 3)} for label, size in extra.items()}
    keep(benchmark, f"peak extra memory, 4 radii, {name}", rows, unit="MiB", baseline=baseline)
    benchmark.pedantic(lambda: None, rounds=1)
