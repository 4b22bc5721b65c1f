"""``fastscape merge``: the result of a journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import fastscape as fs
from fastscape._interrupts import Interrupts
from fastscape.cli.folder import check_out, force_option
from fastscape.cli.inputs import analysis_options
from fastscape.cli.output import Outcome, run


@click.command("merge")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for report.html, result.npz and result.json.",
)
@force_option
@analysis_options
def merge_command(folder: Path, out: Path | None, *, force: bool, **options: Any) -> None:
    """Show what the journal in FOLDER holds (--resume), of an unfinished run too; the model is not needed.

    Units of all processes that wrote to it are merged. Exit codes: 0 done, 2 bad input.
    """

    def work(interrupts: Interrupts) -> Outcome:
        check_out(out, ["result"], force=force)
        changes = {name: options[name] for name in ("q", "windows", "variant") if options[name] is not None}
        merged = fs.merge(folder)
        result = merged.reanalyse(**changes) if changes else merged
        interrupts.hold()
        return Outcome({"result": result})

    run(work, out, as_json=options["as_json"])
