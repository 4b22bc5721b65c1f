"""``fastscape report``: saved results again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fastscape as fs
from fastscape.cli.folder import check_writable
from fastscape.cli.inputs import analysis_options
from fastscape.cli.output import exit_codes, show, write_page

if TYPE_CHECKING:
    from fastscape.reports.document import Document

_OPTION = {"windows": "window"}  # where it is not named as the argument is


@click.command()
@click.argument("result", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--spectrum", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A spectrum.npz to show beside it."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the report page here.")
@analysis_options
def report(result: Path, spectrum: Path | None, out: Path | None, **options: Any) -> None:
    """Show a saved RESULT (npz) again, analysed anew where options ask for it; the model is not needed."""
    with exit_codes():
        loaded = _analysed(fs.load(result), options)
        beside = fs.load(spectrum) if spectrum is not None else None
        if out is not None:
            check_writable(out.parent)
            write_page(out, loaded, beside)
        show(loaded, beside, as_json=options["as_json"])


def _analysed(loaded: Document, options: dict[str, Any]) -> Document:
    """The result under the options for its analysis.

    Raises:
        ValueError: options of a multifractal analysis for a spectrum.
    """
    changes = {name: options[name] for name in ("q", "windows", "variant") if options[name] is not None}
    if not isinstance(loaded, (fs.MultifractalResult, fs.TrajectoryResult)):
        if changes:
            raise ValueError(
                f"{', '.join(f'--{_OPTION.get(name, name)}' for name in changes)} analyse a multifractal result anew, got one of "
                f"the kind {loaded.kind!r}"
            )
        return loaded
    return loaded.reanalyse(**changes) if changes or not loaded.analysed else loaded
