"""Would it pay to make the next perturbed weights while the current forward runs? The loop does not: this is why.

It would need a second scratch copy of the parameters. Both variants use the two threads of the pool or of a helper: in turns,
with forward and kernel on both, or at once, with one thread each.
"""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from interleave import medians, record
from torch.nn import functional as F

from fastscape import ops, zoo


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="one thread has nothing to overlap with")
@pytest.mark.parametrize("name", ["mlp, batch 128", "resnet18, batch 16"])
def test_overlap(benchmark, name):
    torch.manual_seed(0)
    if name.startswith("mlp"):
        model, inputs, targets = zoo.mlp(), torch.randn(128, 64), torch.randint(0, 10, (128,))
    else:
        model, inputs, targets = zoo.resnet18(), torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))
    models = [copy.deepcopy(model).eval().requires_grad_(False) for _ in range(2)]
    base = [tensor.detach() for tensor in model.parameters()]
    moves = [ops.Perturbation(base, [[p.data for p in each.parameters()]], range(len(base))) for each in models]
    for move in moves:
        move.aim(1, 0, np.full(len(base), 0.5))
    threads, repeats = torch.get_num_threads(), 200 if len(base) < 10 else 4

    def forward(which):
        return F.cross_entropy(models[which](inputs), targets)

    def in_turns():
        for step in range(repeats):
            moves[0].write(1e-3 * (step + 1))
            forward(0)

    def at_once():
        torch.set_num_threads(1)
        for step in range(repeats):
            written = helper.submit(moves[(step + 1) % 2].write, 1e-3 * (step + 2))
            forward(step % 2)
            written.result()
        torch.set_num_threads(threads)

    with torch.no_grad(), ThreadPoolExecutor(1, initializer=lambda: torch.set_num_threads(1)) as helper:
        times = medians({"in turns": in_turns, "at once": at_once}, repeats=7)
    record(benchmark, f"kernel and forward, {name}, float32", times, baseline="in turns", per=repeats, unit="us")
    benchmark.pedantic(in_turns, rounds=1)
