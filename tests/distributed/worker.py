"""A process of several, under torchrun: runs cases of files beside this one and writes what each found as JSON.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tests/distributed/worker.py '[["FILE:CASE", ARGUMENTS], ...]'

A case is a function of ``cases_FILE.py``, or ``FILE.py``, that every rank calls with the arguments; what it returns must be JSON.
The default gloo group is there unless the case is marked by :func:`own_group`. Warnings are errors.
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
import torch.distributed.nn.functional  # noqa: F401 - its default arguments keep a group that is there before it is imported

_groups = 0  # of this process so far, so that none finds in the store what an earlier one left
_SECONDS = 900  # that a process waits for another, and twice as many for all: what has stopped answering has no end


def own_group(case):
    """Mark a case that makes its process group itself, or none."""
    case.own_group = True
    return case


@contextlib.contextmanager
def group():
    """The default process group."""
    global _groups
    _groups += 1
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    own = dist.PrefixStore(f"group {_groups}, attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", None, timedelta(0, _SECONDS), size, rank, own)
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


def function(case):
    """What ``FILE:CASE`` names."""
    file, name = case.split(":")
    beside = Path(__file__).with_name(f"cases_{file}.py")
    return getattr(importlib.import_module(beside.stem if beside.exists() else file), name)


def run(case, arguments, found):
    """Run a case and write what it found to a file; its exception too."""
    work = function(case)
    with contextlib.nullcontext() if getattr(work, "own_group", False) else group():
        try:
            content = {"found": work(*arguments)}
        except BaseException:
            found.write_text(json.dumps({"error": traceback.format_exc()}))
            raise
    found.write_text(json.dumps(content))


def main(cases):
    faulthandler.dump_traceback_later(2 * _SECONDS, exit=True)
    warnings.simplefilter("error")
    for number, (case, *arguments) in enumerate(json.loads(cases)):
        run(case, arguments, Path(os.environ["FOUND"]) / f"{number}.{os.environ['RANK']}.json")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # a model that is kept holds its group, one of whose threads may drop a tensor as Python ends, which aborts


if __name__ == "__main__":
    sys.modules["worker"] = sys.modules["__main__"]  # the cases import it by this name
    main(sys.argv[1])
