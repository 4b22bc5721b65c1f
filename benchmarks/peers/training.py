"""Train a network once, for all processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peers.problems import train
from peers.processes import Emit


def work(job: dict[str, Any], emit: Emit) -> None:
    """Leave the weights of a network in a folder."""
    emit("begin", method="training")
    train(job["network"], Path(job["folder"]))
