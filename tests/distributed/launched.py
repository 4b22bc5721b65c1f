"""Scripts and cases of tests on several processes of torchrun."""

import os
import shutil
import subprocess
import sys

from cases_sharded import CASES

HEAVY = ("products", "multifractal", "refused", "beside", "same function, float64", "responses, signs")  # on two processes
TOGETHER = {  # cases that one launch of so many processes runs, one after another: a launch takes seconds
    1: ["products:products", "probing:same"],
    2: [
        *(f"products:{name}" for name in ("groups", "products", "blocks", "unlike", "failures", "interrupted")),
        *(f"probing:{name}" for name in ("same", "refused", "failing", "narrow", "deadline", "groups")),
    ],
    4: ["products:products", "probing:same"],
}
LIMIT = "2000"  # seconds after which a hang ends, twenty times what a launch takes; no test waits for them


def sharded(ranks):
    """Names of the cases of sharded models for a number of processes."""
    cases = [name for name in CASES if ranks == 2 or not name.startswith(HEAVY)]
    return [name for name in cases if ranks == 4 or name != "hybrid"]


def torchrun(processes, *command, options=(), **environment):
    """The ended process of ``torchrun ... command``, with its output as text."""
    own = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | environment
    limit = [shutil.which("timeout"), "--kill-after=9", LIMIT] if shutil.which("timeout") else []
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *options]
    return subprocess.run([*limit, *launcher, *map(str, command)], env=own, capture_output=True, text=True, check=False)
