"""Fills the README's figures, between ``<!-- NAME -->`` and ``<!-- end -->``, from results/."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def errors() -> str:
    """The sentences beside the figure."""
    document = json.loads((HERE / "results" / "accuracy.json").read_text())
    networks = {name: found["modes"] for name, found in document["networks"].items()}
    modes = {name: [found[name] for found in networks.values()] for name in next(iter(networks.values()))}
    counts = {name: _span(mode["decades"] for mode in found) for name, found in modes.items()}
    largest = "; ".join(f"{name} {max(found['difference']['p90']):.0e}" for name, found in networks.items())
    narrow = max(max(mode["p50"]) for mode in modes["difference-bf16"])
    words = (
        "A decade of scales is usable where the median error is below 5 %. Of six, bf16 subtraction has "
        f"{counts['bf16 subtraction']}, TF32 {counts['TF32 subtraction']}, float32 {counts['float32 subtraction']}, float64 "
        f"{counts['float64 subtraction']}, difference propagation {counts['difference']}, and {counts['difference-bf16']} with "
        f"products in bfloat16 (largest median {narrow:.0e}). Its largest error at any scale, p90 over directions: {largest}."
    )
    return textwrap.fill(words, 128, break_on_hyphens=False)


def modes() -> str:
    """The table of a training run."""
    return json.loads((HERE / "results" / "three_modes.json").read_text())["markdown"]


def repeated() -> str:
    """The table of one eigenvalue three times."""
    return json.loads((HERE / "results" / "repeated_eigenvalues.json").read_text())["markdown"]


def spectrum() -> str:
    """What a spectrum prints."""
    return "```\n" + json.loads((HERE / "results" / "repeated_eigenvalues.json").read_text())["printed"] + "\n```"


def study() -> str:
    """Tables of the comparison of three architectures."""
    return json.loads((HERE / "results" / "study.json").read_text())["markdown"]


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


def peers() -> str:
    """Costs beside those of other packages, in one run."""
    document = json.loads((HERE / "results" / "peers.json").read_text())
    names = {"mlp": "MLP", "gpt": "GPT", "resnet18": "ResNet-18"}
    rows = {
        "curvlinops 3.0.1": "curvlinops, H @ V",
        "hessian-eigenthings 1.0.0a5": "hessian-eigenthings",
        "PyHessian 0.1": "PyHessian",
        "fastscape": "fastscape, H @ V",
        "fastscape, every method tried": "fastscape, H @ V, all paths tried",
    }
    found = {name: document["products"][name]["rows"]["8"] for name in names if name in document["products"]}
    head = ["a product of 8 vectors, per vector, in gradients", *(names[name] for name in found)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for label, method in rows.items():
        cells = [_product(network.get(method, {})) for network in found.values()]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)


def _product(row: dict) -> str:
    if "gradients" in row:
        return f"{row['gradients']:.2f}"
    return f"wrong by {row['error']:.0e}" if "gradients_of_wrong" in row else "failed"


def _span(numbers) -> str:
    """``2``, or ``1 to 2``."""
    values = sorted(set(numbers))
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


BLOCKS = (
    ("errors", errors),
    ("modes", modes),
    ("costs", costs),
    ("spectrum", spectrum),
    ("repeated", repeated),
    ("peers", peers),
    ("study", study),
)


def refresh() -> None:
    """Write every block whose results are there."""
    text = README.read_text()
    for name, make in BLOCKS:
        try:
            block = make()
        except (FileNotFoundError, StopIteration, KeyError):  # not measured yet
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
