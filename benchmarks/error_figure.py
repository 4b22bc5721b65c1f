"""The figure of errors by scale: one panel per network, one line per arithmetic."""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

TOP, BOTTOM = 2e3, 4e-9  # of the error axis; lines leave it where they are larger or smaller
STYLES = {  # Okabe and Ito's colours, and the width; what matters is drawn last
    "bf16 subtraction": ("#8c8c8c", 1.3),
    "TF32 subtraction": ("#E69F00", 1.3),
    "float32 subtraction": ("#D55E00", 1.7),
    "float64 subtraction": ("#B5578F", 1.7),
    "difference-bf16": ("#56B4E9", 2.3),
    "difference": ("#0072B2", 2.8),
}
FALLING = -45  # degrees of a line that falls by two decades in one


def draw(document: dict, path: Path) -> None:
    """Write the figure of a document of ``difference_accuracy.py`` as SVG, or as what the path ends in."""
    settings = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "svg.fonttype": "path",
        "svg.hashsalt": "fastscape",  # the same bytes for the same numbers
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#666666",
        "axes.linewidth": 0.7,
        "xtick.color": "#444444",
        "ytick.color": "#444444",
    }
    networks = document["networks"]
    with mpl.rc_context(settings):
        figure, axes = plt.subplots(2, 3, figsize=(9.2, 5.9), sharex=True, sharey=True, layout="constrained")
        for axis, (name, found) in zip(axes.flat, networks.items(), strict=True):
            _panel(axis, name, found, np.array(document["radii"]), document["usable"])
        _labels(axes[0, 0], next(iter(networks.values())), np.array(document["radii"]))
        for axis in axes[:, 0]:
            axis.set_ylabel("relative error, median")
        for axis in axes[-1]:
            axis.set_xlabel(r"radius $\varepsilon$, share of $\|w\|$")
        if path.suffix != ".svg":
            figure.savefig(path, facecolor="white", dpi=110)
        else:
            drawn = io.StringIO()
            figure.savefig(drawn, format="svg", metadata={"Date": None}, facecolor="white")
            path.write_text(_smaller(drawn.getvalue()))
        plt.close(figure)


def _smaller(text: str) -> str:
    """SVG with hundredths of a point, and without indentation: three quarters of the bytes."""
    return re.sub(r"\n\s+", "\n", re.sub(r"([1-9]\d*\.\d\d)\d+", r"\1", text))


def _panel(axis: Axes, name: str, found: dict, radii: np.ndarray, usable: float) -> None:
    axis.axhspan(BOTTOM, usable, color="#0072B2", alpha=0.05, lw=0)
    axis.axhline(usable, color="#444444", lw=0.9, ls=(0, (4, 3)))
    axis.text(1.3e-7, usable * 1.5, f"{usable:.0%}", fontsize=8, color="#444444")
    for mode, (colour, width) in STYLES.items():
        axis.plot(radii, found["modes"][mode]["p50"], "-o", color=colour, lw=width, ms=width + 1.2, mew=0)
    axis.set(xscale="log", yscale="log", xlim=(8e-8, 1.3e-1), ylim=(BOTTOM, TOP))
    axis.set_title(name, fontsize=10, loc="left", color="#111111", fontweight="bold")
    counts = [found["modes"][mode]["decades"] for mode in ("float32 subtraction", "difference")]
    words = f"usable decades {counts[0]} → {counts[1]}"
    axis.text(1.1e-1, BOTTOM * 1.5, words, fontsize=8, ha="right", color="#444444")
    axis.set_xticks(10.0 ** np.arange(-7, 0, 2))
    axis.set_yticks(10.0 ** np.arange(-8, 3, 2))
    axis.minorticks_off()
    axis.grid(color="#e2e2e2", lw=0.5)
    axis.set_axisbelow(True)


def _labels(axis: Axes, found: dict, radii: np.ndarray) -> None:
    """Name the lines of one panel where they run."""
    for mode, start, shift, words in (
        ("difference", 3e-5, 2.0, "difference propagation"),
        ("difference-bf16", 8e-7, 0.25, "difference, bf16 products"),
    ):
        height = found["modes"][mode]["p50"][5] * shift
        axis.text(start, height, words, color=STYLES[mode][0], fontsize=8, fontweight="bold")
    for mode, height, shift, words in (
        ("bf16 subtraction", 2e2, 1.45, "bf16"),
        ("TF32 subtraction", 1e2, 0.62, "TF32"),
        ("float32 subtraction", 3e0, 0.55, "float32 subtraction"),
        ("float64 subtraction", 1.5e-5, 0.55, "float64 subtraction"),
    ):
        error = np.log(found["modes"][mode]["p50"])
        at = np.exp(np.interp(-np.log(height), -error[2:], np.log(radii[2:])))
        axis.text(
            at * shift,
            height * shift,
            words,
            color=STYLES[mode][0],
            fontsize=8,
            ha="center",
            va="center",
            rotation=FALLING,
            rotation_mode="anchor",
        )
