"""Start processes for measures, and what each of them found."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CASES = ROOT / "tests" / "distributed"  # of the tests, which the tables here repeat
for _folder in (ROOT, HERE.parent, ROOT / "tests", CASES):
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))


def launched(ranks, script, *arguments, **environment):
    """End ``torchrun SCRIPT ARGUMENTS``, one thread each; raises with the errors of its processes."""
    own = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), str(script)]
    done = subprocess.run([*command, *map(str, arguments)], env=own | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            "\n".join(line for line in done.stderr.splitlines() if line.startswith("[rank")) or done.stderr[-4000:]
        )


def measured(ranks, name, *arguments, **environment):
    """What every rank of a measure ``FILE:FUNCTION`` of this folder returns, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        launched(ranks, __file__, name, folder, json.dumps(arguments), **environment)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]


def case(ranks, name, *arguments):
    """What rank 0 of a case of the tests returns."""
    with tempfile.TemporaryDirectory() as folder:
        launched(ranks, CASES / "worker.py", json.dumps([[name, *arguments]]), FOUND=folder)
        return json.loads((Path(folder) / "0.0.json").read_text())["found"]


def main(name, folder, arguments):
    file, function = name.split(":")
    found = getattr(importlib.import_module(f"benchmarks.scaling.{file}"), function)(*json.loads(arguments))
    (Path(folder) / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
