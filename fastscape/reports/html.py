"""One self-contained HTML page per result: verdict, a section for each part, provenance."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastscape._checks import first_line
from fastscape._files import write_text
from fastscape.reports.document import Document, check_companion
from fastscape.reports.numbers import readable
from fastscape.reports.sections import Figure, Section
from fastscape.reports.svg import svg, svgs

_WIDTH = 4.6  # inches of a panel
_PROVENANCE = (
    ("model", "model"),
    ("parameters", "parameters"),
    ("share not moved", "skipped_fraction"),
    ("weights (SHA-256)", "weight_fingerprint"),
    ("data (SHA-256)", "data_fingerprint"),
    ("samples", "samples"),
    ("batches", "batches"),
    ("batch norm", "batch_norm"),
    ("device", "device"),
    ("dtype", "dtype"),
    ("precision", "precision"),
    ("arithmetic", "arithmetic"),
    ("seed", "seed"),
    ("evaluations", "evaluations"),
    ("seconds", "seconds"),
    ("stopped by", "stop_reason"),
    ("threads", "threads"),
    ("versions", "versions"),
    ("created", "created"),
)


def write_html(result: Document, path: str | Path, *, spectrum: Document | None = None) -> Path:
    """Write the report page of a result and return its path (needs matplotlib and jinja2).

    Args:
        result: what the page is about.
        path: of the page.
        spectrum: spectra of the same checkpoints, to show beside a multifractal result.

    Raises:
        ImportError: naming the extra to install.
        TypeError: a spectrum beside a result that takes none.
    """
    try:
        import matplotlib as mpl
        from jinja2 import Environment, PackageLoader, select_autoescape
    except ImportError as error:
        raise ImportError("reports need matplotlib and jinja2: pip install 'fastscape-probes[report]'") from error
    if spectrum is not None:
        check_companion(result, spectrum)
    environment = Environment(loader=PackageLoader("fastscape.reports"), autoescape=select_autoescape(["j2"]))
    with mpl.rc_context({"svg.hashsalt": "fastscape", "font.size": 9, "svg.fonttype": "none"}):
        content = _page(result, spectrum)
    target = Path(path)
    write_text(target, readable(environment.get_template("document.html.j2").render(content)))
    return target


def _page(result: Document, spectrum: Document | None) -> dict[str, Any]:
    """The template's variables; a compound result has a section for itself and one for each child."""
    whole = result.section(spectrum)
    title = "Overview" if whole.children else whole.title
    return {
        "title": whole.title,
        "verdicts": [each.verdict() for each in (spectrum, result) if each is not None],
        "sections": [
            _section(whole, "s0", title=title, children=()),
            *(_section(child, f"s{index}") for index, child in enumerate(whole.children, 1)),
        ],
        "provenance": _provenance(result),
        "footers": list(dict.fromkeys(_footers(whole))),
    }


def _footers(section: Section) -> Iterator[str]:
    if section.footer:
        yield section.footer
    for child in section.children:
        yield from _footers(child)


def _section(section: Section, anchor: str, **other: Any) -> dict[str, Any]:
    title, children = other.get("title", section.title), other.get("children", section.children)
    return {
        "anchor": f"{anchor}-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}",
        "title": title,
        "verdict": section.verdict,
        "quantities": [(quantity.label, quantity.value, quantity.meaning) for quantity in section.quantities],
        "figures": [panel for figure in section.figures for panel in _shown(figure)],
        "grids": section.grids or ([section.leads] if section.leads else []),
        "flags": section.flags,
        "settings": section.settings,
        "open": not section.folded,
        "children": [_section(child, f"{anchor}-{index}") for index, child in enumerate(children)],
    }


def _shown(figure: Figure) -> list[dict[str, Any]]:
    """The panels of a figure; one that cannot be drawn is named in its place, and the rest of the page stays."""
    try:
        return _drawn(figure)
    except Exception as error:
        words = f"{figure.title} could not be drawn ({type(error).__name__}: {first_line(error)})"
        return [{"failed": words, "definition": figure.definition}]


def _drawn(figure: Figure) -> list[dict[str, Any]]:
    rows, columns = figure.panels

    def draw(axes: Sequence[Any]) -> None:
        if len(axes) > 1:
            figure.draw(axes)
            return
        figure.draw(axes[0])
        if not axes[0].get_title():
            axes[0].set_title(figure.title, fontsize=10)

    if rows * columns > 1 and figure.projection is None:  # side by side, or beneath each other where the page is narrow
        panels = svgs(rows * columns, draw, width=_WIDTH, measured=figure.measured)
        if figure.captions:
            return [{"svg": panel, "definition": words} for panel, words in zip(panels, figure.captions, strict=True)]
        return [{"panels": panels, "definition": figure.definition}]
    text = svg(rows, columns, draw, width=_WIDTH, measured=figure.measured, projection=figure.projection)
    return [{"svg": text, "definition": figure.definition, "wide": columns > 1, "columns": columns}]


def _provenance(result: Document) -> list[tuple[str, str]]:
    """Provenance of a page: the weights of every checkpoint; objective, run and versions of the run or of the first."""
    points = result.probed
    known = {**points[0][1], **result.meta} if points else result.meta
    rows = []
    for label, key in _PROVENANCE:
        if key == "weight_fingerprint" and len(points) > 1:
            rows += [(f"weights of {name} (SHA-256)", _text(meta[key])) for name, meta in points if meta.get(key) is not None]
        elif known.get(key) is not None:
            rows.append((label, _text(known[key])))
    return rows


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
