"""Bytes that an evaluation takes are known before they are taken, and ``memory=`` binds all that a call holds."""

import json
import os
import re
import subprocess
import sys

import memory_caps
import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

import fastscape as fs
from fastscape import _heap
from fastscape._state import exact_arithmetic
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.footprint import Cap, enough, footprint
from fastscape.runs.peak import PeakMemory

MIB = 2**20
DTYPES = {torch.float32: 4, torch.float64: 8}
RADII = [0.001, 0.01, 0.1]


def perceptron(width=64, samples=32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 10))
    data = [(torch.randn(samples, width), torch.arange(samples) % 10)]
    return fs.Objective(model, data, criterion=F.cross_entropy)


class Scaled(nn.Linear):
    """A layer that looks at a number, which tensors without numbers do not have."""

    def forward(self, inputs):
        return super().forward(inputs) / max(1.0, float(self.weight.detach().abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_of_a_convolution_are_counted(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, stride=2), nn.Flatten(), nn.Linear(5 * 16, 2))
    objective = fs.Objective(model, [(torch.randn(7, 3, 8, 8), torch.arange(7) % 2)], criterion=F.cross_entropy)
    size = DTYPES[dtype]
    columns, ends = 7 * (3 * 9) * 16 * size, 7 * (3 * 64 + 5 * 16) * size
    assert footprint(objective, dtype).workspace == (columns if dtype == torch.float64 else 2 * ends)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [nn.Linear, Scaled])
def test_what_is_foreseen_holds_what_the_gate_takes(dtype, kind):
    torch.manual_seed(0)
    data = [(torch.randn(n, 200), torch.arange(n) % 200) for n in (3, 9)]
    objective = fs.Objective(nn.Sequential(kind(200, 200), nn.Tanh()), data, criterion=F.cross_entropy)
    found = footprint(objective, dtype)
    weights = objective.size * DTYPES[dtype]
    assert weights <= found.copy <= weights + 2 * 12 * 200 * 8
    with exact_arithmetic(dtype), PeakMemory() as memory:
        unperturbed_loss(objective.replica(dtype))
    assert 2 * weights < memory.peak <= found.alone + 2 * MIB // 2  # pieces in which weights are displaced


@pytest.mark.parametrize("bytes_", [1, 1000, 10**7, 10**9])
def test_a_cap_that_is_enough_is_enough(bytes_):
    memory = enough(bytes_)
    Cap(memory).hold(bytes_, "it")
    with pytest.raises(ValueError, match=rf"memory must hold it, for which {memory} bytes are enough, got {memory // 2}; raise"):
        Cap(memory // 2).hold(bytes_, "it")
    Cap(None).hold(bytes_, "it")


@pytest.mark.parametrize("make", [fs.hessian, fs.ggn])
def test_nothing_is_computed_before_a_refusal(make):
    outputs = []

    class Watched(nn.Linear):
        def forward(self, inputs):
            outputs.append(super().forward(inputs))
            return outputs[-1]

    torch.manual_seed(0)
    data = [(torch.randn(6, 4), torch.arange(6) % 3)]
    objective = fs.Objective(nn.Sequential(Watched(4, 8), nn.ReLU(), Watched(8, 3)), data, criterion=F.cross_entropy)
    outputs.clear()
    with pytest.raises(ValueError, match="memory must hold a copy of the parameters and a forward pass"):
        make(objective, memory=5)
    assert all(isinstance(output, FakeTensor) for output in outputs)  # which have a shape and no numbers


def product(make, block):
    def call(objective, memory):
        return make(objective, memory=memory) @ torch.ones(objective.size, block)

    return call


CALLS = {
    "losses": lambda o, m: fs.losses(o, fs.Directions(o, 6), RADII, memory=m),
    "losses by vmap": lambda o, m: fs.losses(o, fs.Directions(o, 6), RADII, method="vmap", memory=m),
    "responses in float64": lambda o, m: fs.responses(o, fs.Directions(o, 6), RADII, precision="float64", memory=m),
    "responses in float32": lambda o, m: fs.responses(o, fs.Directions(o, 6), [0.3, 0.5], precision="float32", memory=m),
    "responses by differences": lambda o, m: fs.responses(o, fs.Directions(o, 6), RADII, precision="difference", memory=m),
    "quadratic forms": lambda o, m: fs.quadratic_forms(o, fs.Directions(o, 6), memory=m),
    "hessian": product(fs.hessian, 8),
    "ggn": product(fs.ggn, 8),
    "spectrum": lambda o, m: fs.spectrum(o, 2, nodes=16, targets={"eigenvalues": 0.5, "trace": None}, memory=m),
    "slice": lambda o, m: fs.slice1d(o, points=17, memory=m),
}


SLOW = {"hessian", "ggn"}  # many trials, counted operation by operation


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CALLS])
def test_a_cap_binds_all_that_a_call_holds(name):
    """From the least cap that is not refused, found by what refusals say; each refusal comes before the work."""
    objective, call = perceptron(), CALLS[name]
    for dtype in DTYPES:
        footprint(objective, dtype)  # whose copy is never written, so that it is not resident, and yet counted here
    memory, refusals = 1000, 0
    while True:
        with PeakMemory() as spent:
            try:
                call(objective, memory)
                break
            except ValueError as error:
                refused = re.search(rf"memory must hold .* (\d+) bytes are enough, got {memory}", str(error))
        assert refused is not None
        assert int(refused[1]) > memory
        memory, refusals = int(refused[1]), refusals + 1
    assert 0 < refusals <= 4
    assert spent.peak <= memory


def test_values_under_a_cap_are_those_without(digits):
    objective = perceptron()
    directions = fs.Directions(objective, 3)
    free = fs.losses(objective, directions, RADII, method="loop")
    assert torch.equal(fs.losses(objective, directions, RADII, method="loop", memory=64 * MIB), free)
    block = torch.randn(objective.size, 3, generator=torch.Generator().manual_seed(0))
    matrix = fs.hessian(objective, method="graph")
    assert torch.equal(fs.hessian(objective, method="graph", memory=64 * MIB) @ block, matrix @ block)


def test_the_heap_is_as_a_cap_lets_it_be_and_loose_after_an_exception(monkeypatch):
    seen, objective = [], perceptron(8, 4)
    monkeypatch.setattr(_heap, "_set", lambda mapped, kept: seen.append((mapped, kept)))
    fs.losses(objective, fs.Directions(objective, 1), [0.1])
    assert seen == [(1 << 30, 1 << 30), (32 << 20, 64 << 20)]
    seen.clear()
    with pytest.raises(ZeroDivisionError), _heap.Heap(64 * MIB), _heap.Heap(None), _heap.Heap(128 * MIB, kept=True):
        _ = 1 / 0
    assert seen == 5 * [(128 << 10, 128 << 10)] + [(32 << 20, 64 << 20)]
    seen.clear()
    fs.losses(objective, fs.Directions(objective, 1), [0.1], memory=64 * MIB)
    assert seen == [(128 << 10, 128 << 10), (4 << 20, 64 << 20), (32 << 20, 64 << 20)]


@pytest.mark.parametrize(("said", "value"), [("MALLOC_MMAP_THRESHOLD_", "1000000"), ("GLIBC_TUNABLES", "glibc.malloc.check=0")])
def test_what_the_environment_says_of_the_heap_stays(monkeypatch, said, value):
    for name in os.environ:
        if name.startswith(("MALLOC_", "GLIBC_TUNABLES")):
            monkeypatch.delenv(name)
    monkeypatch.setenv(said, value)
    try:
        _heap._glibc.cache_clear()
        assert _heap._glibc() is None
    finally:
        _heap._glibc.cache_clear()


FAULTS = """
import json, sys, torch, fastscape as fs
from fastscape.differences.lanes import Lanes
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU(),
    torch.nn.MaxPool2d(4), torch.nn.Flatten(), torch.nn.Linear(128, 10),
)
data = [(torch.randn(96, 1, 16, 16), torch.arange(96) % 10)]
objective = fs.Objective(model, data, criterion=torch.nn.functional.cross_entropy)
plain, faults = Lanes.everywhere, []
def minor():
    with open("/proc/self/stat") as file:
        return int(file.read().rpartition(")")[2].split()[7])
def counted(*arguments):
    before = minor()
    found = plain(*arguments)
    faults.append(minor() - before)
    return found
Lanes.everywhere = counted
memory = int(sys.argv[1]) << 20 or None
fs.multifractal(objective, fs.ProbeSettings(count=8, precision="difference", banks=1), method="graph", memory=memory,
                distributed=False)
print(json.dumps(faults))
"""


@pytest.mark.skipif(_heap._glibc() is None, reason="another C library, or a heap that the environment sets")
@pytest.mark.parametrize("cap", [0])
def test_memory_is_kept_from_block_to_block(cap):
    """Pages that the system fills with zeros, counted; the lanes of a block are four hundred pages for each tensor or more."""
    done = subprocess.run([sys.executable, "-c", FAULTS, str(cap)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    faults = json.loads(done.stdout)
    assert len(faults) > 4
    assert np.median(faults[2:]) < 200, faults


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cap"),
    [(name, cap) for name in memory_caps.calls() for cap in (64, 128)],
)
def test_resident_memory_stays_under_the_cap(name, cap):
    found = memory_caps.in_a_fork(name, "wide", cap * MIB)
    assert "failed" not in found, found
    assert np.isfinite(found["peak"])
    assert found["peak"] <= cap * MIB
    if "refused" in found:
        assert found["enough"] > cap * MIB
