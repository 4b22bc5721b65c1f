"""``python -m peers``: every package on every network, or some of them; figures go to results/peers.json as they come."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from peers import PACKAGES, PROBLEMS, forms, memory, orthogonalisation, products, spectrum, tables
from peers.processes import Heard, run

HERE = Path(__file__).parents[1]
RESULTS = HERE / "results" / "peers.json"
MEASURES = {
    "products": products.measure,
    "forms": forms.measure,
    "memory": memory.measure,
    "orthogonalisation": orthogonalisation.measure,
    "spectrum": spectrum.measure,
}
VERSIONS = ("torch", "numpy", "scipy", "curvlinops-for-pytorch", "hessian-eigenthings", "pyhessian")


@click.command()
@click.option("--network", "networks", multiple=True, type=click.Choice(PROBLEMS), help="Default: every one.")
@click.option("--package", "packages", multiple=True, type=click.Choice(PACKAGES), help="Default: every one.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Rounds in which every method runs once.")
@click.option("--limit", default=600.0, show_default=True, help="Seconds in which a method must answer, or it has failed.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1))
@click.option("--out", default=RESULTS, show_default="benchmarks/results/peers.json", type=click.Path(path_type=Path))
def main(networks, packages, repeats: int, limit: float, threads: int, out: Path) -> None:
    """Measure fastscape, its peers and plain torch."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worker is ended too
    folder = HERE.parent / "build" / "peers"
    settings = {"limit": limit, "repeats": repeats, "job": {"folder": str(folder), "repeats": repeats, "threads": threads}}
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("start", total=None)
        for package in packages or PACKAGES:
            for name in _subjects(package, networks):
                label = f"{package}, {name}"

                def heard(event: dict[str, Any], label: str = label) -> None:
                    bar.update(task, description=f"{label}: {event.get('method', '')} {event['kind']}")

                bar.update(task, description=f"{label}: start")
                start = time.perf_counter()
                try:
                    if name in PROBLEMS and not (folder / f"{name}.pt").exists():
                        _train(name, settings, heard)
                    rows = MEASURES[package](name, settings, heard)
                except RuntimeError as error:
                    bar.console.print(f"{label}: {error}")
                    continue
                minutes = round((time.perf_counter() - start) / 60, 2)
                bar.console.print(f"{label}: {minutes} minutes")
                document = json.loads(out.read_text()) if out.exists() else {}
                entry = {"machine": machine(threads), "repeats": repeats, "minutes": minutes, "rows": rows}
                document.setdefault(package, {})[name] = entry
                document["markdown"] = tables.markdown(document)
                out.write_text(json.dumps(document, indent=1) + "\n")


def _subjects(package: str, networks: tuple[str, ...]) -> tuple[str, ...]:
    """What a package is run on: sizes of a diagonal matrix, the GPT alone for memory, or the networks asked for."""
    if package == "orthogonalisation":
        return tuple(orthogonalisation.SIZES)
    if package == "memory":
        return tuple(name for name in networks if name != "mlp") or ("gpt",)
    return networks or PROBLEMS


def _train(network: str, settings: dict[str, Any], heard: Heard) -> None:
    trained = run({"package": "training", "network": network} | settings["job"], limit=settings["limit"], heard=heard)
    if trained.died:
        raise RuntimeError(f"{network} could not be trained: {trained.died}")


def machine(threads: int) -> dict[str, Any]:
    """Processor, threads and versions, without the host's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "versions": {name: _version(name) for name in VERSIONS},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
