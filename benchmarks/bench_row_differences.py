"""Softmax, layer norm, cross-entropy and max-pooling in difference lanes, against a copy of the bytes that they read."""

import pytest
import torch
from interleave import medians, record

from fastscape import ops
from fastscape.ops.cross_entropy_difference.reference import cross_entropy_difference as cross_entropy_reference
from fastscape.ops.layer_norm_difference.reference import layer_norm_difference as layer_norm_reference
from fastscape.ops.max_pool2d_difference.reference import max_pool2d_difference as max_pool_reference
from fastscape.ops.softmax_difference.reference import softmax_difference as softmax_reference

ELEMENTS, LANES = 1 << 17, 16
RADII = {"1e-7": 1e-7, "1e-3": 1e-3, "0.1": 0.1}  # products that underflow, lanes that are small, lanes beyond the series
HALVES = ([2, 2], [2, 2], [0, 0], [1, 1], [16, 16])


def operands(*shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x, torch.randn(LANES, 2, 1, *shape, generator=generator)


def agree(found, expected):
    scale = expected.abs().amax(tuple(range(2, expected.ndim)), keepdim=True)
    assert ((found - expected).abs() <= 1e-4 * scale).all()


def compare(benchmark, title, x, lanes, native, reference):
    """Times at every radius beside a copy of x and the lanes; the reference once."""
    tables = {}
    for name, radius in RADII.items():
        radii = torch.tensor([radius], dtype=torch.float64)
        agree(native(x, lanes, radii), reference(x, lanes, radii))
        tables[f"radius {name}"] = lambda radii=radii: native(x, lanes, radii)
    copied = torch.empty(2 * x.numel() + lanes.numel())
    rivals = {"a copy of x and the lanes": lambda: torch.empty_like(copied).copy_(copied), **tables}
    rivals["PyTorch reference, radius 1e-3"] = lambda: reference(x, lanes, torch.tensor([1e-3], dtype=torch.float64))
    times = medians(rivals, repeats=7)
    record(benchmark, title, times, baseline="a copy of x and the lanes", per=lanes.numel() // 2, unit="ns")
    benchmark(tables["radius 1e-3"])


@pytest.mark.parametrize("length", [64, 512])
@pytest.mark.parametrize("name", ["softmax", "layer norm", "cross-entropy"])
def test_rows(benchmark, name, length):
    rows = ELEMENTS // length
    x, lanes = operands(rows, length)
    weights = torch.randn(length), torch.randn(LANES, length), torch.randn(LANES, length), 1e-5, True
    target = torch.arange(rows) % length
    native, reference, rest = {
        "softmax": (ops.softmax_difference, softmax_reference, ()),
        "layer norm": (ops.layer_norm_difference, layer_norm_reference, weights),
        "cross-entropy": (ops.cross_entropy_difference, cross_entropy_reference, (target,)),
    }[name]
    title = f"{name} in {LANES} difference lanes, {rows} rows of {length}"
    compare(benchmark, title, x, lanes, lambda *args: native(*args, *rest), lambda *args: reference(*args, *rest))


@pytest.mark.parametrize("rectified", [False, True], ids=["normal", "rectified"])
def test_pool(benchmark, rectified):
    x, lanes = operands(ELEMENTS // 1024, 32, 32)
    if rectified:  # ties of zeros, as behind a ReLU
        lanes, x = lanes * (x > 0), x.relu()
    title = f"2 x 2 max-pooling in {LANES} difference lanes, {len(x)} planes of 32 x 32{', rectified' if rectified else ''}"
    compare(
        benchmark,
        title,
        x,
        lanes,
        lambda *args: ops.max_pool2d_difference(*args, *HALVES),
        lambda *args: max_pool_reference(*args, *HALVES),
    )
