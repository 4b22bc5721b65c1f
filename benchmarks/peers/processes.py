"""Start workers, collect their events, and turn what ends badly into a result."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1]


@dataclass
class Outcome:
    """What a worker left.

    Attributes:
        events: in order.
        died: why it did not end by itself, or ``None``.
        method: that was being measured then.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    died: str | None = None
    method: str | None = None

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]


def run(
    job: dict[str, Any],
    *,
    limit: float,
    environment: dict[str, str] | None = None,
    heard: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Outcome:
    """Run a job in its own process; ``limit`` is the most seconds between two of its events."""
    paths = os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent)])
    threads = {name: str(job["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    outcome = Outcome()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "peers.worker", json.dumps(job)],
            env=os.environ | threads | {"PYTHONPATH": paths} | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            outcome.died = _listen(process, outcome, limit, heard)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if outcome.died is None and process.returncode:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no message"])[-1][:300]
            outcome.died = f"exit status {process.returncode}: {last}"
    return outcome


def _listen(
    process: subprocess.Popen[str], outcome: Outcome, limit: float, heard: Callable[[dict[str, Any]], None]
) -> str | None:
    """Take events until the process closes its output; why it must be ended, or ``None``."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=limit)
        except queue.Empty:
            return f"no answer in {limit:g} s"
        if line is None:
            process.wait(limit)
            return None
        event = json.loads(line)
        outcome.events.append(event)
        outcome.method = event.get("method", outcome.method)
        heard(event)
