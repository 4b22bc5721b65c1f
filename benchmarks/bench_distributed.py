"""Several processes against one: what of the ideal W is reached, and what sums that have the same bits cost.

Every process has one thread. A measure is a function of ``MEASURES``, which all ranks of a group call and whose rank 0 returns
seconds by name and a digest of the numbers; to add one, write it and give it a title. The machine must have a free core for
each rank: ratios of a busy one mean nothing.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from interleave import keep, medians
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.curvature.exact_sum import exact_sum
from fastscape.evaluation.group import Group

RANKS = (1, 2)
BLOCK, BATCHES, SAMPLES = 4, 8, 160
LARGE = 10_000_000  # elements of the sums that are timed alone


def in_turns(rivals, repeats=7):
    """Median seconds of each rival, which all ranks run together; each waits for the last."""

    def together(run):
        def once():
            run()
            dist.barrier()

        return once

    return medians({name: together(run) for name, run in rivals.items()}, repeats)


def digest(*tensors):
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(tensor.contiguous().numpy().tobytes())
    return whole.hexdigest()


def convolutional():
    """A network of which a product of a batch takes tens of milliseconds on one core."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    data = [
        (torch.randn(SAMPLES, 1, 16, 16, generator=draw), torch.randint(0, 10, (SAMPLES,), generator=draw))
        for _ in range(BATCHES)
    ]
    return fs.Objective(zoo.cnn(width=16), data, criterion=F.cross_entropy)


def products():
    """A block of Hessian products over eight batches."""
    matrix = fs.hessian(convolutional(), distributed=True)
    vectors = torch.randn(matrix.shape[0], BLOCK, generator=torch.Generator().manual_seed(1))
    found = matrix @ vectors
    return in_turns({"Hessian products": lambda: matrix @ vectors}), digest(found)


def large():
    """A product of a network of about as many parameters as the sums have numbers, in a block of one vector."""
    torch.manual_seed(0)
    width = 1800
    layers = [layer for _ in range(3) for layer in (torch.nn.Linear(width, width), torch.nn.Tanh())]
    draw = torch.Generator().manual_seed(0)
    data = [
        (torch.randn(SAMPLES, width, generator=draw), torch.randint(0, 10, (SAMPLES,), generator=draw)) for _ in range(BATCHES)
    ]
    objective = fs.Objective(torch.nn.Sequential(*layers, torch.nn.Linear(width, 10)), data, criterion=F.cross_entropy)
    matrix = fs.hessian(objective, distributed=True, method="graph")
    vector = torch.randn(matrix.shape[0], 1, generator=draw)
    found = matrix @ vector
    return in_turns({"a product": lambda: matrix @ vector}, 3), digest(found)


def sums():
    """The sum over eight batches of one vector of 10 million numbers: exact, and by float64 whose bits depend on the order."""
    ranks = Group(dist.group.WORLD, torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    terms = [torch.randn(1, LARGE, generator=draw) for _ in range(BATCHES)][ranks.rank :: ranks.size]
    weights, parts = [1 / BATCHES] * len(terms), [slice(0, LARGE)]

    def exact():
        return exact_sum(terms, weights, parts, count=BATCHES, limbs=1, over=ranks, dtype=torch.float32)  # as products are

    def plain():
        total = torch.zeros(1, LARGE, dtype=torch.float64)
        for term, weight in zip(terms, weights, strict=True):
            total.add_(term, alpha=weight)
        return ranks.add(total)

    return in_turns({"exact": exact, "float64, any order": plain}, 3), digest(exact())


MEASURES = {
    "products": (products, f"{BATCHES} batches of {SAMPLES} in a CNN, blocks of {BLOCK} vectors"),
    "large": (large, f"{BATCHES} batches of {SAMPLES} in three layers of 1800, one vector"),
    "sums": (sums, f"sums of {BATCHES} terms of {LARGE / 1e6:.0f} million numbers"),
}


def measured(name, ranks):
    """Seconds and digest of a measure on so many ranks."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), __file__]
        path = os.pathsep.join(["", *sys.path])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        subprocess.run([*command, name, str(out)], env=environment, check=True, capture_output=True)
        return json.loads(out.read_text())


@pytest.mark.skipif((os.cpu_count() or 1) < max(RANKS), reason="every rank needs a core of its own")
@pytest.mark.parametrize("name", MEASURES)
def test_ranks(benchmark, name):
    runs = {ranks: measured(name, ranks) for ranks in RANKS}
    assert len({run["digest"] for run in runs.values()}) == 1  # the same bits for any number of ranks
    for what, alone in runs[1]["seconds"].items():
        rows = {
            f"{ranks} rank{'s' * (ranks > 1)}": {
                "time": round(1e3 * run["seconds"][what], 3),
                "ratio": round(alone / run["seconds"][what] / ranks, 3),
            }
            for ranks, run in runs.items()
        }
        title = f"{what} by torch.distributed, {MEASURES[name][1]}; ratio: share of the ideal; bits {runs[1]['digest'][:16]}"
        keep(benchmark, title, rows, unit="ms", baseline="1 rank")
    benchmark.pedantic(measured, (name, 1), rounds=1)


def main(name, out):
    dist.init_process_group("gloo")
    seconds, found = MEASURES[name][0]()
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps({"seconds": seconds, "digest": found}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
