"""What float32 subtraction gets wrong, radius by radius.

Trains the zoo MLP on the digits, probes it in float64 and float32 along the same directions, and prints, per radius, the
response, the error of float32, the share of wrong signs and whether the noise gate trusts the scale; then M_tau and the
spread of h from both precisions over the range of Török & Bartha's protocol without any gate. Run it with ``make noise``;
the figures go to benchmarks/results/float32_noise.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo

RESULTS = Path(__file__).parent / "results" / "float32_noise.json"
RADII = np.array([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1])  # relative to ||w||


def trained_mlp(steps: int):
    """The zoo MLP after ``steps`` steps of Adam on the digits, and one batch of 256 of them."""
    torch.manual_seed(0)
    model = zoo.mlp()
    with tempfile.TemporaryDirectory() as folder:
        zoo.train(model, zoo.digits(), folder, steps=steps, checkpoints=2)
    return fs.Objective(model, zoo.digits(samples=256), criterion=F.cross_entropy)


def by_radius(objective, directions):
    """One row per radius: median response, median error of float32 relative to it, wrong signs, the gate's verdict."""
    exact, single = (fs.responses(objective, directions, RADII, precision=p, method="loop") for p in ("float64", "float32"))
    rows = []
    for k, radius in enumerate(RADII):
        error = np.abs(single.even[k] - exact.even[k]) / np.abs(exact.even[k])
        rows.append(
            {
                "radius": float(radius),
                "response": float(np.median(np.abs(exact.even[k]))),
                "float64_noise_share": float(exact.noise[k] / np.median(np.abs(exact.even[k]))),
                "float32_error": float(np.median(error)),
                "wrong_sign": float(np.mean(np.sign(single.even[k]) != np.sign(exact.even[k]))),
                "float32_trusted": bool(single.trusted[k]),
                "float64_trusted": bool(exact.trusted[k]),
            }
        )
    return rows


def protocol(objective, count):
    """M_tau and std(h) from both precisions over radii 3.9e-5 .. 1.3e-2 (absolute, unit directions), without the gate."""
    radii = np.logspace(-6.5, -1.9, 12)[5:]
    directions = fs.Directions(objective, count, seed=1, scale="unit")
    found = {}
    for precision in ("float64", "float32"):
        even = fs.responses(objective, directions, radii, precision=precision, method="loop").even
        settings = fs.AnalysisSettings(windows=((0, len(radii)),), bootstrap=2, permutations=1)
        scalars = fs.analyse([even], radii, settings=settings).pooled[0][0].scalars
        found[precision] = {name: scalars[name] for name in ("m_tau", "m_tau_pos", "h_mean", "h_std")}
        found[precision]["zero_responses"] = float(np.mean(even == 0))
    return found


def main():
    """Measure, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=64, help="directions")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", fs.PrecisionWarning)  # the point of this script
    objective = trained_mlp(200)
    rows = by_radius(objective, fs.Directions(objective, arguments.count))
    compared = protocol(objective, arguments.count)
    columns = ("radius, share of the weight norm", "median response", "float32: median error", "wrong sign")
    print("| " + " | ".join((*columns, "gate on float32", "gate on float64")) + " |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        verdicts = ["trusted" if row[f"{name}_trusted"] else "rejected" for name in ("float32", "float64")]
        print(
            f"| {row['radius']:.0e} | {row['response']:.1e} | {row['float32_error']:.2g} x | {row['wrong_sign']:.0%} | "
            f"{verdicts[0]} | {verdicts[1]} |"
        )
    print(json.dumps(compared, indent=1))
    document = {
        "model": "zoo.mlp, 200 steps",
        "loss": objective.loss(),
        "directions": arguments.count,
        "versions": {"fastscape": fs.__version__, "torch": torch.__version__},
        "by_radius": rows,
        "protocol": compared,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
