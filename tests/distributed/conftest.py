"""Several processes under torchrun, and what each of them found."""

import json
import os
import sys
from pathlib import Path

import pytest
from launched import TOGETHER, sharded, torchrun

collect_ignore_glob = ["cases_*.py", "worker.py"]  # which run under torchrun


@pytest.fixture(scope="session")
def crew(tmp_path_factory):
    """Run a case on so many ranks: ``crew("FILE:case", 2, *arguments)`` -> what each rank returned.

    The arguments are JSON. Every process has one thread. A case runs once for each number of ranks and arguments in a session,
    those of ``TOGETHER`` in one launch.

    Args:
        launch: further arguments of torchrun.
        fails: whether torchrun ends with an error, of which the ranks that wrote nothing are ``None``.
    """
    known = {}

    def run(case, ranks, *arguments, launch=(), fails=False):
        key = json.dumps([case, ranks, arguments])
        if key not in known:
            cases = [[name] for name in TOGETHER[ranks]] + [["sharded:everything", sharded(ranks)]]
            cases = cases if [case, *arguments] in cases else [[case, *arguments]]
            for (name, *given), found in zip(cases, started(cases, ranks, launch, fails=fails), strict=True):
                known[json.dumps([name, ranks, given])] = found
        content, stderr = known[key]
        errors = [part["error"] for part in content if "error" in part]
        assert fails or all("found" in part for part in content), "\n".join([*errors, stderr])
        return [part.get("found") for part in content]

    def started(cases, ranks, launch, *, fails):
        folder = tmp_path_factory.mktemp("ranks")
        script = Path(__file__).with_name("worker.py")
        done = torchrun(
            ranks, script, json.dumps(cases), options=launch, FOUND=str(folder), PYTHONPATH=os.pathsep.join(["", *sys.path])
        )
        files = [[folder / f"{number}.{rank}.json" for rank in range(ranks)] for number in range(len(cases))]
        content = [[json.loads(file.read_text()) if file.exists() else {} for file in row] for row in files]
        told = any("error" in part for row in content for part in row)
        assert told or (done.returncode != 0) == fails, done.stderr[-4000:]
        return [(row, done.stderr[-4000:]) for row in content]

    return run
