"""Cost of a product per vector in gradients, all methods interleaved in one process."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from peers.methods import methods
from peers.processes import Outcome, run
from peers.worker import WRONG

COUNTS = (1, 8)


def measure(network: str, settings: dict[str, Any], heard) -> dict[str, Any]:
    """Rows by number of vectors and method; a method that ends its process is left out of the next attempt."""
    return {str(count): _measured(network, count, settings, heard) for count in COUNTS}


def _measured(network: str, count: int, settings: dict[str, Any], heard) -> dict[str, Any]:
    wanted, rows = list(methods(count)), {}
    while wanted:
        job = {"package": "products", "network": network, "count": count, "methods": wanted} | settings["job"]
        outcome = run(job, limit=settings["limit"], heard=heard)
        rows |= failures(outcome)
        if outcome.died is None or outcome.method not in wanted:
            return _table(outcome, count) | rows
        rows[outcome.method] = {"failed": outcome.died}
        wanted = [name for name in wanted if name not in rows]
    return rows


def failures(outcome: Outcome) -> dict[str, Any]:
    return {event["method"]: {"failed": event["why"]} for event in outcome.of("failed")}


def _table(outcome: Outcome, count: int) -> dict[str, Any]:
    times, gradients = defaultdict(list), []
    for event in outcome.of("time"):
        times[event["method"]].append(event["seconds"])
        gradients.append(event["gradient"])
    if not gradients:
        return {"all": {"failed": outcome.died or "nothing was measured"}}
    unit = statistics.median(gradients)
    rows: dict[str, Any] = {"gradient": {"seconds": unit}}
    for event in outcome.of("checked"):
        name = event["method"]
        if times[name]:
            seconds = statistics.median(times[name]) / count
            rows[name] = {"error": event["error"], "setup": event["setup"] / unit}
            # a time of a wrong product is kept under another name, so that no table takes it for a success
            rows[name] |= {"gradients" if event["error"] <= WRONG else "gradients_of_wrong": seconds / unit}
    return rows
