"""Fills the README's numbers on difference propagation, between ``<!-- NAME -->`` and ``<!-- end -->``, from results/."""

from __future__ import annotations

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def errors() -> str:
    """The sentences beside the figure."""
    document = json.loads((HERE / "results" / "accuracy.json").read_text())
    networks = {name: found["modes"] for name, found in document["networks"].items()}
    single, ours, narrow, rounded = (
        {name: modes[mode] for name, modes in networks.items()}
        for mode in ("float32 subtraction", "difference", "difference-bf16", "bf16 subtraction")
    )
    largest = {name: max(mode["p90"]) for name, mode in ours.items()}
    words = ", ".join(f"{error:.0e} on {_the(name)}" for name, error in largest.items())
    middle = min(range(len(document["radii"])), key=lambda k: abs(document["radii"][k] - 1e-3))
    counts = [_span(mode["decades"] for mode in modes.values()) for modes in (single, ours)]
    worst = max(max(mode["p50"]) for mode in narrow.values())
    factors = _span(round(mode["p50"][middle]) for mode in rounded.values())
    lines = (
        f"A scale is usable where the median error is below 5 %: float32 subtraction has {counts[0]} of six decades, difference",
        f"propagation {counts[1]}. Its largest error at any scale (p90 over directions) is",
        f"{words}.",
        f"With products in bfloat16 the largest median is {worst:.0e}; bfloat16 subtraction is wrong by factors of {factors} at 1e-3.",
    )
    return "\n".join(lines)


def modes() -> str:
    """The table of a training run."""
    return json.loads((HERE / "results" / "three_modes.json").read_text())["markdown"]


def costs() -> str:
    """Times of responses and of quadratic forms, and operations, on one thread."""
    tables = [table for table in json.loads((HERE / "results" / "tables.json").read_text()) if table["threads"] == 1]
    lines = [
        "| a response, time over that of | float64, two evaluations | float64, three | float32, two | forwards |",
        "|---" * 5 + "|",
    ]
    products = next(table["rows"] for table in tables if table["title"].startswith("operations of matrix products"))
    for table in tables:
        if table["title"].startswith("even response, "):
            name, rows = table["title"].removeprefix("even response, "), table["rows"]
            rivals = ("float64 subtraction", "float64 subtraction, three points", "float32 subtraction")
            cells = [f"{rows['difference']['time'] / rows[rival]['time']:.2f}" for rival in rivals]
            lines.append(f"| {name} | " + " | ".join([*cells, f"{products[name]['time']:.1f}"]) + " |")
    lines += ["", "| 16 quadratic forms, time over that of | the best | which is |", "|---|---|---|"]
    for table in tables:
        if table["title"].startswith("quadratic form, "):
            ratio = 1 / table["rows"]["fastscape"]["ratio"]
            lines.append(f"| {table['title'].split('directions, ')[1]} | {ratio:.2f} | {table['baseline']} |")
    return "\n".join(lines)


def _the(name: str) -> str:
    return name if name.startswith(("ResNet", "mlp")) else f"the {name}"


def _span(numbers) -> str:
    """``2``, or ``1 to 2``."""
    values = sorted(set(numbers))
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


def refresh() -> None:
    """Write every block whose results are there."""
    text = README.read_text()
    for name, make in (("errors", errors), ("modes", modes), ("costs", costs)):
        try:
            block = make()
        except (FileNotFoundError, StopIteration):  # not measured yet
            continue
        text = re.sub(
            rf"(<!-- {name} -->\n\n).*?(\n\n<!-- end -->)",
            lambda match, block=block: match[1] + block + match[2],
            text,
            flags=re.S,
        )
    README.write_text(text)


if __name__ == "__main__":
    refresh()
