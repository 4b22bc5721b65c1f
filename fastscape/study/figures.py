"""Figures over the runs of a study (matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.reports.axes import BLUE, GREY, ORANGE, RED, literal
from fastscape.study.seeds import geometric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastscape.study.result import RunResult, StudyResult

_COLOURS = (BLUE, ORANGE, RED, "#5b8c5a", "#7a5ea8")
_MARKS = "os^Dv"
COMPARED = {
    "trace": "trace of the Hessian",
    "lambda_max": r"$\lambda_{\max}$",
    "roughness_detrended": "detrended roughness",
    "normalized_sharpness": "normalised sharpness",
}


def colour(result: StudyResult, architecture: str) -> str:
    """Colour of an architecture in all figures of a study."""
    return _COLOURS[result.architectures.index(architecture) % len(_COLOURS)]


def compared(result: StudyResult, axes: Sequence[Axes]) -> None:
    """Early quantities by architecture: a mark for each seed, the geometric mean with its 95 % interval beside them."""
    for ax, (quantity, label) in zip(axes, COMPARED.items(), strict=True):
        rows = result.values(quantity)
        known = np.concatenate([row[np.isfinite(row)] for row in rows.values()])
        positive = len(known) > 0 and bool((known > 0).all())
        for index, (name, row) in enumerate(rows.items()):
            ink = colour(result, name)
            ax.plot(np.full(len(row), index - 0.12), row, _MARKS[index % len(_MARKS)], color=ink, ms=5, alpha=0.6)
            mean = geometric(row.tolist())
            if np.isfinite(mean.interval).all():
                ax.plot([index + 0.12] * 2, mean.interval, color=ink, lw=2)
            ax.plot(index + 0.12, mean.value, "_", color=ink, ms=12, mew=2)
        if positive and known.max() > 10 * known.min():
            ax.set_yscale("log")
            ax.set_ylim(known.min() / 10, known.max() * 10)  # two seeds may leave an interval of many decades
        ax.set_xticks(range(len(rows)), [literal(name).replace(" ", "\n") for name in rows])
        ax.set_xlim(-0.5, len(rows) - 0.5)
        ax.set_title(label, fontsize=10)


def losses(result: StudyResult, ax: Axes) -> None:
    """Moving averages of the minibatch losses along training, a line for each seed."""
    for name in result.architectures:
        for index, run in enumerate(result.of(name)):
            label = literal(name) if index == 0 else None
            ax.plot(np.linspace(0, 1, len(run.losses)), _smoothed(run.losses), color=colour(result, name), lw=1, label=label)
    ax.set(xlabel="share of training", ylabel="minibatch loss", yscale="log")
    ax.set_title("Training", fontsize=10)
    ax.legend(fontsize=7)


def _smoothed(losses: Array) -> Array:
    """Mean over about a fiftieth of the run."""
    width = max(1, len(losses) // 50)
    padded = np.concatenate([np.full(width - 1, losses[0]), losses])
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")


def predictions(result: StudyResult, axes: Sequence[Axes]) -> None:
    """Early signals against the final test loss, run by run."""
    words = {"mean_curvature": "early tr(H)/D", "lambda_max": r"early $\lambda_{\max}$", "roughness_detrended": "early roughness"}
    for ax, (quantity, label) in zip(axes, words.items(), strict=True):
        for index, (name, row) in enumerate(result.values(quantity).items()):
            outcome = [run.outcome.test_loss for run in result.of(name)]
            ax.plot(row, outcome, _MARKS[index % len(_MARKS)], color=colour(result, name), ms=6, alpha=0.8, label=literal(name))
        ax.set(xlabel=label, ylabel="final test loss", yscale="log")
        known = np.concatenate([row[np.isfinite(row)] for row in result.values(quantity).values()])
        if len(known) and (known > 0).all():
            ax.set_xscale("log")
    axes[0].legend(fontsize=7)


def sharpness_along(runs: Sequence[RunResult], ink: str, ax: Any) -> None:
    """Spectral norms along training with the critical value of the optimizer."""
    edge = None
    for run in runs:
        found = run.parts["difficulty"]
        ax.plot(found.nodes, found.sharpness, color=ink, lw=1, marker=".", ms=3)
        edge = run.meta["critical"]
    if edge is not None:
        ax.axhline(edge, color=GREY, lw=1, ls="--")
        ax.annotate("edge of stability", (0.02, edge), xycoords=("axes fraction", "data"), fontsize=7, color=GREY, va="bottom")
    ax.set(xlabel="training step", ylabel=r"$\|H\|_2$", yscale="log")
    ax.set_title("Sharpness along training", fontsize=10)
