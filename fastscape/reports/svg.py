"""Figures as SVG text, for pages."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any


def svg(
    rows: int,
    columns: int,
    draw: Callable[[list[Any]], object],
    *,
    width: float = 4.3,
    measured: bool = False,
    projection: str | None = None,
) -> str:
    """A grid of panels as SVG.

    Args:
        rows, columns: of the grid.
        draw: called with the axes, row by row.
        width: of a panel, in inches.
        measured: lay out around what was drawn, which takes twice as long.
        projection: of the axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, 3.5 * rows), layout="constrained" if measured else None)
    draw(list(figure.subplots(rows, columns, squeeze=False, subplot_kw={"projection": projection}).flat))
    if not measured:
        figure.subplots_adjust(
            left=0.18 / columns,
            right=1 - 0.045 / columns,
            bottom=0.16 / rows,
            top=1 - 0.08 / rows,
            wspace=0.24,
            hspace=0.34,
        )
    return _text(figure)


def svgs(count: int, draw: Callable[[list[Any]], object], *, width: float = 4.3, measured: bool = False) -> list[str]:
    """Panels as SVGs of their own, which a page places side by side or, where it is narrow, beneath each other.

    Args:
        count: of the panels.
        draw: called with the axes of all; those without a frame are left out.
        width: of a panel, in inches.
        measured: as for :func:`svg`.
    """
    from matplotlib.figure import Figure

    figures = [Figure(figsize=(width, 3.5), layout="constrained" if measured else None) for _ in range(count)]
    axes = [figure.subplots() for figure in figures]
    draw(axes)
    if not measured:
        for figure in figures:
            figure.subplots_adjust(left=0.18, right=0.955, bottom=0.16, top=0.91)
    return [_text(figure) for figure, ax in zip(figures, axes, strict=True) if ax.axison]


def _text(figure: Any) -> str:
    """Without a size of its own: it fills its place on the page."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # the browser has others: text stays text
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return re.sub(
        r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg [^>]*?)height="[^"]*" ([^>]*?)width="[^"]*"',
        lambda m: m[1] or f"{m[2]}{m[3]}",
        text[text.index("<svg") :],
        count=1,
    )
