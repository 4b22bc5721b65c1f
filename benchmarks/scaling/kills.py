"""SIGKILL at random moments: how many of so many runs end, resumed, with the bytes of a run that was left alone.

Processes are copies of one that has everything loaded and has not begun autograd, which does not outlive a fork, so that a run
takes a second: plain ones, and those of torchrun's agent, which starts both again when one has died.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import probing
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

PROBE = {"count": 40, "banks": 2}
LATE = 10  # times that a moment is drawn anew because the run had ended before it


def _run(folder, together):
    return probing.digest(probing.probed(probe=PROBE, distributed=together, resume=f"{folder}/journal"))


def _copy(work):
    """Number of a copy of this process that does some work and ends."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def _undisturbed(folder):
    """The digest of a run, in a copy of this process."""
    found, status = probing.copied(lambda: _run(folder, together=False))
    if status:
        raise RuntimeError("the run failed")
    return found


def alone(runs, seed):
    """How many of the runs of one process were the same, and the digest; each is killed once."""
    draw, same = random.Random(seed), 0
    start = time.perf_counter()
    expected = _undisturbed(tempfile.mkdtemp())
    whole = time.perf_counter() - start
    for _ in range(runs):
        for _ in range(LATE):
            with tempfile.TemporaryDirectory() as folder:
                child = _copy(lambda folder=folder: _run(folder, together=False))
                time.sleep(draw.random() * whole)
                os.kill(child, signal.SIGKILL)
                if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
                    same += _undisturbed(folder) == expected
                    break
    return {"same": same, "runs": runs, "digest": expected}


def rank(folder, victim, moment):
    """A process of torchrun's agent: the victim of the first attempt is killed at a moment, in seconds."""
    signal.signal(
        signal.SIGTERM, lambda *_: os._exit(1)
    )  # one whose rank 0 has died does not wait for it until the agent kills it
    me, first = os.getpid(), os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and int(os.environ["RANK"]) == victim:

        def kill():
            time.sleep(moment)
            if os.getppid() == me:
                Path(folder, "killed").touch()
                os.kill(me, signal.SIGKILL)

        killer = _copy(kill)
    else:
        killer = None
    start = time.perf_counter()
    found = _run(folder, together=True)
    taken = time.perf_counter() - start
    if killer is not None:
        os.kill(killer, signal.SIGKILL)
        os.waitpid(killer, 0)
    Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps([found, taken]))


def _launched(folder, victim, moment):
    """What two ranks found, and whether one was killed."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=Path(folder).name,
        max_restarts=1,
        monitor_interval=0.02,
        start_method="fork",
    )
    elastic_launch(config, rank)(folder, victim, moment)
    found = [json.loads(Path(folder, f"{number}.json").read_text()) for number in range(2)]
    return found, Path(folder, "killed").exists()


def together(runs, seed):
    """The same of one of two ranks under torchrun's agent."""
    draw, same = random.Random(seed), 0
    expected = _undisturbed(tempfile.mkdtemp())
    with tempfile.TemporaryDirectory() as folder:
        whole = _launched(folder, -1, 0.0)[0][0][1]
    for _ in range(runs):
        for _ in range(LATE):
            with tempfile.TemporaryDirectory() as folder:
                found, killed = _launched(folder, draw.randrange(2), draw.random() * whole)
                if killed:
                    same += all(digest == expected for digest, _ in found)
                    break
    return {"same": same, "runs": runs, "digest": expected}
