"""Shared parts of figures: colours that everybody can tell apart, axes of their own, the axis of training steps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.reports.numbers import readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY, RED = "#2f6fab", "#d9822b", "#8a8f98", "#b5403a"
_TITLE = 44  # characters of a title that fit above a panel


def single(ax: Axes | None) -> Axes:
    """``ax``, or that of a new figure."""
    return grid(1, 1, (5.2, 3.8))[0] if ax is None else ax


def grid(rows: int, columns: int, size: tuple[float, float]) -> list[Axes]:
    """Axes of a new figure of ``size`` inches, row by row."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'fastscape-probes[plot]'") from error
    return list(plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)[1].flat)


def literal(name: str, most: int = 60) -> str:
    """A name as a figure shows it: its dollars begin no formula, and what no font or file holds is a replacement character.

    Of one longer than ``most`` characters, the middle is left out.
    """
    if len(name) > most:
        name = f"{name[: most // 2]}…{name[-(most // 2) + 1 :]}"
    shown = readable(name).replace("\n", " ").replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown  # legends leave out what begins with an underscore


def titled(ax: Axes, title: str, xlabel: str | None = None, ylabel: str | None = None) -> Axes:
    """The axes with labels, and a title that is not cut off at the panel's edges: long ones are broken into lines."""
    ax.set(xlabel=ax.get_xlabel() if xlabel is None else xlabel, ylabel=ax.get_ylabel() if ylabel is None else ylabel)
    size = 10 if len(title) <= _TITLE else 8
    ax.set_title(textwrap.fill(title, _TITLE if size == 10 else _TITLE * 5 // 4), fontsize=size)
    return ax


def nothing(ax: Axes, title: str, reason: str) -> Axes:
    """A panel that says why it is empty."""
    titled(ax, title)
    words = textwrap.fill(reason, _TITLE)  # wrap=True breaks at the figure's edges, not at the panel's
    ax.text(0.5, 0.5, words, ha="center", va="center", transform=ax.transAxes, color=GREY, fontsize=8)
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def step_axis(points: Sequence[Any], steps: Array, ax: Axes) -> None:
    """Training steps on the x axis, logarithmic beyond zero where they grow twentyfold."""
    if len(steps) > 1 and steps.max() > 20 * max(1.0, np.min(steps[steps > 0], initial=steps.max())):
        ax.set_xscale("symlog", linthresh=max(1.0, float(np.min(steps[steps > 0]))))
    width = ax.get_xaxis().get_transform()
    low, high = width.transform(np.array([steps.min(), steps.max()]))
    pad = 0.04 * max(high - low, 1e-9)
    ax.set_xlim(*width.inverted().transform(np.array([low - pad, high + pad])))
    ax.set_xlabel("training step" if all(point.step is not None for point in points) else "checkpoint")
