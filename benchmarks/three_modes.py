"""What a probe of a training run says in three arithmetics: the README's table of h and M_tau along training.

Trains the zoo CNN on the digits, and probes its checkpoints along the same directions, with the same number of them, at 13 radii
from 1e-7 to 1e-1 of ||w||, by float32 subtraction, float64 subtraction and difference propagation. Exponents are computed twice:
over all radii with no mask, which is what a script without a noise gate reports (responses that are exactly zero left out of h,
and shares of a measure floored at 1e-10, as in the published protocol, or float32 would have no M_tau at all), and as fastscape
does, which leaves out scales that it does not trust. Run it with ``make modes``; figures go to
benchmarks/results/three_modes.json.
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

RESULTS = Path(__file__).parent / "results" / "three_modes.json"
RADII = tuple(np.logspace(-7, -1, 13).tolist())  # relative to ||w||
PRECISIONS = ("float32", "float64", "difference")
STATISTICS = ("h_mean", "h_median", "m_tau", "m_tau_pos")
FLOOR = 1e-10  # of the shares of a measure
SHOWN = ("h_median", "m_tau")


def numbers(analysis: fs.Analysis) -> dict:
    """What the table shows of an analysis of one window; ``None`` where it is not defined."""
    scalars = analysis.pooled[0][0].scalars if analysis.valid else {}
    values = {name: scalars.get(name, float("nan")) for name in STATISTICS}
    return {name: float(value) if np.isfinite(value) else None for name, value in values.items()}


def unmasked(point: fs.MultifractalResult) -> dict:
    """The same over all radii, whatever their noise."""
    settings = fs.AnalysisSettings(windows=((0, len(RADII)),), bootstrap=2, permutations=1, measure_floor=FLOOR)
    response = point.measured.response("even")
    h = exponents(np.concatenate(response, axis=1))
    found = numbers(fs.analyse(response, np.array(RADII), settings=settings))
    return found | {"h_mean": float(h.mean()), "h_median": float(np.median(h))}


def exponents(even: np.ndarray) -> np.ndarray:
    """Exponents h of every direction: the slope of ln |response| against ln e over the radii where it is not zero."""
    slopes = [np.polyfit(np.log(np.array(RADII)[one != 0]), np.log(np.abs(one[one != 0])), 1)[0] for one in even.T]
    return np.array(slopes)


def row(point: fs.MultifractalResult) -> dict:
    """One checkpoint in one arithmetic."""
    even = np.concatenate(point.measured.response("even"), axis=1)
    return {
        "everything": unmasked(point),
        "trusted": numbers(point.analysis),
        "trusted_scales": int(point.analysis.trust.mask.sum()),
        "zero_responses": float(np.mean(even == 0)),
        "seconds": point.meta["seconds"],
    }


def probed(folder: Path, count: int, steps: int) -> list[dict]:
    """Every checkpoint in every arithmetic, along the same directions."""
    torch.manual_seed(0)
    model = zoo.cnn()
    files = zoo.train(model, zoo.digits(), folder, steps=steps, checkpoints=6)
    objective = fs.Objective(model, zoo.digits(samples=128), criterion=F.cross_entropy)
    quick = fs.AnalysisSettings(bootstrap=2, permutations=1)
    runs = {}
    for precision in PRECISIONS:
        settings = fs.ProbeSettings(radii=RADII, count=count, precision=precision)
        runs[precision] = fs.trajectory(objective, files, settings, quick).points
    rows = []
    for points in zip(*runs.values(), strict=True):
        modes = {precision: row(point) for precision, point in zip(runs, points, strict=True)}
        rows.append({"step": points[0].step, "loss": points[-1].loss, "modes": modes})
    return rows


def markdown(rows: list[dict]) -> str:
    """Median h, M_tau and trusted scales along training, each in three arithmetics."""
    heads = [f"{word} {precision}" for word in ("h", "M_τ") for precision in PRECISIONS]
    heads += [f"trusted scales of {len(RADII)}"]
    lines = ["| step | loss | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    for entry in rows:
        modes = [entry["modes"][precision] for precision in PRECISIONS]
        cells = [_number(mode["everything"][name]) for name in SHOWN for mode in modes]
        cells.append(" / ".join(str(mode["trusted_scales"]) for mode in modes))
        lines.append(f"| {entry['step']} | {entry['loss']:.3g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def main() -> None:
    """Measure, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=32, help="directions per bank, of four banks")
    parser.add_argument("--steps", type=int, default=300, help="of training")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", fs.PrecisionWarning)  # the point of this script
    with tempfile.TemporaryDirectory() as folder:
        rows = probed(Path(folder), arguments.count, arguments.steps)
    table = markdown(rows)
    print(table)
    document = {
        "model": f"zoo.cnn, {arguments.steps} steps on the digits, probed on 128 of them",
        "directions": 4 * arguments.count,
        "radii": list(RADII),
        "versions": {"fastscape": fs.__version__, "torch": torch.__version__},
        "checkpoints": rows,
        "markdown": table,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
