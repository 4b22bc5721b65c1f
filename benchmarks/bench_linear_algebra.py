"""Tall-skinny products and updates of block Lanczos, and linear maps with perturbed weights, against torch."""

import pytest
import torch
from interleave import medians, record

from fastscape import ops

LENGTH = 1 << 20


@pytest.mark.parametrize(("rows", "columns"), [(8, 1), (32, 4), (64, 8)])
def test_block_algebra(benchmark, rows, columns):
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(rows, LENGTH, generator=generator)
    block = torch.randn(columns, LENGTH, generator=generator)
    exact = basis.double() @ block.double().T
    products = ops.block_gram(basis, block)
    torch.testing.assert_close(products, exact, rtol=1e-12, atol=1e-9)
    updated, _ = ops.block_update(block, basis, products / LENGTH)
    torch.testing.assert_close(updated, (block.double() - (exact / LENGTH).T @ basis.double()).float(), rtol=1e-5, atol=1e-6)
    single = (products / LENGTH).float()

    rivals = {
        "fastscape, float64 sums": lambda: ops.block_update(block, basis, ops.block_gram(basis, block) / LENGTH),
        "torch in float64": lambda: block.double() - (basis.double() @ block.double().T / LENGTH).T @ basis.double(),
        "torch in float32": lambda: (basis @ block.T, torch.addmm(block, single.T, basis, alpha=-1)),
    }
    times = medians(rivals, repeats=5)
    title = f"V^T w and w - V c, {rows} rows by {columns}, 1 M float32 each"
    record(benchmark, title, times, baseline="torch in float64", per=1, unit="s")
    benchmark.pedantic(rivals["fastscape, float64 sums"], rounds=2)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_perturbed_linear(benchmark, distribution):
    directions, rows, width = 8, 256, 1024
    x, weight = torch.randn(rows, width), torch.randn(width, width)
    scales, eps = torch.ones(directions, dtype=torch.float64), torch.full((directions, rows), 1e-3)
    arguments = (x, weight, 7, 1, list(range(directions)), scales, eps, distribution)
    ids = torch.tensor([7])

    def stored():
        moved = ops.perturb([weight], ids, 1, range(directions), scales[:, None], [1e-3], distribution=distribution)[0]
        return x @ moved.reshape(directions, width, width).mT

    def naive():
        return torch.stack([x @ (weight + 1e-3 * torch.randn_like(weight)).T for _ in range(directions)])

    torch.testing.assert_close(ops.perturbed_linear(*arguments), stored(), rtol=1e-4, atol=1e-2)
    rivals = {
        "fastscape.ops.perturbed_linear": lambda: ops.perturbed_linear(*arguments),
        "fastscape.ops.perturb, then torch": stored,
        "torch.randn_like, add, matmul": naive,
    }
    times = medians(rivals, repeats=5)
    title = f"x (W + eps Z)^T, {distribution}, 8 directions, 256 rows, 1024 by 1024"
    record(benchmark, title, times, baseline="torch.randn_like, add, matmul", per=directions, unit="us")
    benchmark.pedantic(rivals["fastscape.ops.perturbed_linear"], rounds=2)
