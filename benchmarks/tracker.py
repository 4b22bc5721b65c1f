"""What a tracker takes of a training run beside the share asked for, and the products that warm starts save.

Part one trains the zoo CNN on the digits (16x16, batches of 128, SGD with momentum) with a tracker at 12 log-spaced steps and at
every 10th, and reports the share that it has taken by its own account, and the longest and the median over repeats. Runs without
a tracker are interleaved: the ratio of the whole times is what a user would notice, and is the noisier number. Part two counts
Hessian-vector products of the spectral norm every k steps of SGD on the zoo MLP, with and without warm starts at the same
tolerance; counts are deterministic. Norms are compared with block Lanczos: a single cold start can settle on the second
eigenvalue. Run it with ``make tracker``; figures go to benchmarks/results/tracker.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.numerics.lanczos import extreme_pairs

RESULTS = Path(__file__).parent / "results" / "tracker.json"


def train(steps: int, follow: Callable[[fs.Objective], fs.Tracker] | None) -> tuple[float, fs.TrackResult | None]:
    """Seconds of a training run, and what its tracker found."""
    torch.manual_seed(0)
    model = zoo.cnn(width=16)
    data = zoo.digits(size=16, samples=256, batch_size=256)
    inputs, targets = (torch.cat([batch[part] for batch in zoo.digits(size=16)]) for part in (0, 1))
    tracker = None if follow is None else follow(fs.Objective(model, data, criterion=F.cross_entropy))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    model.train()
    began = time.perf_counter()
    if tracker is not None:
        tracker.step(0, optimizer=optimizer)
    for step in range(1, steps + 1):
        rows = torch.randint(len(inputs), (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
        if tracker is not None:
            tracker.step(step, optimizer=optimizer)
    result = None if tracker is None else tracker.finish()
    return time.perf_counter() - began, result


def shares(steps: int, repeats: int) -> list[dict]:
    """One row per schedule and share asked for."""
    what = ("loss", "gradient", "spectrum", "slice")
    plans = {
        "12 log-spaced": lambda share: lambda at: fs.Tracker(at, when=fs.log_spaced(steps, 12), share=share, what=what),
        "every 10 steps": lambda share: lambda at: fs.Tracker(at, every=10, share=share, what=what),
    }
    rows = []
    for share in (0.05, 0.1):
        taken: dict[str, list[fs.TrackResult]] = {name: [] for name in plans}
        seconds: dict[str, list[float]] = {name: [] for name in (*plans, "none")}
        for _ in range(repeats):
            seconds["none"].append(train(steps, None)[0])
            for name, make in plans.items():
                whole, result = train(steps, make(share))
                assert result is not None
                seconds[name].append(whole)
                taken[name].append(result)
        for name, results in taken.items():
            found = [result.measured_share for result in results]
            rows.append(
                {
                    "schedule": name,
                    "asked": share,
                    "median": statistics.median(found),
                    "least": min(found),
                    "most": max(found),
                    "points": statistics.median(len(result.points) for result in results),
                    "training_seconds": statistics.median(result.training_seconds for result in results),
                    "whole": min(seconds[name]) / min(seconds["none"]) - 1,
                }
            )
            print(rows[-1], flush=True)
    return rows


def lanczos(objective: fs.Objective, tolerance: float, seed: int) -> int:
    """Products of Lanczos from one random vector, the cheapest cold start."""
    matrix = fs.hessian(objective, method="graph")
    settings = {"block": 1, "which": "magnitude", "dtype": torch.float32, "seed": seed}
    return extreme_pairs(matrix.matmat, matrix.shape[0], 1, tolerance=tolerance, **settings).products


def products(every: int, tolerance: float, steps: int, seeds: int) -> dict:
    """Products of all spectral norms of some runs, the first and cold one of each included."""
    counts = {"warm": 0, "cold": 0, "lanczos": 0, "norms": 0, "first": 0, "missed by cold starts": 0}
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = zoo.mlp()
        objective = fs.Objective(model, zoo.digits(samples=512, batch_size=512), criterion=F.cross_entropy)
        inputs, targets = (torch.cat([batch[part] for batch in zoo.digits()]) for part in (0, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        settings = {"every": every, "tolerance": tolerance, "method": "graph", "seed": seed}
        sums = {"warm": fs.Difficulty(objective, **settings), "cold": fs.Difficulty(objective, warm=False, **settings)}
        truth = []
        for step in range(steps + 1):
            if step:
                rows = torch.randint(len(inputs), (64,))
                optimizer.zero_grad()
                F.cross_entropy(model(inputs[rows]), targets[rows]).backward()
                optimizer.step()
            for each in sums.values():
                each.step(step, optimizer=optimizer)
            if step % every == 0:
                matrix = fs.hessian(objective, method="graph")
                found = extreme_pairs(
                    matrix.matmat,
                    matrix.shape[0],
                    1,
                    block=1,
                    tolerance=tolerance,
                    which="magnitude",
                    dtype=torch.float32,
                    seed=step,
                )
                counts["lanczos"] += found.products
                ends = extreme_pairs(
                    matrix.matmat, matrix.shape[0], 3, block=4, tolerance=1e-4, which="both", dtype=torch.float32, seed=step
                )
                truth.append(max(abs(ends.largest.values[0]), abs(ends.smallest.values[0])))
        results = {name: each.finish() for name, each in sums.items()}
        for name, result in results.items():
            counts[name] += int(result.products.sum())
        counts["norms"] += len(results["warm"].nodes)
        counts["first"] += int(results["warm"].products[0])
        errors = {name: np.abs(result.sharpness / np.array(truth) - 1) for name, result in results.items()}
        assert errors["warm"].max() < tolerance, "a warm start has missed the largest eigenvalue"
        counts["missed by cold starts"] += int((errors["cold"] > tolerance).sum())
    ratios = {"ratio": counts["cold"] / counts["warm"], "ratio_lanczos": counts["lanczos"] / counts["warm"]}
    row = {"every": every, "tolerance": tolerance, **counts, **ratios}
    print(row, flush=True)
    return row


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def markdown(found: dict) -> str:
    """Both tables."""
    first = ("schedule", "asked", "taken (median)", "least – most", "points", "training", "whole run longer by")
    second = ("norm every", "tolerance", "warm", "cold", "Lanczos, cold", "cold / warm", "Lanczos / warm")
    lines = [_row(first), _row(["---"] * len(first))]
    for row in found["shares"]:
        spread = f"{row['least']:.2%} – {row['most']:.2%}"
        cells = (row["schedule"], f"{row['asked']:.0%}", f"{row['median']:.2%}", spread, f"{row['points']:.0f}")
        lines.append(_row([*cells, f"{row['training_seconds']:.0f} s", f"{row['whole']:.1%}"]))
    lines += ["", _row(second), _row(["---"] * len(second))]
    for row in found["products"]:
        cells = (f"{row['every']} steps", f"{row['tolerance']:g}", row["warm"], row["cold"], row["lanczos"])
        lines.append(_row([*cells, f"{row['ratio']:.2f}", f"{row['ratio_lanczos']:.2f}"]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000, help="of the run that is tracked; about a minute")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="of the runs whose products are counted")
    options = parser.parse_args()
    found = {
        "products": [products(every, tolerance, 300, options.seeds) for every, tolerance in ((5, 1e-2), (10, 1e-2), (10, 1e-3))],
        "shares": shares(options.steps, options.repeats),
    }
    table = markdown(found)
    RESULTS.write_text(json.dumps(found | {"markdown": table}, indent=1) + "\n")
    print(table)


if __name__ == "__main__":
    main()
