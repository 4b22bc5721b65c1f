"""Several processes of one group, each a worker that runs named cases and says what it found."""

import json
import os
import subprocess
import sys
from pathlib import Path

from processes import limited

ROOT = Path(__file__).parents[2]


def launched(module, processes, cases, folder):
    """What every process found: a list by rank of results by case.

    A process that fails ends the others; its output is in the error.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    run = subprocess.run(
        [*command, str(Path(__file__).with_name(f"{module}.py")), str(folder), *cases],
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=limited(),
        check=False,
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
