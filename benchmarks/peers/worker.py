"""One process of measurements: a job as JSON in its argument, events as lines of JSON on its standard output."""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from typing import Any

import torch


def main() -> None:
    job = json.loads(sys.argv[1])
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a peer prints is no event
    warnings.filterwarnings("ignore")
    torch.set_num_threads(job["threads"])

    def emit(kind: str, **values: Any) -> None:
        events.write(json.dumps({"kind": kind, **values}) + "\n")

    importlib.import_module(f"peers.{job['package']}").work(job, emit)


if __name__ == "__main__":
    main()
