"""``fastscape report``: saved results again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastscape.cli.inputs import analysis_options
from fastscape.cli.output import check_writable, exit_codes, show, write_page
from fastscape.reports import MultifractalResult, TrajectoryResult, load
from fastscape.reports.document import Document


@click.command()
@click.argument("result", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--spectrum", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A spectrum.npz to show beside it."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the report page here.")
@analysis_options
def report(result: Path, spectrum: Path | None, out: Path | None, **options: Any) -> None:
    """Show a saved RESULT (npz) again, analysed anew where options ask for it; the model is not needed."""

    def again() -> None:
        loaded = _analysed(load(result), options)
        beside = load(spectrum) if spectrum is not None else None
        if out is not None:
            check_writable(out.parent)
            write_page(out, loaded, beside)
        show(loaded, beside, as_json=options["as_json"])

    exit_codes(again)


def _analysed(loaded: Document, options: dict[str, Any]) -> Document:
    """The result under the options for its analysis.

    Raises:
        ValueError: options of a multifractal analysis for a spectrum.
    """
    changes = {name: options[name] for name in ("q", "windows", "variant") if options[name] is not None}
    if not isinstance(loaded, (MultifractalResult, TrajectoryResult)):
        if changes:
            raise ValueError(f"{', '.join(f'--{name}' for name in changes)} are for multifractal results, got a spectrum")
        return loaded
    return loaded.reanalyse(**changes) if changes or not loaded.analysed else loaded
