"""Cost of a random direction per element: every instruction set and the PyTorch reference against torch.randn and NumPy."""

import numpy as np
import pytest
import torch
from interleave import medians, record

from fastscape import ops
from fastscape.ops import _native
from fastscape.ops.direction.reference import draw


def forced(isa, run):
    """``run`` under one instruction set."""

    def call():
        _native.library.set_isa(isa)
        run()

    return call


@pytest.mark.parametrize("size", [1 << 20, 1 << 24], ids=["1M", "16M"])
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_generators(benchmark, size, distribution):
    out = torch.empty(size)
    generate = ops.Generation([out], [7], distribution)
    generate(1, 0)
    assert torch.equal(out, draw(1, 0, [7], [size], distribution)[0])
    generator = np.random.Generator(np.random.Philox(1))
    buffer = np.empty(size, dtype=np.float32)
    fastest = _native.library.isa
    isas = _native.ISAS[: _native.ISAS.index(fastest) + 1]
    rivals = {f"fastscape, {isa}": forced(isa, lambda: generate(1, 0)) for isa in reversed(isas)}
    rivals["fastscape without the native library"] = lambda: draw(1, 0, [7], [size], distribution)
    if distribution == "gaussian":
        rivals["torch.randn"] = lambda: torch.randn(size)
        rivals["torch.randn(out=)"] = lambda: torch.randn(size, out=out)
        rivals["NumPy Philox"] = lambda: generator.standard_normal(dtype=np.float32, out=buffer)
    else:
        rivals["torch.randint signs"] = lambda: torch.randint(0, 2, (size,), dtype=torch.float32).mul_(2).sub_(1)
    times = medians(rivals, repeats=5)
    _native.library.set_isa(fastest)
    baseline = "torch.randn" if distribution == "gaussian" else "torch.randint signs"
    record(benchmark, f"{distribution} direction, {size >> 20} M elements", times, baseline=baseline, per=size, unit="ns")
    benchmark(generate, 1, 0)


@pytest.mark.parametrize("size", [1 << 20, 1 << 24], ids=["1M", "16M"])
def test_norms_and_inner_products(benchmark, size):
    """What normalisation and projections need of a direction, without storing it."""
    ids, vector = torch.tensor([7]), torch.randn(size)
    noise = draw(1, 0, [7], [size])[0].double()
    assert float(ops.direction_norms(ids, 1, [0], [size])) == pytest.approx(float(noise.square().sum()), rel=1e-13)
    assert float(ops.direction_dot([vector], ids, 1, [0])) == pytest.approx(float(noise @ vector.double()), rel=1e-9)
    rivals = {
        "fastscape.ops.direction_norms": lambda: ops.direction_norms(ids, 1, [0], [size]),
        "fastscape.ops.direction_dot": lambda: ops.direction_dot([vector], ids, 1, [0]),
        "torch.randn, norm (float32)": lambda: torch.randn(size).norm(),
        "torch.randn, inner product in float64": lambda: torch.randn(size).double() @ vector.double(),
    }
    times = medians(rivals, repeats=5)
    title = f"norm of and inner product with a gaussian direction, {size >> 20} M elements"
    record(benchmark, title, times, baseline="torch.randn, norm (float32)", per=size, unit="ns")
    benchmark(ops.direction_norms, ids, 1, [0], [size])
