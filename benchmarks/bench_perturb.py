"""Perturbed weights: fused regeneration against torch's two passes, the naive expression and a copy, per output element."""

import numpy as np
import pytest
import torch
from interleave import medians, record

from fastscape import ops
from fastscape.ops.perturb.reference import perturb as reference

RADIUS = 1e-3


@pytest.mark.parametrize("size", [1 << 20, 1 << 24], ids=["1M", "16M"])
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_pair(benchmark, size, distribution):
    weights, plus, minus, noise = torch.randn(size), torch.empty(size), torch.empty(size), torch.empty(size)
    pair = ops.Perturbation([weights], [[plus], [minus]], [7], distribution=distribution)
    pair.aim(1, 0, np.ones(1))
    pair.write(RADIUS, -RADIUS)
    ones = torch.ones(1, 1, dtype=torch.float64)
    arguments = ([weights], torch.tensor([7]), 1, [0], ones, [1], [RADIUS, -RADIUS], torch.float32, distribution)
    expected = reference(*arguments)[0][0]
    assert torch.equal(plus, expected[0])
    assert torch.equal(minus, expected[1])

    def two_passes():
        z = torch.randn(size)
        return torch.add(weights, z, alpha=RADIUS), torch.add(weights, z, alpha=-RADIUS)

    def two_passes_into_scratch():
        torch.randn(size, out=noise)
        torch.add(weights, noise, alpha=RADIUS, out=plus)
        torch.add(weights, noise, alpha=-RADIUS, out=minus)

    def naive():
        z = torch.randn(size)
        return weights + RADIUS * z, weights - RADIUS * z

    rivals = {
        "fastscape": lambda: pair.write(RADIUS, -RADIUS),
        "torch.randn, two add(alpha=)": two_passes,
        "the same with out=": two_passes_into_scratch,
        "w + eps * z, w - eps * z": naive,
        "two copies": lambda: (plus.copy_(weights), minus.copy_(weights)),
    }
    times = medians(rivals, repeats=7)
    title = f"w + eps z and w - eps z, {distribution}, {size >> 20} M elements"
    record(benchmark, title, times, baseline="torch.randn, two add(alpha=)", per=2 * size, unit="ns")
    benchmark(pair.write, RADIUS, -RADIUS)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_one_output_of_a_model(benchmark, distribution):
    """62 tensors of ResNet-18's sizes, one signed radius: what the loop does per evaluation of a large model."""
    from fastscape import zoo

    weights = [tensor.detach() for tensor in zoo.resnet18().parameters()]
    scratch = [torch.empty_like(tensor) for tensor in weights]
    total = sum(tensor.numel() for tensor in weights)
    move = ops.Perturbation(weights, [scratch], range(len(weights)), distribution=distribution)
    move.aim(1, 0, np.full(len(weights), 0.5))

    def lists():
        for weight, target in zip(weights, scratch, strict=True):
            torch.add(weight, torch.randn_like(weight), alpha=RADIUS, out=target)

    rivals = {
        "fastscape": lambda: move.write(RADIUS),
        "per tensor: randn_like, add(alpha=, out=)": lists,
        "copy": lambda: torch._foreach_copy_(scratch, weights),
    }
    times = medians(rivals, repeats=7)
    title = f"w + eps z, {distribution}, the 62 tensors of ResNet-18"
    record(benchmark, title, times, baseline="per tensor: randn_like, add(alpha=, out=)", per=total, unit="ns")
    benchmark(move.write, RADIUS)
