"""``fastscape critical``: how far along an update the loss falls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import fastscape as fs
from fastscape._interrupts import Interrupts
from fastscape._keeping import patience
from fastscape.cli.budgets import run_budget
from fastscape.cli.folder import check_out, force_option
from fastscape.cli.inputs import (
    PRECISIONS,
    build_objective,
    centre,
    checkpoint_files,
    checkpoint_option,
    objective_on,
    objective_options,
)
from fastscape.cli.output import Outcome, live_progress, run
from fastscape.cli.spectrum import optimizer_beside, optimizer_options


@click.command("critical")
@click.argument("model")
@objective_options
@checkpoint_option("Weights, the last of several; repeatable, or a directory.")
@optimizer_options
@click.option("--relative-to", help="Data as for --data, whose gradient is followed while the loss is that of --data.")
@click.option("--guess", type=float, help="First step, such as the last eta_c; default: the learning rate.")
@click.option(
    "--tolerance", type=float, default=0.1, show_default=True, help="Half the width of the bracket of eta_c over its middle."
)
@click.option("--curvature/--no-curvature", default=True, help="Also measure the curvature along the update.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Arithmetic; default the model's.")
@click.option("--budget", help="Time for everything, such as 60s or 5m; the search ends there.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for critical.html, critical.npz and critical.json.",
)
@force_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of the table.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def critical_command(model: str, **options: Any) -> None:
    """Critical sharpness of MODEL's loss: the smallest step along an update at which it rises, and 2 over it.

    The update is the next step of the optimizer, of --optimizer, --learning-rate or beside the checkpoint, and the negative
    gradient without one. MODEL and data are named as for multifractal.

    Exit codes: 0 done, 2 bad input, 4 the model cannot be probed, 130 interrupted (the partial result is saved).
    """
    run(lambda interrupts: _critical(model, options, interrupts), options["out"], as_json=options["as_json"])


def _critical(model: str, options: dict[str, Any], interrupts: Interrupts) -> Outcome:
    files = checkpoint_files(options["checkpoints"])
    budget = run_budget(options["budget"], page=options["out"] is not None, checkpoints=1)
    check_out(options["out"], ["critical"], force=options["force"])
    objective, name, step = centre(build_objective(model, options), model, files)
    settings = {key: options[key] for key in ("guess", "tolerance", "curvature", "precision")}
    with live_progress(quiet=options["quiet"]) as live, patience:
        result = fs.critical_sharpness(
            objective,
            optimizer=optimizer_beside(objective, files, options),
            relative_to=_other(model, objective, options),
            budget=budget,
            progress=live.show,
            name=name,
            step=step,
            **settings,
        )
        interrupts.hold()
    return Outcome({"critical": result})


def _other(model: str, objective: fs.Objective, options: dict[str, Any]) -> fs.Objective | None:
    """The objective that is followed, on the same weights."""
    if options["relative_to"] is None:
        return None
    other = objective_on(model, objective.model, options, "--relative-to", options["relative_to"])
    return other if objective.state is None else other.at(objective.state)
