"""What pages show of sections: figures drawn, anchors named, settings and provenance gathered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastscape.reports.document import Document
from fastscape.reports.sections import Figure, Section
from fastscape.reports.svg import svg, svgs

_WIDTH = 4.6  # inches of a panel
PROVENANCE = (
    ("model", "model"),
    ("parameters", "parameters"),
    ("weights (SHA-256)", "weight_fingerprint"),
    ("data (SHA-256)", "data_fingerprint"),
    ("samples", "samples"),
    ("batches", "batches"),
    ("batch norm", "batch_norm"),
    ("device", "device"),
    ("dtype", "dtype"),
    ("arithmetic", "arithmetic"),
    ("seed", "seed"),
    ("evaluations", "evaluations"),
    ("seconds", "seconds"),
    ("stopped by", "stop_reason"),
    ("threads", "threads"),
    ("versions", "versions"),
    ("created", "created"),
)


def document_page(result: Document) -> dict[str, Any]:
    """The template's variables; a compound result has a section for itself and one for each child."""
    whole = result.section()
    title = "Overview" if whole.children else whole.title
    own = Section(title, result.verdict(), whole.quantities, whole.figures, whole.grids, whole.flags, whole.settings)
    parts = [own, *whole.children] if whole.children else [own]
    return {
        "title": whole.title,
        "verdict": result.verdict(),
        "sections": [_context(part, f"s{index}") for index, part in enumerate(parts)],
        "provenance": [(label, _text(result.meta[key])) for label, key in PROVENANCE if result.meta.get(key) is not None],
    }


def _context(section: Section, anchor: str) -> dict[str, Any]:
    return {
        "anchor": f"{anchor}-{re.sub(r'[^a-z0-9]+', '-', section.title.lower()).strip('-')}",
        "title": section.title,
        "verdict": section.verdict,
        "quantities": [(quantity.label, quantity.value, quantity.meaning) for quantity in section.quantities],
        "figures": [_drawn(figure) for figure in section.figures],
        "grids": section.grids,
        "flags": section.flags,
        "settings": section.settings,
        "open": not section.folded,
        "children": [_context(child, f"{anchor}-{index}") for index, child in enumerate(section.children)],
    }


def _drawn(figure: Figure) -> dict[str, Any]:
    rows, columns = figure.panels

    def draw(axes: Sequence[Any]) -> None:
        if len(axes) > 1:
            figure.draw(axes)
            return
        figure.draw(axes[0])
        if not axes[0].get_title():
            axes[0].set_title(figure.title, fontsize=10)

    if rows * columns > 1 and figure.projection is None:  # side by side, or beneath each other where the page is narrow
        panels = svgs(rows * columns, draw, width=_WIDTH, measured=True)
        return {"panels": panels, "definition": figure.definition}
    text = svg(rows, columns, draw, width=_WIDTH, measured=True, projection=figure.projection)
    return {"svg": text, "definition": figure.definition, "wide": columns > 1, "columns": columns}


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
