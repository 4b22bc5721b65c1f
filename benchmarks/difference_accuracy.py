"""How wrong an even response is, by scale and arithmetic: the README's headline figure and the table of errors.

For each network, the relative error of L(w + e d) - 2 L(w) + L(w - e d) over random directions, at 13 radii e from 1e-7 to 1e-1
of ||w||, from subtraction of losses in float32, float64, and float32 with the operands of matrix products rounded as tensor cores
do, and from difference propagation. Truth is difference propagation in float64 throughout; at the largest radius, where float64
subtraction has 10 digits to spare, the two are compared. Rivals get their loss from logits in float64, which helps them.
Run it with ``make accuracy``; figures go to benchmarks/results/accuracy.json, the picture beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from error_figure import draw
from networks import NETWORKS, objective
from rounding import rounded_products
from torch import Tensor
from torch.nn import functional as F

import fastscape as fs
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.evaluation.evaluator import Evaluator

RESULTS = Path(__file__).parent / "results" / "accuracy.json"
FIGURE = RESULTS.with_name("error_by_scale.svg")
RADII = np.logspace(-7, -1, 13)  # relative to ||w||
USABLE = 0.05  # median relative error below which a scale can be used
SUBTRACTION = {"bf16 subtraction": "bf16", "TF32 subtraction": "tf32", "float32 subtraction": None, "float64 subtraction": None}


def wide_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in float64 of logits of any precision."""
    return F.cross_entropy(outputs.double(), targets)


def by_subtraction(name: str, mode: str, count: int) -> np.ndarray:
    """Even responses ``[K, N]`` by subtraction."""
    target = objective(name, wide_loss)
    kind = SUBTRACTION[mode]
    dtype = torch.float64 if mode == "float64 subtraction" else torch.float32
    with rounded_products(kind) if kind else contextlib.nullcontext(), Evaluator(target, dtype, method="loop") as evaluator:
        return evaluator.responses(fs.Directions(target, count), range(count), RADII)[0]


def by_differences(name: str, count: int, **options) -> np.ndarray:
    """Even responses ``[K, N]`` by difference propagation."""
    target = objective(name)
    with DifferenceEvaluator(target, **options) as evaluator:
        found = evaluator.responses(fs.Directions(target, count), range(count), RADII)[0]
        assert not evaluator.handling.fallbacks, evaluator.handling
        assert not evaluator.handling.frozen, evaluator.handling
    return found


def decades(median: np.ndarray) -> int:
    """Whole decades whose radii, both ends included, all have a median error below 5 %."""
    usable = np.append(median < USABLE, False)
    return sum(bool(usable[start : start + 3].all()) for start in range(0, len(RADII) - 1, 2))


def errors(name: str, count: int) -> dict:
    """Quantiles of the relative error of every arithmetic for one network."""
    truth = by_differences(name, count, lanes=torch.float64)
    found = {mode: by_subtraction(name, mode, count) for mode in SUBTRACTION}
    found["difference-bf16"] = by_differences(name, count, products="bfloat16", gate=False)  # the gate checks to 1e-3
    found["difference"] = by_differences(name, count)
    modes = {}
    for mode, even in found.items():
        relative = np.abs(even - truth) / np.abs(truth)
        p50, p90 = np.quantile(relative, (0.5, 0.9), axis=1)
        rms = np.sqrt(np.mean((even - truth) ** 2, axis=1) / np.mean(truth**2, axis=1))
        modes[mode] = {
            "p50": p50.tolist(),
            "p90": p90.tolist(),
            "rms": rms.tolist(),
            "pooled_p90": float(np.quantile(relative, 0.9)),
            "decades": decades(p50),
        }
    gap = np.abs(found["float64 subtraction"][-1] / truth[-1] - 1).max()
    assert gap < 1e-8, f"{name}: float64 differences and float64 subtraction differ by {gap:.1e} at {RADII[-1]}"
    return {
        "parameters": objective(name).size,
        "loss": objective(name).loss(),
        "directions": count,
        "truth_against_float64_subtraction": float(gap),
        "modes": modes,
    }


def markdown(networks: dict) -> str:
    """Usable decades, and the largest error over all scales, of every arithmetic and network."""
    modes = list(next(iter(networks.values()))["modes"])
    head = " | ".join(networks)
    tables = [
        ("usable decades, of 6", lambda mode: str(mode["decades"])),
        ("largest p50", lambda mode: f"{max(mode['p50']):.1e}"),
        ("largest p90", lambda mode: f"{max(mode['p90']):.1e}"),
        ("p90 of all radii together", lambda mode: f"{mode['pooled_p90']:.1e}"),
        ("RMS error / RMS response, largest", lambda mode: f"{max(mode['rms']):.1e}"),
    ]
    lines = []
    for title, cell in tables:
        lines += [f"| {title} | {head} |", "|---" * (len(networks) + 1) + "|"]
        lines += [f"| {mode} | " + " | ".join(cell(found["modes"][mode]) for found in networks.values()) + " |" for mode in modes]
        lines.append("")
    return "\n".join(lines).rstrip()


def main() -> None:
    """Measure, print Markdown, write JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(NETWORKS), action="append", help="networks; the files are not written")
    parser.add_argument("--draw", action="store_true", help="draw the figure from accuracy.json, without measuring")
    arguments = parser.parse_args()
    if arguments.draw:
        draw(json.loads(RESULTS.read_text()), FIGURE)
        return
    networks = {}
    for name in arguments.only or NETWORKS:
        start = time.perf_counter()
        networks[name] = errors(name, NETWORKS[name].directions)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(markdown(networks))
    if not arguments.only:
        versions = {"fastscape": fs.__version__, "torch": torch.__version__}
        document = {
            "radii": RADII.tolist(),
            "usable": USABLE,
            "versions": versions,
            "networks": networks,
            "markdown": markdown(networks),
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")
        draw(document, FIGURE)


if __name__ == "__main__":
    main()
