"""``fastscape doctor``: anything that could make results wrong or slow, and the remedy."""

from __future__ import annotations

import sys
from typing import Any

import click

import fastscape as fs
from fastscape.cli.inputs import build_objective, objective_options
from fastscape.cli.output import EXIT_MODEL, Interrupted, exit_codes, show


@click.command("doctor")
@click.argument("model", required=False)
@objective_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the tables.")
def doctor_command(model: str | None, as_json: bool, **options: Any) -> None:
    """Report anything that could make results wrong or slow, on this machine and, with MODEL and --data, for a model.

    Exit codes: 0 nothing is an error, 2 bad input, 4 the model cannot be probed (or the machine cannot), 130 interrupted.
    """
    if model is None and options["data"] is not None:
        raise click.UsageError("--data requires MODEL")
    with exit_codes():
        try:
            found = (
                fs.doctor(name=None) if model is None else fs.doctor(build_objective(model, options, evaluated=False), name=model)
            )
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted") from error
    with exit_codes():
        show(found, as_json=as_json)
    if found.worst == "error":
        sys.exit(EXIT_MODEL)
