"""Differences through activations and channel scales: the kernels against a copy of the same bytes, per element of a lane."""

import pytest
import torch
from interleave import medians, record

from fastscape import ops
from fastscape.ops.affine_difference.reference import affine_difference as affine_reference
from fastscape.ops.pointwise_difference.reference import pointwise_difference as reference

DIRECTIONS, SIZE = 16, 1 << 17
OPTIONS = {"clamp": [-1.0, 1.0], "elu": [1.0, 1.0, 1.0], "leaky_relu": [0.01], "softplus": [1.0]}
KINDS = ["relu", "leaky_relu", "clamp", "hardswish", "gelu", "gelu_tanh", "silu", "tanh", "softplus", "elu"]
RADII = [1e-7, 1e-3, 1e-1]


def _lanes(shape):
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.randn(DIRECTIONS, 2, 1, *shape, generator=generator)


def _copies(x, lanes):
    """The bytes that any implementation moves: x and the lanes read, the lanes written."""
    return lambda: (torch.empty_like(lanes).copy_(lanes), x.clone())


@pytest.mark.parametrize("kind", KINDS)
def test_pointwise(benchmark, kind):
    x, lanes = _lanes((SIZE,))
    options, rivals = OPTIONS.get(kind, []), {"a copy": _copies(x, lanes)}
    for radius in RADII:
        steps = torch.tensor([radius], dtype=torch.float64)
        found, expected = (f(x, lanes, steps, kind, options) for f in (ops.pointwise_difference, reference))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        rivals[f"fastscape, e = {radius:.0e}"] = lambda steps=steps: ops.pointwise_difference(x, lanes, steps, kind, options)
    steps = torch.tensor([RADII[1]], dtype=torch.float64)
    rivals["the reference in PyTorch"] = lambda: reference(x, lanes, steps, kind, options)
    title = f"differences through {kind}, {DIRECTIONS} lanes of {SIZE >> 10} Ki elements, one thread"
    _record(benchmark, title, rivals, lanes.numel() // 2)


@pytest.mark.parametrize("shape", [(32, 64, 64), (2048, 64, 1), (227, 64, 9)], ids=str)
def test_affine(benchmark, shape):
    x, lanes = _lanes(shape)
    scale, steps = torch.rand(shape[1]), torch.tensor([RADII[1]], dtype=torch.float64)
    arguments = x, lanes, steps, scale, torch.rand(DIRECTIONS, shape[1]), torch.rand(DIRECTIONS, shape[1])
    torch.testing.assert_close(ops.affine_difference(*arguments), affine_reference(*arguments))
    rivals = {
        "a copy": _copies(x, lanes),
        "fastscape": lambda: ops.affine_difference(*arguments),
        "the reference in PyTorch": lambda: affine_reference(*arguments),
    }
    _record(
        benchmark, f"differences through a scale per channel, x {list(shape)}, {DIRECTIONS} lanes", rivals, lanes.numel() // 2
    )


def _record(benchmark, title, rivals, elements):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        times = medians(rivals, repeats=7)
        record(benchmark, title, times, baseline="a copy", per=elements, unit="ns")
        benchmark(rivals[next(name for name in rivals if name.startswith("fastscape"))])
    finally:
        torch.set_num_threads(threads)
