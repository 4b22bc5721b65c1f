"""``python -m ptx.worker requests answers``: compile pickled jobs, and append each result as soon as it is there."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from ptx.aot import run_job


def main(requests: Path, answers: Path) -> None:
    """Compile every job of ``requests``."""
    with answers.open("wb") as stream:
        for job in pickle.loads(requests.read_bytes()):
            stream.write(pickle.dumps(run_job(job, requests.parent)))
            stream.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
