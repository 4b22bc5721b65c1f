"""What was aimed at and what was measured, in one table: by how much a row falls short, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peers.methods import PEERS
from peers.problems import LABELS

Row = dict[str, Any]
Line = tuple[str, str, float, float, bool]  # figure, network, asked, measured, whether less is better

WHY = {
    "quadratic forms, time of the fastest peer's products over ours": (
        "two forwards a direction and a dozen or more for the step and the error; on the MLP a forward is dispatch and Python"
    ),
    "quadratic forms, memory of the leanest peer over ours": "on the MLP all of it is below 4 MiB",
    "2-jets, time over the best Hessian product path": (
        "the four products a direction run on lanes of 8 and more, which small layers do not fill"
    ),
    "spectrum, time of the fastest peer over ours": (
        "80 basis products are the floor of an 80-node density; peers are tuned with the truth in hand, ours stops on its own"
    ),
    "reorthogonalisation, time of hessian-eigenthings over ours": (
        "both read the basis from memory; ours reads it twice a vector and the peer's single pass five streams, 2.5 at the most"
    ),
    "32 probes under two gradients' memory, products: share of the cap": (
        "the cap holds for the tensors of a computation; what trials leave in the heap, code loaded on first use and the probe "
        "itself lie beside them; two forwards keep the cap"
    ),
    "a vector in gradients, K = 8, over the best plain torch path": "the choice is made once; the machine is shared",
}


def lines(document: Row) -> Iterator[Line]:
    """Every figure for which there is a measurement."""
    yield from _products(document.get("products", {}))
    yield from _forms(document.get("forms", {}))
    for network, entry in document.get("spectrum", {}).items():
        rows = {name: row for name, row in entry["rows"].items() if row.get("reached")}
        peers = [row["seconds"] for name, row in rows.items() if name != "fastscape" and "by hand" not in name]
        if "fastscape" in rows and peers:
            yield "spectrum, time of the fastest peer over ours", network, 3.0, min(peers) / rows["fastscape"]["seconds"], False
    for size, entry in document.get("orthogonalisation", {}).items():
        peer, ours = (entry["rows"].get(f"{name}, recurrence alone", {}) for name in ("hessian-eigenthings", "fastscape"))
        if "seconds" in peer and "seconds" in ours:
            ratio = peer["seconds"] / ours["seconds"]
            yield "reorthogonalisation, time of hessian-eigenthings over ours", size, 3.0, ratio, False
    for network, entry in document.get("memory", {}).items():
        ways = entry["rows"].get("ways", {})
        for name in ("fastscape, two forwards", "fastscape, products"):
            if "extra_mib" in ways.get(name, {}):
                share = ways[name]["extra_mib"] / entry["rows"]["cap_mib"]
                yield f"32 probes under two gradients' memory, {name[11:]}: share of the cap", network, 1.0, share, True


def _products(found: Row) -> Iterator[Line]:
    for network, entry in found.items():
        single, block = (
            {name: row["gradients"] for name, row in entry["rows"][count].items() if "gradients" in row} for count in ("1", "8")
        )
        best = min(value for name, value in block.items() if name.startswith("torch"))
        ours = "fastscape, H @ V, all paths tried"
        if ours in block:
            asked = 2.75 if network == "resnet18" else 2.0
            yield "a vector in gradients, K = 8", network, asked, block[ours], True
            yield "a vector in gradients, K = 8, over the best plain torch path", network, 1.1, block[ours] / best, True
        if "fastscape, H @ v" in single:
            yield "a vector in gradients, K = 1", network, 3.3, single["fastscape, H @ v"], True


def _forms(found: Row) -> Iterator[Line]:
    for network, entry in found.items():
        rows = {name: row for name, row in entry["rows"].items() if "fresh" in row}
        peers = [row for name, row in rows.items() if name in PEERS]
        products = [row for name, row in rows.items() if not name.startswith("fastscape")]
        two, jets = rows.get("fastscape, two forwards"), rows.get("fastscape, 2-jets")
        if two and peers:
            time = min(row["fresh"] for row in peers) / two["fresh"]
            yield "quadratic forms, time of the fastest peer's products over ours", network, 3.0, time, False
            memory = min(row["extra_mib"] for row in peers) / two["extra_mib"]
            yield "quadratic forms, memory of the leanest peer over ours", network, 5.0, memory, False
        if jets and products:
            time = jets["fresh"] / min(row["fresh"] for row in products)
            yield "2-jets, time over the best Hessian product path", network, 0.8, time, True
            if "torch, vmap jvp(grad)" in rows:
                memory = rows["torch, vmap jvp(grad)"]["extra_mib"] / jets["extra_mib"]
                yield "2-jets, memory of vmapped products over ours", network, 2.0, memory, False


def markdown(document: Row) -> str:
    """The table, and the causes of what falls short."""
    rows, short = [], {}
    for figure, network, asked, measured, less in lines(document):
        reached = measured <= asked if less else measured >= asked
        gap = measured / asked if less else asked / measured
        verdict = "yes" if reached else f"short by {100 * (gap - 1):.0f} %"
        rows.append((figure, LABELS.get(network, network), f"{'<=' if less else '>='} {asked:g}", f"{measured:.2f}", verdict))
        if not reached:
            short[figure] = WHY.get(figure, "")
    head = ("figure", "network", "asked", "measured", "reached")
    table = "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))
    causes = "\n".join(f"- {figure}: {why}." for figure, why in short.items() if why)
    absent = [
        f"{package} of {label}"
        for package in ("forms", "spectrum")
        for network, label in LABELS.items()
        if network in document.get("products", {}) and network not in document.get(package, {})
    ]
    table += f"\n\nNot measured: {', '.join(absent)}." if absent else ""
    return f"#### what was aimed at\n\n{table}" + (f"\n\nWhat falls short, and why:\n\n{causes}" if causes else "")
