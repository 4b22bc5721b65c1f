"""A process of several, under torchrun: runs one case of a file beside this one and writes what it found as JSON.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tests/distributed/worker.py FILE:CASE [JSON ...]

A case is a function of ``cases_FILE.py`` that every rank calls with the decoded arguments; what it returns must be JSON. The
default gloo group is there unless the case is marked by :func:`own_group`. Warnings are errors.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

_SECONDS = 300  # that a process waits for another, and twice as many for all: what has stopped answering has no end


def own_group(case):
    """Mark a case that makes its process group itself, or none."""
    case.own_group = True
    return case


@contextlib.contextmanager
def group():
    """The default process group."""
    dist.init_process_group("gloo", None, timedelta(0, _SECONDS))
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def outcome(call):
    """What a call returns, or raises: ``["ValueError", "message"]``."""
    try:
        return call()
    except Exception as error:
        return [type(error).__name__, str(error)]


def main(name, *arguments):
    faulthandler.dump_traceback_later(2 * _SECONDS, exit=True)
    warnings.simplefilter("error")
    file, function = name.split(":")
    case = getattr(importlib.import_module(f"cases_{file}"), function)
    found = Path(os.environ["FOUND"]) / f"{os.environ['RANK']}.json"
    with contextlib.nullcontext() if getattr(case, "own_group", False) else group():
        try:
            content = {"found": case(*map(json.loads, arguments))}
        except BaseException:
            found.write_text(json.dumps({"error": traceback.format_exc()}))
            raise
    found.write_text(json.dumps(content))


if __name__ == "__main__":
    sys.modules["worker"] = sys.modules["__main__"]  # the cases import it by this name
    main(*sys.argv[1:])
