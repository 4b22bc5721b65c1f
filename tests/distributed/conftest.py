"""Several processes under torchrun, and what each of them found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import limited

HERE = Path(__file__).parent
collect_ignore_glob = ["cases_*.py", "worker.py"]  # which run under torchrun


@pytest.fixture(scope="session")
def crew(tmp_path_factory):
    """Run a case of ``cases_FILE.py`` on so many ranks: ``crew("FILE:case", 2, *arguments)`` -> what each rank returned.

    The arguments are JSON. Every process has one thread. A case runs once for each number of ranks and arguments in a session.

    Args:
        environment: further variables.
        launch: further arguments of torchrun.
        fails: whether torchrun ends with an error, of which the ranks that wrote nothing are ``None``.
    """
    known = {}

    def run(case, ranks, *arguments, environment=None, launch=(), fails=False):
        key = json.dumps([case, ranks, arguments, environment, launch])
        if key not in known:
            known[key] = started(case, ranks, arguments, environment or {}, launch, fails=fails)
        return known[key]

    def started(case, ranks, arguments, environment, launch, *, fails):
        folder = tmp_path_factory.mktemp("ranks")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *launch]
        command += [str(HERE / "worker.py"), case, *map(json.dumps, arguments)]
        settings = {"OMP_NUM_THREADS": "1", "FOUND": str(folder), "PYTHONPATH": os.pathsep.join(["", *sys.path])}
        done = subprocess.run(
            command, env=os.environ | settings | environment, capture_output=True, text=True, check=False, preexec_fn=limited()
        )
        files = [folder / f"{rank}.json" for rank in range(ranks)]
        content = [json.loads(file.read_text()) if file.exists() else {} for file in files]
        errors = [part["error"] for part in content if "error" in part]
        assert (done.returncode != 0) == fails, "\n".join([*errors, done.stderr[-4000:]])
        return [part.get("found") for part in content]

    return run
