"""``fastscape status``: which kernels answer, and how a model's operations are handled."""

from __future__ import annotations

import json
from typing import Any

import click

import fastscape as fs
from fastscape.cli.inputs import build_objective, objective_options
from fastscape.cli.output import exit_codes


@click.command("status")
@click.option(
    "--model", help="Show how difference propagation handles the operations of this MODEL (see multifractal) on --data."
)
@objective_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def show_status(model: str | None, as_json: bool, **options: Any) -> None:
    """Show which kernels run on this machine, and why others do not; with --model, how its operations are handled."""
    if model is None and options["data"] is not None:
        raise click.UsageError("--data requires --model")
    with exit_codes():
        found = fs.status() if model is None else fs.operators(build_objective(model, options))
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))
