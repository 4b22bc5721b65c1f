"""Run a script of tests on several processes of torchrun."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

LIMIT = "400"  # seconds after which a hang ends; no test waits for them


def torchrun(processes, *command, options=(), **environment):
    """The ended process of ``torchrun ... command``, with its output as text."""
    own = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | environment
    limit = [shutil.which("timeout"), "--kill-after=9", LIMIT] if shutil.which("timeout") else []
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *options]
    return subprocess.run([*limit, *launcher, *map(str, command)], env=own, capture_output=True, text=True, check=False)


def outcomes(processes, case, folder, *, options=(), fails=False):
    """What every rank of a case of ``probing.py`` wrote, by rank."""
    script = Path(__file__).with_name("probing.py")
    ended = torchrun(processes, script, case, folder, options=options)
    assert fails or ended.returncode == 0, ended.stderr[-6000:]
    return [json.loads((Path(folder) / f"{case}.{rank}.json").read_text()) for rank in range(processes)]
