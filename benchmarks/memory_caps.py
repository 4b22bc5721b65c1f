"""Peak resident memory of every call that takes ``memory=``, above what was resident before it, under several caps.

Each figure is of a process of its own in which the same call has first been made on a tiny model, so that imports, kernels and
caches are there; then the high-water mark of the process is set back, and read after the call. ``uncapped`` is the same with
``memory=`` left out. A refusal names a number of bytes, which is tried in turn.

    python benchmarks/memory_caps.py [--write] [--whole] [--only spectrum ...] [--network wide|images] [--caps 64 128 256]

One way of each kind of call, in minutes; ``--whole`` takes all, and without a cap. ``--write`` adds each figure as it is made,
and goes on where it was stopped; remove results/memory_caps.json to begin anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "memory_caps.json"
MIB = 2**20
CAPS = (64, 128, 256)
MAIN = ("losses", "responses difference", "quadratic_forms", "hessian", "spectrum", "slice1d", "multifractal", "temperature")
VECTORS: dict[int, Any] = {}  # that products are of, which the caller holds


def network(name: str, scale: float = 1.0) -> Any:
    """``"wide"``: a perceptron of 0.8 M parameters on 512 samples; ``"images"``: convolutions on 64 images; small at scale 0."""
    import torch
    from torch import nn

    import fastscape as fs

    torch.manual_seed(0)
    if name == "wide":
        width, count = (640, 512) if scale else (8, 4)
        model: nn.Module = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 10)
        )
        inputs = torch.randn(count, width)
    else:
        side, channels, count = (32, 16, 64) if scale else (8, 2, 4)
        model = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GELU(),
            nn.AvgPool2d(4),
            nn.Flatten(),
            nn.Linear(channels * (side // 4) ** 2, 10),
        )
        inputs = torch.randn(count, 3, side, side)
    targets = torch.arange(count) % 10
    return fs.Objective(model, [(inputs, targets)], criterion=nn.functional.cross_entropy)


def calls() -> dict[str, Callable[[Any, dict[str, Any]], object]]:
    """The calls, of an objective and ``memory=`` or nothing."""
    import torch

    import fastscape as fs

    radii = [0.001 * 2**k for k in range(6)]
    signed = [-0.1, -0.05, 0.0, 0.05, 0.1, 0.2]

    def along(objective: Any, count: int = 16) -> Any:
        return fs.Directions(objective, count)

    def product(make: Any, method: str | None = None, block: int = 8) -> Callable[[Any, dict[str, Any]], object]:
        def call(objective: Any, memory: dict[str, Any]) -> object:
            matrix = make(objective, method=method, **memory)
            for _ in range(2):
                found = matrix @ VECTORS[objective.size][:, :block]
                del found
            return None

        return call

    return {
        "losses": lambda o, m: fs.losses(o, along(o), signed, **m),
        "losses vmap": lambda o, m: fs.losses(o, along(o), signed, method="vmap", precision="float32", **m),
        "losses loop": lambda o, m: fs.losses(o, along(o), signed, method="loop", **m),
        "responses": lambda o, m: fs.responses(o, along(o), radii, **m),
        "responses float64": lambda o, m: fs.responses(o, along(o), radii, precision="float64", **m),
        "responses float64 vmap": lambda o, m: fs.responses(o, along(o), radii, precision="float64", method="vmap", **m),
        "responses float32": lambda o, m: fs.responses(o, along(o), [0.2, 0.4], precision="float32", **m),
        "responses difference": lambda o, m: fs.responses(o, along(o), radii, precision="difference", **m),
        "responses dispatch": lambda o, m: fs.responses(o, along(o), radii, precision="difference", method="dispatch", **m),
        "quadratic_forms": lambda o, m: fs.quadratic_forms(o, along(o), **m),
        "quadratic_forms forwards": lambda o, m: fs.quadratic_forms(o, along(o), method="forwards", **m),
        "mean_quadratic_form": lambda o, m: fs.mean_quadratic_form(o, along(o), **m),
        "hessian": product(fs.hessian),
        "hessian one": product(fs.hessian, block=1),
        "ggn": product(fs.ggn),
        "spectrum": lambda o, m: fs.spectrum(o, 2, nodes=20, targets={"eigenvalues": 0.1, "trace": None}, **m),
        "spectrum ggn": lambda o, m: fs.spectrum(
            o, 2, nodes=20, operator="ggn", targets={"eigenvalues": 0.1, "trace": None}, **m
        ),
        "edge_of_stability": lambda o, m: fs.edge_of_stability(
            o, torch.optim.SGD(o.model.parameters(), lr=0.1), tolerance=0.1, max_products=40, **m
        ),
        "slice1d": lambda o, m: fs.slice1d(o, points=21, **m),
        "slice2d": lambda o, m: fs.slice2d(o, points=5, **m),
        "multifractal": lambda o, m: fs.multifractal(o, fs.ProbeSettings(count=8, radii=radii), **m),
        "temperature": lambda o, m: fs.temperature(o, batch_size=8, learning_rate=0.1, products=4, **m),
    }


def _resident(kind: str) -> int:
    found = re.search(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure(name: str, which: str, memory: int | None) -> dict[str, Any]:
    """One call in this process."""
    import ctypes
    import gc
    import warnings

    import torch

    warnings.simplefilter("ignore")
    call = calls()[name]
    given = {} if memory is None else {"memory": memory}
    tiny = network(which, 0)
    VECTORS[tiny.size] = torch.ones(tiny.size, 8)
    call(tiny, {} if memory is None else {"memory": 256 * MIB})
    objective = network(which)
    objective.loss()
    VECTORS[objective.size] = torch.ones(objective.size, 8)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before = _resident("VmRSS")
    try:
        found: dict[str, Any] = {"value": type(call(objective, given)).__name__}
    except ValueError as error:
        enough = re.search(r"(\d+) bytes", str(error))
        found = {"refused": str(error)[:300], "enough": None if enough is None else int(enough[1])}
    return {"peak": _resident("VmHWM") - before} | found


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write with ``--write``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--network", choices=("wide", "images"), action="append")
    parser.add_argument("--caps", nargs="*", type=int, default=CAPS)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--whole", action="store_true")
    chosen = parser.parse_args(arguments)
    import torch
    from machine import machine

    torch.set_num_threads(1)  # so that it can be forked
    rows = json.loads(RESULTS.read_text())["rows"] if chosen.write and RESULTS.exists() else []
    done = {(row["network"], row["call"], row["cap"]) for row in rows}
    names = chosen.only or (calls() if chosen.whole else MAIN)
    caps = (0, *chosen.caps) if chosen.whole else chosen.caps
    for which, name, cap in itertools.product(chosen.network or ("wide", "images"), names, caps):
        if (which, name, cap * MIB or None) in done:
            continue
        row = {"network": which, "call": name, "cap": cap * MIB or None} | in_a_fork(name, which, cap * MIB or None)
        rows.append(row)
        if chosen.write:
            found = {"machine": machine(), "unit": "bytes", "rows": rows, "markdown": table(rows)}
            partial = RESULTS.with_suffix(".partial")
            partial.write_text(json.dumps(found, indent=1) + "\n")
            partial.replace(RESULTS)
        over = " OVER" if cap and row.get("peak", 0) > cap * MIB else ""
        words = row.get("refused", row.get("failed", ""))
        print(f"{which:7} {name:26} {cap:4} {row.get('peak', 0) / MIB:7.1f}{over} {words[-200:]}", flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of a row for each call, MiB; a refusal with the bytes that it names."""
    caps = sorted({row["cap"] or 0 for row in rows})
    head = ["", "uncapped", *(f"memory={cap // MIB} MiB" for cap in caps if cap)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for which, name in dict.fromkeys((row["network"], row["call"]) for row in rows):
        cells = {row["cap"] or 0: cell(row) for row in rows if (row["network"], row["call"]) == (which, name)}
        lines.append(f"| {name}, {which} | {' | '.join(cells.get(cap, '') for cap in caps)} |")
    return "\n".join(lines)


def cell(row: dict[str, Any]) -> str:
    """What a call took, and whether that is more than it may."""
    if "refused" in row:
        return "refused" + (f", {row['enough'] / MIB:.0f} are enough" if row["enough"] else "")
    if "failed" in row:
        return "failed"
    return f"{row['peak'] / MIB:.0f}" + (" (over)" if row["cap"] and row["peak"] > row["cap"] else "")


def in_a_fork(name: str, which: str, memory: int | None) -> dict[str, Any]:
    """One measurement in a process that begins with everything imported."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            found = measure(name, which, memory)
        except BaseException as error:
            found = {"failed": f"{type(error).__name__}: {error}"[-300:]}
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        words = pipe.read()
    os.waitpid(child, 0)
    return dict(json.loads(words)) if words else {"failed": "the process died"}


if __name__ == "__main__":
    main()
