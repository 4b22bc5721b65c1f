"""``kill -9`` at random moments of a probe with a journal: does the run that goes on give the bytes of an undisturbed one?

Runs are processes forked from this one, which has imported everything, so that a kill falls into the work and not into imports.
Two ranks are given what torchrun gives its processes, and end as torchrun ends them: one is killed, the launcher kills the other,
and both are started again. Writes ``results/kills.json``, whose table ``make bench`` puts into RESULTS.md.

    python benchmarks/kills.py [--count 50] [--seed 0]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import random
import signal
import socket
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path

import torch
from rich.progress import track
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.runs.journal import Journal

HERE = Path(__file__).parent
SETTINGS = fs.ProbeSettings(count=40, banks=2, radii=(1e-4, 1e-3, 1e-2, 1e-1), precision="float64")
METHOD = "loop"  # which traces nothing: most of a run is units


def objective():
    torch.manual_seed(0)
    model = zoo.cnn()
    return fs.Objective(model, zoo.digits(samples=256, batch_size=128), criterion=F.cross_entropy)


def digest(result):
    arrays = (result.measured.even, result.measured.odd)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def probe(folder, ranks):
    """Digest of a run with a journal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of processors, where a machine has two kinds
        result = fs.multifractal(
            objective(),
            SETTINGS,
            method=METHOD,
            resume=folder,
            distributed=ranks > 1,
        )
    return digest(result)


def free_port():
    with socket.socket() as end:
        end.bind(("localhost", 0))
        return end.getsockname()[1]


class Attempt:
    """Ranks that make one probe, each in a process of its own."""

    def __init__(self, folder, ranks):
        self._answers, self.processes = [], []
        port = free_port()
        for rank in range(ranks):
            read, write = os.pipe()
            process = os.fork()
            if not process:
                os.close(read)
                self._work(folder, rank, ranks, port, write)
            os.close(write)
            self._answers.append(read)
            self.processes.append(process)

    @staticmethod
    def _work(folder, rank, ranks, port, write):
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
            if ranks > 1:
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
                names |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "kills"}
                os.environ |= {name: str(value) for name, value in names.items()}
            answer = probe(folder, ranks)
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        with open(write, "wb") as stream:
            pickle.dump(answer, stream)
        os._exit(0)

    def kill(self, rank):
        """Kill one rank, then the others, as a launcher does that has seen it; whether it was still at work."""
        alive = os.waitpid(self.processes[rank], os.WNOHANG)[0] == 0
        for process in (self.processes[rank], *self.processes) if alive else self.processes:
            if process != self.processes[rank] or alive:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        self.end()
        return alive

    def end(self):
        """What every rank gave; ``None`` of one that was killed."""
        found = []
        for read, process in zip(self._answers, self.processes, strict=True):
            with open(read, "rb") as stream:
                data = stream.read()
            with suppress(ChildProcessError):
                os.waitpid(process, 0)
            found.append(pickle.loads(data) if data else None)
        return found


def units(folder):
    """Whole units in a journal; 0 before it is begun."""
    return len(Journal(folder).done)


def trial(ranks, draw, seconds):
    """Kill a run at a random moment, and go on."""
    with tempfile.TemporaryDirectory() as folder:
        attempt = Attempt(folder, ranks)
        time.sleep(draw.uniform(0, seconds))
        alive = attempt.kill(draw.randrange(ranks))
        kept = units(folder)
        return alive, kept, Attempt(folder, ranks).end()


def measure(ranks, count, seed):
    """Row of the table."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        expected = Attempt(folder, ranks).end()
        seconds = time.perf_counter() - start
        whole = units(folder)
    if len(set(expected)) > 1 or ":" in expected[0]:
        raise RuntimeError(f"an undisturbed run failed: {expected}")
    same, at_work, kept = 0, 0, []
    others = []
    for _ in track(range(count), f"{ranks} ranks" if ranks > 1 else "one process"):
        alive, there, found = trial(ranks, draw, seconds)
        same += found == expected
        others += [] if found == expected else [found]
        at_work += alive
        kept.append(there)
    for found in others:
        print("other:", found, file=sys.stderr)
    partly = sum(0 < each < whole for each in kept)
    return {
        "ranks": ranks,
        "trials": count,
        "same": same,
        "at work": at_work,
        "partly": partly,
        "digest": expected[0],
        "units": whole,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(ranks, options.count, options.seed) for ranks in (1, 2)]
    head = "| killed | same bytes | killed at work | with part of the units written | digest |\n|---|---|---|---|---|"
    names = {1: "one process", 2: "one of two ranks"}
    lines = [
        f"| {names[row['ranks']]} | {row['same']} of {row['trials']} | {row['at work']} | {row['partly']} "
        f"| {row['digest'][:16]} |"
        for row in rows
    ]
    markdown = "\n".join([head, *lines])
    (HERE / "results" / "kills.json").write_text(json.dumps({"rows": rows, "markdown": markdown}, indent=1) + "\n")
    print(markdown)
    return 0 if all(row["same"] == row["trials"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
