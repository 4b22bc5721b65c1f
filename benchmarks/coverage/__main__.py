"""``python -m benchmarks.coverage``: measured coverage to results/coverage.json as it comes, then the table docs/coverage.md."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from .cells import Cell, Job
from .page import page

ROOT = Path(__file__).parents[2]
STUDIES = ("multifractal", "means")  # modules with cells(repetitions, seed), and jobs(repetitions, seed) where they can resume


def jobs(repetitions: int, seed: int) -> Iterator[Job]:
    """Jobs of every study that is there, in order."""
    for name in STUDIES:
        if find_spec(f"{__package__}.{name}") is None:
            continue
        study = import_module(f"{__package__}.{name}")
        if hasattr(study, "jobs"):
            yield from ((f"{name}: {job}", compute) for job, compute in study.jobs(repetitions, seed))
        else:
            yield f"{name}", lambda study=study: list(study.cells(repetitions, seed))


def stored(path: Path, settings: dict[str, int]) -> dict[str, list[Cell]]:
    """Finished jobs of an earlier run under the same settings."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text())
    if document["settings"] != settings:
        return {}
    return {name: [Cell(**cell) for cell in cells] for name, cells in document["jobs"].items()}


def write(path: Path, settings: dict[str, int], finished: dict[str, list[Cell]]) -> None:
    """All finished jobs, one cell a line."""
    rows = [
        f"  {json.dumps(name)}: [\n" + ",\n".join(f"   {json.dumps(dataclasses.asdict(cell))}" for cell in cells) + "\n  ]"
        for name, cells in finished.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(f'{{"settings": {json.dumps(settings)},\n "jobs": {{\n' + ",\n".join(rows) + "\n }\n}\n")
    part.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=200, help="samples per cell (default 200: about 2 points)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="20 samples per cell, and both files to build/")
    parser.add_argument("--only", default="", help="run only the jobs whose name contains this text, and write no page")
    options = parser.parse_args()
    repetitions = 20 if options.quick else options.repetitions
    path = ROOT / ("build" if options.quick else "benchmarks/results") / "coverage.json"
    settings = {"repetitions": repetitions, "seed": options.seed}
    finished = stored(path, settings)
    start = time.perf_counter()
    for name, compute in jobs(repetitions, options.seed):
        if options.only not in name or name in finished:
            continue
        finished[name] = compute()
        write(path, settings, finished)
        print(f"{time.perf_counter() - start:6.0f} s  {name}", file=sys.stderr, flush=True)
    if not options.only:
        target = path.with_name("coverage.md") if options.quick else ROOT / "docs" / "coverage.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(page([cell for cells in finished.values() for cell in cells], settings))


if __name__ == "__main__":
    main()
