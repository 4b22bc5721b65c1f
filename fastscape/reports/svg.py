"""Figures as SVG text, for pages."""

from __future__ import annotations

import io
import re
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
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return re.sub(
        r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg [^>]*?)height="[^"]*" ([^>]*?)width="[^"]*"',
        lambda m: m[1] or f"{m[2]}{m[3]}",
        text[text.index("<svg") :],
        count=1,
    )
