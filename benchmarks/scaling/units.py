"""Blocks of directions on several processes: the share of the ideal, and what is spent beside the blocks."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import monotonic, perf_counter

import probing
import torch
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.probes.multifractal import shared
from fastscape.probes.multifractal.units import UnitEvaluator
from fastscape.runs import torch_workers
from fastscape.runs.executor_workers import ExecutorWorkers, Hired
from fastscape.runs.journal import Journal
from fastscape.runs.ranks import Ranks
from fastscape.runs.torch_workers import TorchWorkers

NETWORKS = {"CNN": ("cnn", 80, 256), "ResNet-18": ("resnet18", 64, 16), "transformer": ("tiny_transformer", 40, 24)}
WARM = 3  # blocks of each rank, after which its memory is there and its caches are full
RADII = (1e-4, 1e-3, 1e-2, 1e-1)


def network(name):
    """An objective of which a block takes 50 ms or more on one core."""
    torch.manual_seed(0)
    kind, _, samples = NETWORKS[name]
    if kind == "tiny_transformer":
        return fs.Objective(
            zoo.tiny_transformer(), zoo.pydoc_text(samples=samples, batch_size=samples), criterion=F.cross_entropy
        )
    options, images = ({"width": 16}, {"size": 16}) if kind == "cnn" else ({"width": 16}, {"size": 16, "channels": 3})
    data = zoo.digits(samples=samples, batch_size=samples, **images)
    return fs.Objective(getattr(zoo, kind)(**options), data, criterion=F.cross_entropy)


class Spent:
    """Seconds of calls by name, and when they began and ended on a clock that all processes of the machine share."""

    def __init__(self):
        self.calls = defaultdict(list)

    def watch(self, owner, attribute, name):
        """Time every call of a function from now on."""
        plain, calls = getattr(owner, attribute), self.calls

        def timed(*arguments, **options):
            start = monotonic()
            found = plain(*arguments, **options)
            if found != []:  # a look at the store of a rank that waits is no cost of a block
                calls[name].append((start, monotonic()))
            return found

        setattr(owner, attribute, timed)

    def seconds(self, *names):
        return sum(end - start for name in names for start, end in self.calls[name])


def shares(name, blocks, planned, apart=False):
    """Of this rank: when its blocks began and ended, and the seconds beside them, once the program is traced.

    ``planned``: a file with the plan that all runs obey, so that their blocks are alike; the first of them makes it.

    ``apart``: every rank makes all blocks and knows of no other, which shows what the machine gives to so many processes.
    """
    objective, together = network(name), int(os.environ["WORLD_SIZE"]) > 1 and not apart
    work = {"precision": "difference", "banks": 1, "radii": RADII}
    common = {"distributed": together}
    made, few = Path(planned).exists(), fs.ProbeSettings(count=2, **work)
    first = fs.multifractal(objective, few, **({"plan": fs.load(planned)} if made else {"method": "graph"}), **common)  # traces
    if not made:
        first.save(planned)
    unit = first.meta["plan"]["ways"][0]["unit"]
    settings, spent = fs.ProbeSettings(count=blocks * unit, **work), Spent()
    for owner, attribute, what in (
        (UnitEvaluator, "__call__", "block"),
        (UnitEvaluator, "learn", "start-up"),
        (Ranks, "say", "store"),
        (TorchWorkers, "_draw", "store"),
        (TorchWorkers, "_words", "store"),
        (torch_workers, "_finish", "outcome"),
        (shared, "agree", "agreement"),
    ):
        spent.watch(owner, attribute, what)
    start = perf_counter()
    result = fs.multifractal(objective, settings, plan=first, **common)
    whole, ended = perf_counter() - start, monotonic()
    found = {
        "whole": whole,
        "blocks": list(spent.calls["block"]),
        "outcome": [list(spent.calls["outcome"]), ended],
        "seconds": {what: spent.seconds(what) for what in ("block", "start-up", "store", "agreement")},
        "unit": unit,
        "digest": probing.digest(result),
    }
    journal = Spent()
    journal.watch(Journal, "append", "journal")
    journal.watch(UnitEvaluator, "__call__", "block")
    with tempfile.TemporaryDirectory() as folder:
        fs.multifractal(objective, settings, method="graph", resume=f"{folder}/{os.environ['RANK']}", **common)
    found["journal"] = journal.seconds("journal") / max(journal.seconds("block"), 1e-9)
    return found


def throughput(ranks, until=max):
    """Blocks per second from when all ranks were warm until the last of them ended its own, or the first (``until=min``)."""
    begun = max(rank["blocks"][WARM][0] for rank in ranks)
    ended = until(rank["blocks"][-1][1] for rank in ranks)
    blocks = [(start, end) for rank in ranks for start, end in rank["blocks"] if end > begun and start < ended]
    return sum((min(end, ended) - max(start, begun)) / (end - start) for start, end in blocks) / (ended - begun)


def groups():
    """Seconds per group of a process pool beside its blocks, after its start, and the numbers' digest."""
    sent, answered = [], []
    submit, values = Hired.submit, ExecutorWorkers._values

    def timed(self, plan, units, seconds):
        start = perf_counter()
        future = submit(self, plan, units, seconds)
        future.add_done_callback(lambda _: sent.append(perf_counter() - start))
        return future

    def noted(self, answer, left):
        answered.append(sum(seconds for _, _, seconds, _ in answer.values))
        return values(self, answer, left)

    Hired.submit, ExecutorWorkers._values = timed, noted
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            source = fs.Source(partial(probing.objective, "cnn"))
            result = probing.probed("loop", of=source, executor=pool, distributed=False, probe={"count": 64, "banks": 1})
    finally:
        Hired.submit, ExecutorWorkers._values = submit, values
    beside = [whole - inside for whole, inside in zip(sent, answered, strict=True)]
    return {"first": beside[0], "later": statistics.median(beside[1:]), "groups": len(beside), "digest": probing.digest(result)}
