"""Figures of paths between solutions (matplotlib). Each takes a result and an ``ax``, and returns the ``ax``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.reports.axes import BLUE, GREY, ORANGE, RED, literal, nothing, single, titled
from fastscape.reports.numbers import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastscape.probes.barriers.result import BarrierMatrix, BarrierResult, CurveResult

_NUMBERED = 12  # solutions whose cells still hold a number that can be read
_MEAN = 20  # steps of the running mean
_TWICE = 1.96
_WIDE = 30  # ratio of losses beyond which a linear axis hides the smaller ones


def _chord(result: BarrierResult, values: Array) -> Array:
    chord: Array = values[0] + result.alphas * (values[-1] - values[0])
    return chord


def _line(result: BarrierResult, ax: Axes, colour: str, label: str | None = None) -> None:
    known = np.isfinite(result.losses)
    half = np.where(np.isfinite(result.stderr), _TWICE * result.stderr, 0.0)[known]
    x, y = result.alphas[known], result.losses[known]
    ax.fill_between(x, y - half, y + half, color=colour, alpha=0.2, lw=0)
    ax.plot(x, y, "o-", color=colour, ms=3, lw=1.4, label=label)


def loss_line(result: BarrierResult, ax: Axes | None = None) -> Axes:
    """Loss along the path with its band, the chord of the ends, and the barrier as an arrow."""
    ax = single(ax)
    title = f"Loss from {literal(result.a)} to {literal(result.b)}"
    if not np.isfinite(result.losses).any():
        return nothing(ax, title, "no finite loss along the path")
    _line(result, ax, BLUE)
    if math.isfinite(result.linear.value):
        chord = _chord(result, result.losses)
        ax.plot(result.alphas, chord, "--", color=GREY, lw=1.1)
        place = int(np.searchsorted(result.alphas, result.argmax))
        low, high = float(chord[place]), float(result.losses[place])
        if high > low:
            arrow = {"arrowstyle": "<->", "color": RED, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (result.argmax, high), (result.argmax, low), arrowprops=arrow)
            left = result.argmax > 0.6
            ax.annotate(
                rf"$B_{{lin}}$ = {number(result.linear.value)}",
                (result.argmax, (low + high) / 2),
                (-6 if left else 6, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                color=RED,
                fontsize=8,
            )
    return titled(ax, title, r"$\alpha$" if result.path == "line" else "t", "loss")


def accuracy_line(result: BarrierResult, ax: Axes | None = None) -> Axes:
    """Accuracy along the path with the chord of the ends."""
    ax = single(ax)
    title = f"Accuracy from {literal(result.a)} to {literal(result.b)}"
    if result.accuracy is None:
        return nothing(ax, title, "the task is not classification")
    ax.plot(result.alphas, result.accuracy, "o-", color=BLUE, ms=3, lw=1.4)
    ax.plot(result.alphas, _chord(result, result.accuracy), "--", color=GREY, lw=1.1)
    low = float(np.nanmin(result.accuracy))
    ax.set_ylim(max(0.0, low - 0.25 * (1 - low) - 0.02), 1.0 + 0.03 * (1.1 - low))
    return titled(ax, title, r"$\alpha$" if result.path == "line" else "t", "accuracy")


def heat_map(result: BarrierMatrix, values: Array, label: str, ax: Axes | None = None) -> Axes:
    """A matrix over pairs of solutions with its numbers; cells that were not evaluated stay empty."""
    ax = single(ax)
    shown = np.ma.masked_invalid(values)
    top = float(shown.max()) if shown.count() else 1.0
    image = ax.imshow(shown, cmap="YlOrBr", vmin=0.0, vmax=top if top > 0 else 1.0)
    count = len(result.labels)
    places = np.arange(count) if count <= 2 * _NUMBERED else np.arange(0, count, math.ceil(count / _NUMBERED))
    names = [literal(result.labels[place], 24) for place in places]
    long = max(map(len, names)) > 4
    ax.set_xticks(places, names, fontsize=7, rotation=45 if long else 0, ha="right" if long else "center")
    ax.set_yticks(places, names, fontsize=7)
    if count <= _NUMBERED:
        for row in range(count):
            for column in range(count):
                value = float(values[row, column])
                if not math.isnan(value):
                    dark = top > 0 and value > 0.6 * top
                    ax.text(
                        column,
                        row,
                        number(value, 3 if count <= _NUMBERED // 2 else 2),
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="white" if dark else "black",
                    )
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8)
    bar.ax.tick_params(labelsize=7)
    titled(ax, f"{label} between solutions")
    return ax


def all_lines(result: BarrierMatrix, ax: Axes | None = None) -> Axes:
    """Losses of all pairs above the chords of their ends."""
    ax = single(ax)
    usable = [pair for pair in result.pairs if math.isfinite(pair.linear.value)]
    if not usable:
        return nothing(ax, "Loss above the chord", "no pair with finite ends")
    for pair in usable:
        known = np.isfinite(pair.losses)
        above = (pair.losses - _chord(pair, pair.losses))[known]
        ax.plot(pair.alphas[known], above, color=BLUE, lw=1.1, alpha=max(0.25, 1 / len(usable) ** 0.5))
    ax.axhline(0, color=GREY, lw=0.8, ls="--")
    return titled(ax, "Loss above the chord of the ends", r"$\alpha$", "loss - chord")


def both_lines(result: CurveResult, ax: Axes | None = None) -> Axes:
    """Loss along the curve and along the straight line."""
    ax = single(ax)
    title = f"Loss from {literal(result.line.a)} to {literal(result.line.b)}"
    if not (np.isfinite(result.line.losses).any() and np.isfinite(result.curve.losses).any()):
        return nothing(ax, title, "no finite loss along the path")
    _line(result.line, ax, ORANGE, "straight line")
    _line(result.curve, ax, BLUE, "Bezier curve")
    ax.legend(fontsize=8)
    finite = np.concatenate([each.losses[np.isfinite(each.losses)] for each in (result.line, result.curve)])
    if finite.min() > 0 and finite.max() > _WIDE * finite.min():
        ax.set_yscale("log")
    return titled(ax, title, r"position along the path, $\alpha$ or t", "loss")


def training(result: CurveResult, ax: Axes | None = None) -> Axes:
    """Losses at the random points of the training, with a running mean."""
    ax = single(ax)
    losses = result.training
    if not np.isfinite(losses).any():
        return nothing(ax, "Training of the bend", "no step was made")
    ax.plot(np.arange(1, len(losses) + 1), losses, ".", color=GREY, ms=3, alpha=0.6)
    width = min(_MEAN, len(losses))
    mean = np.convolve(losses, np.full(width, 1 / width), mode="valid")
    ax.plot(np.arange(width, len(losses) + 1), mean, color=BLUE, lw=1.4)
    return titled(ax, "Training of the bend", "step", "loss at a random t")
