"""What a user may do to the package and what must hold: `make reliability`, in minutes, from a seed.

    python benchmarks/reliability.py                         all trials at their full counts
    python benchmarks/reliability.py --only files --count 200 --seed 3

- threads: two probes in two threads beside a thread that draws random numbers; ``--count`` is in seconds.
- instants: exceptions of the model, and Ctrl-C at random lines of the package and by a timer, over all public probes.
- files: damaged and hostile files of every format, each loaded, printed and put on a page, with the peak of memory.
- inputs: every argument of every public function, every option of every command, with values that it cannot have.

Every trial is added to ``benchmarks/results/reliability.json`` as it ends; the exit status is 1 where one failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from machine import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"
COUNTS = {"threads": 60, "instants": 3000, "files": 2000, "inputs": 4000}  # a quarter of those that there are
WORDS = {
    "threads": "calls of probes in two threads, beside one that draws",
    "instants": "exceptions and Ctrl-Cs at random instants",
    "files": "damaged and hostile files",
    "inputs": "bad inputs",
}


def markdown(trials: dict[str, Any]) -> str:
    """A table of what was tried, and of what was counted in it."""
    rows = ["| trial | tried | failed | seed | of them |", "|---|---|---|---|---|"]
    for name, words in WORDS.items():
        if name in trials:
            of = trials[name]
            counts = "; ".join(f"{key} {value:,}" for key, value in of["counts"].items() if key != "tried")
            rows.append(f"| {words} | {of['tried']:,} | {of['failed']:,} | {of['seed']} | {counts} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(COUNTS), action="append", help="one trial; may be repeated")
    parser.add_argument("--count", type=int, help="how many are tried, of threads the seconds; the full count by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="do not write the results")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    failed = 0
    for name in options.only or COUNTS:
        trial = import_module(f"benchmarks.trials.{name}").trial
        start, count = time.monotonic(), options.count or COUNTS[name]
        found = trial(count, options.seed) | {"seed": options.seed, "minutes": round((time.monotonic() - start) / 60, 1)}
        failed += found["failed"]
        print(f"{name}: {found['tried']} tried, {found['failed']} failed, {found['minutes']} min", found["counts"])
        print(*found["failures"], sep="\n")
        if not options.dry:
            trials = json.loads(RESULTS.read_text())["trials"] if RESULTS.exists() else {}
            trials[name] = found
            RESULTS.write_text(
                json.dumps({"machine": machine(), "trials": trials, "markdown": markdown(trials)}, indent=1) + "\n"
            )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
