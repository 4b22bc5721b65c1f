"""``python -m benchmarks.scaling``: work of several processes against one, to results/scaling.json for RESULTS.md."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context

from benchmarks.scaling.launching import HERE, case, measured  # first: it finds the cases of the tests

import bench_distributed  # isort: skip
import probing  # isort: skip
from machine import machine  # isort: skip

import fastscape as fs

from . import kills, memory, units


def row(what, value, target, rival=""):
    return f"| {what} | {value} | {target} | {rival} |"


def of_blocks(quick):
    """Efficiency, and what is spent beside the blocks, by network."""
    rows, digests = [], {}
    for name, (_, blocks, _) in units.NETWORKS.items():
        count = 16 if quick else 2 * blocks
        plan = f"{os.environ['SCRATCH']}/{name}.npz"
        runs = {ranks: measured(ranks, "units:shares", name, count, plan) for ranks in (1, 2)}
        one, two = (units.throughput(runs[ranks]) for ranks in (1, 2))
        ceiling = units.throughput(measured(2, "units:shares", name, count // 2, plan, True), until=min) / one / 2
        seconds = [rank["seconds"] for rank in runs[2]]
        ((told, _),), _ = runs[2][0]["outcome"]
        got = max(rank["outcome"][1] for rank in runs[2]) - told
        about = f"{name}, {1 / one * 1e3:.0f} ms a block of {runs[1][0]['unit']}"
        rows += [
            row(
                f"efficiency at 2 ranks: {about}",
                f"{two / one / 2:.3f}",
                ">= 0.90 of linear",
                f"1 rank: {one:.2f} blocks/s; two processes that know of no other: {ceiling:.3f} of linear",
            ),
            row(
                f"outside of it: agreement, start-up of rank 1 ({name})",
                f"{max(each['agreement'] for each in seconds):.2f} s, {seconds[1]['start-up']:.2f} s",
                "start-up <= 0.5 s",
                f"whole run: {runs[2][0]['whole']:.1f} s",
            ),
            row(
                f"store, per block ({name})",
                f"{1e3 * sum(each['store'] for each in seconds) / blocks_of(runs[2]):.2f} ms",
                "< 1 ms",
            ),
            row(f"journal, share of the work ({name})", f"{max(rank['journal'] for rank in runs[2]):.2%}", "< 1 %"),
            row(f"result to all ranks ({name})", f"{1e3 * got:.0f} ms", "< 50 ms"),
        ]
        digests[f"blocks, {name}"] = [rank["digest"] for ranks in runs.values() for rank in ranks]
    return rows, digests


def blocks_of(ranks):
    return sum(len(rank["blocks"]) for rank in ranks)


def of_groups(_quick):
    """Seconds of an executor beside its blocks."""
    found = units.groups()
    value = f"{1e3 * found['later']:.1f} ms (first, with the start: {found['first']:.1f} s)"
    return [row(f"process pool, per group, median of {found['groups']}", value, "< 20 ms")], {"groups": [found["digest"]]}


def of_products(_quick):
    """Served products, and exact sums beside the product of as many parameters."""
    runs = {name: {ranks: bench_distributed.measured(name, ranks) for ranks in (1, 2)} for name in bench_distributed.MEASURES}
    one, two = (runs["products"][ranks]["seconds"]["Hessian products"] for ranks in (1, 2))
    rows = [
        row(
            f"served products at 2 ranks, {1e3 * one / bench_distributed.BLOCK:.0f} ms a product",
            f"{one / two / 2:.3f}",
            ">= 0.80 of linear",
            f"1 rank: {1e3 * one:.0f} ms a block of {bench_distributed.BLOCK}",
        )
    ]
    for ranks in (1, 2):
        exact, plain = (runs["sums"][ranks]["seconds"][name] for name in ("exact", "float64, any order"))
        product = runs["large"][ranks]["seconds"]["a product"]
        rival = f"a product: {product:.2f} s; a sum in float64, in any order: {plain:.2f} s"
        what = f"exact sum of 8 x 10 million numbers, {ranks} rank{'s' * (ranks > 1)}"
        rows.append(row(what, f"{exact:.2f} s, {exact / product:.1%} of a product", "<= 10 %", rival))
    return rows, {name: [run["digest"] for run in found.values()] for name, found in runs.items()}


def of_memory(_quick):
    """Peaks of a rank of two and of four over an FSDP2 model."""
    rows = []
    for ranks in (2, 4):
        found = measured(ranks, "memory:sharded", **memory.RETURNED)[0]
        forward = found["peaks"].pop("a forward, without fastscape")
        limit = 2.2 * found["shard"] + found["group"]
        for name, peak in found["peaks"].items():
            mib = [f"{size / 2**20:.0f} MiB" for size in (peak + found["shard"], limit, forward, peak)]
            what = f"FSDP2, {found['parameters'] / 1e6:.0f} M parameters, {ranks} ranks: {name}, with the model's own shard"
            rows.append(
                row(what, f"{mib[0]} ({mib[3]} above the state before)", f"<= {mib[1]}", f"a plain forward: {mib[2]} above")
            )
    return rows, {}


def of_bytes(_quick):
    """The table of digests, and that all of a row are equal."""
    columns = {"plain": probing.same()} | {f"{ranks} rank{'s' * (ranks > 1)}": case(ranks, "probing:same") for ranks in (1, 2, 4)}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        columns["process pool"] = _by(pool)
    if find_spec("distributed.client") is not None:
        from distributed import Client, LocalCluster

        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
            columns["Dask"] = _by(client)
    columns["killed and resumed"] = case(1, "probing:kills", os.environ["SCRATCH"], 1)
    names = [f"{model} {path}" for model in probing.MODELS for path in probing.PATHS]
    lines = ["\n| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(f"`{found[name][:12]}`" for found in columns.values()) + " |" for name in names]
    return lines, {name: [found[name] for found in columns.values()] for name in names}


def _by(executor):
    found = {}
    for model in probing.MODELS:
        for path in probing.PATHS:
            source = fs.Source(partial(probing.objective, model))
            found[f"{model} {path}"] = probing.digest(probing.probed(path, of=source, executor=executor, distributed=False))
    return found


def of_kills(quick):
    """Runs that were killed at random moments."""
    rows, digests, runs = [], {}, 2 if quick else 50
    for name, work in (("one process", kills.alone), ("one of two ranks under torchrun", kills.together)):
        found = work(runs, 0)
        rows.append(row(f"SIGKILL at a random moment: {name}", f"{found['same']} of {runs} the same bytes", f"{runs} of {runs}"))
        digests[f"killed, {name}"] = [found["digest"], *[found["digest"] if found["same"] == runs else "others"]]
    return rows, digests


MEASURES = {
    "kills": of_kills,  # first: copies of a process that has started no threads yet
    "blocks": of_blocks,
    "products": of_products,
    "groups": of_groups,
    "memory": of_memory,
    "bytes": of_bytes,
}


def main():
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=MEASURES, action="append", help="measure these anew, beside the others' last rows")
    parser.add_argument("--quick", action="store_true", help="few blocks and kills, to see that it works; writes nothing")
    options = parser.parse_args()
    file = HERE.parent / "results" / "scaling.json"
    before = json.loads(file.read_text()) if options.only and file.exists() else {}
    known = before.get("measures", {}) if before.get("machine") == machine() else {}  # of this machine alone
    for name in options.only or MEASURES:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["SCRATCH"] = folder
            rows, digests = MEASURES[name](options.quick)
        known[name] = {"rows": rows, "digests": digests}
        print("\n".join(rows), flush=True)
    found = {name: known[name] for name in MEASURES if name in known}
    digests = {row: each for of in found.values() for row, each in of["digests"].items()}
    apart = [name for name, each in digests.items() if len(set(each)) > 1]
    whole = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    last = f"\nsha256 over all results: `{whole}`; rows whose bytes differ: {', '.join(apart) or 'none'}."
    print(last)
    if not options.quick:
        tables = found.pop("bytes", {"rows": []})["rows"]
        rows = [row for of in found.values() for row in of["rows"]]
        text = "\n".join(["| | measured | target | from the same run |", "|---|---|---|---|", *rows, *tables, last])
        file.write_text(json.dumps({"machine": machine(), "markdown": text, "measures": known}, indent=1) + "\n")
    return int(bool(apart))


if __name__ == "__main__":
    raise SystemExit(main())
