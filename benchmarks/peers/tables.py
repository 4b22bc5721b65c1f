"""Markdown of what was measured, for RESULTS.md."""

from __future__ import annotations

from typing import Any

from peers import targets
from peers.problems import LABELS
from peers.tools import TOOLS

Row = dict[str, Any]


def markdown(document: dict[str, Any]) -> str:
    """Every table that has been measured, each with its machine and the failures in words."""
    tables = (make(document[package]) for package, make in TABLES.items() if package in document)
    return "\n\n".join([targets.markdown(document), *tables])


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, digits: int = 2) -> str:
    """Two digits, or a dash for what is not there."""
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if value < 100 else f"{value:.0f}"


def products(found: Row) -> str:
    blocks = []
    for count in ("1", "8"):
        names = list(dict.fromkeys(name for entry in found.values() for name in entry["rows"][count] if name != "gradient"))
        rows = [(name, *(_cost(entry["rows"][count].get(name, {})) for entry in found.values())) for name in names]
        title = "a product" if count == "1" else f"a product of {count} vectors, per vector"
        text = f"#### {title}, in gradients\n\n" + table(("", *(LABELS[name] for name in found)), rows)
        blocks.append(
            text + _failures({f"{net}, {name}": row for net, e in found.items() for name, row in e["rows"][count].items()})
        )
    return "\n\n".join([*blocks, _machine(found)])


def _cost(row: Row) -> str:
    if "gradients" in row:
        return number(row["gradients"])
    if "gradients_of_wrong" in row:
        return f"wrong by {row['error']:.1e} (in {number(row['gradients_of_wrong'])})"
    return "failed" if row else "-"


def forms(found: Row) -> str:
    blocks = []
    head = ("", "gradients, from nothing", "gradients, again", "peak extra MiB", "in gradients' memory", "error")
    for network, entry in found.items():
        rows = []
        for name, row in entry["rows"].items():
            row, wrong = row.get("wrong", row), "wrong: " if "wrong" in row else ""
            if "failed" not in row:
                times = (number(row[key] / row["gradient"]) for key in ("fresh", "again"))
                memory = (number(row["extra_mib"]), number(row["extra_mib"] / max(row["gradient_mib"], 0.1)))
                rows.append((name, *times, *memory, f"{wrong}{row['error']:.0e}"))
        blocks.append(f"#### 16 quadratic forms, {LABELS[network]}\n\n{table(head, rows)}" + _failures(entry["rows"]))
    return "\n\n".join([*blocks, _machine(found)])


def spectrum(found: Row) -> str:
    uses = "\n".join(f"- {name}: {tool.use}." for name, tool in TOOLS.items())
    words = (
        "Five largest eigenvalues to a relative residual of 1e-3, trace to 5 %, density of 80 nodes. Peers run with the\n"
        "loosest setting that reaches this, found with the truth in hand. Residuals are of float64 products, relative to the\n"
        "largest eigenvalue; density: Wasserstein distance to a long reference over the largest eigenvalue. Accuracy is that of\n"
        "the worst run.\n\n"
    )
    head = ("", "s", "gradients", "extra MiB", "residual", "eigenvalues", "trace", "density", "reached", "setting, trace by")
    blocks = [words + uses]
    for network, entry in found.items():
        rows = []
        for name, row in entry["rows"].items():
            if "failed" not in row:
                costs = (number(row["seconds"], 3), number(row["seconds"] / row["gradient"]), number(row["extra_mib"]))
                kinds = ("residual", "eigenvalue_error", "trace_error", "density_distance")
                errors = ("-" if row[kind] is None else f"{row[kind]:.1e}" for kind in kinds)
                ours = name == "fastscape"
                setting = "its own" if ours else f"{row['setting'] or 80}, {' '.join(map(str, row['trace_setting']))}"
                rows.append((name, *costs, *errors, "yes" if row["reached"] else "no", setting))
        blocks.append(f"#### the spectrum question, {LABELS[network]}\n\n{table(head, rows)}" + _failures(entry["rows"]))
    return "\n\n".join([*blocks, _machine(found)])


def orthogonalisation(found: Row) -> str:
    blocks = []
    for size, entry in found.items():
        rows = [
            (
                name,
                number(row["seconds"], 3),
                number(row["seconds"] - row["products"], 3),
                number(row["extra_mib"]),
                f"{abs(row['largest'] / 10 - 1):.0e}",
            )
            for name, row in entry["rows"].items()
            if "failed" not in row
        ]
        head = ("", "s", "s without products", "extra MiB", "error of the largest")
        title = f"#### 30 Lanczos vectors, a diagonal matrix of order {size}"
        blocks.append(f"{title}\n\n{table(head, rows)}" + _failures(entry["rows"]))
    return "\n\n".join([*blocks, _machine(found)])


def memory(found: Row) -> str:
    blocks = []
    for network, entry in found.items():
        ways = entry["rows"].get("ways", entry["rows"])
        rows = [
            (name, number(row["extra_mib"], 3), number(row["gradients"]), number(row["seconds"]))
            for name, row in ways.items()
            if "failed" not in row
        ]
        cap = f"; fastscape's cap is {entry['rows']['cap_mib']:.1f} MiB" if "cap_mib" in entry["rows"] else ""
        head = ("", "peak extra MiB", "in gradients' memory", "s")
        blocks.append(f"#### 32 trace probes, {LABELS[network]}{cap}\n\n{table(head, rows)}" + _failures(ways))
    return "\n\n".join([*blocks, _machine(found)])


def _failures(rows: Row) -> str:
    lines = [f"- {name} failed: {row['failed']}" for name, row in rows.items() if "failed" in row]
    return "\n\n" + "\n".join(lines) if lines else ""


def _machine(found: Row) -> str:
    entries = list(found.values())
    machine = entries[-1]["machine"]
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in machine["versions"].items())
    rounds = sorted({entry["repeats"] for entry in entries})
    return f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores; {versions}; rounds: {rounds}."


TABLES = {
    "products": products,
    "forms": forms,
    "spectrum": spectrum,
    "orthogonalisation": orthogonalisation,
    "memory": memory,
}
