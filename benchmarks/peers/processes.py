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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1]
Emit = Callable[..., None]
Heard = Callable[[dict[str, Any]], None]


def reason(error: BaseException) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


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
    heard: Heard = lambda _: None,
) -> Outcome:
    """Run a job in its own process; ``limit`` is the most seconds between two of its events."""
    paths = os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent)])
    threads = {name: str(job["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    outcome = Outcome()
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            [sys.executable, "-m", "peers.worker", json.dumps(job)],
            env=os.environ | threads | {"PYTHONPATH": paths} | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                outcome.died = _listen(process, outcome, limit, heard)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        if outcome.died is None and process.returncode:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no message"])[-1][:300]
            outcome.died = f"exit status {process.returncode}: {last}"
    return outcome


def _listen(process: subprocess.Popen[str], outcome: Outcome, limit: float, heard: Heard) -> str | None:
    """Take events until the process closes its output; why it must be ended, or ``None``."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()  # ends with the process, whose output it reads
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


def failures(outcome: Outcome) -> dict[str, dict[str, str]]:
    """Rows of the methods that raised."""
    return {event["method"]: {"failed": event["why"]} for event in outcome.of("failed")}


def in_turns(
    job: dict[str, Any],
    names: Iterable[str],
    *,
    limit: float,
    heard: Heard,
    rounds: int,
    first: int = 0,
    environment: dict[str, str] | None = None,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Results of every method by round, each in its own process, and rows of those that failed, which are not tried again."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    failed: dict[str, Any] = {}
    for turn in range(first, first + rounds):
        for name in results:
            if name not in failed:
                outcome = run(job | {"method": name, "turn": turn}, limit=limit, environment=environment, heard=heard)
                failed |= failures(outcome)
                if outcome.died is not None:
                    failed[name] = {"failed": outcome.died}
                results[name] += outcome.of("result")
    return results, failed
