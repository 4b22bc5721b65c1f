"""``fastscape diagonal``: the diagonal of the Hessian, with errors, by parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import fastscape as fs
from fastscape._interrupts import Interrupts
from fastscape._keeping import patience
from fastscape.cli.budgets import run_budget
from fastscape.cli.folder import check_out, force_option, is_begun
from fastscape.cli.inputs import (
    build_objective,
    centre,
    checkpoint_files,
    checkpoint_option,
    gib,
    method_of,
    method_option,
    objective_options,
    resume_option,
)
from fastscape.cli.output import Outcome, live_progress, run


@click.command("diagonal")
@click.argument("model")
@objective_options
@checkpoint_option("Weights, the last of several; repeatable, or a directory.")
@click.option("--products", type=int, help="Vectors to multiply; default: what the budget allows, 64 without one.")
@click.option("--operator", type=click.Choice(["hessian", "ggn"]), default="hessian", show_default=True)
@click.option(
    "--estimator",
    type=click.Choice(["xdiag", "hutchinson", "exact"]),
    help="Default: exact where the products are enough for all parameters, else xdiag.",
)
@click.option("--budget", help="Time for everything, such as 60s or 5m.")
@click.option("--memory", type=gib, help="GiB that products and vectors may take.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random signs.")
@method_option("How to multiply, such as graph or forward; default: the fastest, measured.")
@resume_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for diagonal.html, diagonal.npz and diagonal.json.",
)
@force_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of the table.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def diagonal_command(model: str, **options: Any) -> None:
    """Diagonal of the Hessian (or GGN) of MODEL's loss with standard errors, and its sums by parameter with intervals.

    MODEL and data are named as for multifractal.

    Exit codes: 0 done, 2 bad input, 4 the model cannot be probed, 130 interrupted (the partial result is saved).
    """
    run(lambda interrupts: _diagonal(model, options, interrupts), options["out"], as_json=options["as_json"])


def _diagonal(model: str, options: dict[str, Any], interrupts: Interrupts) -> Outcome:
    files = checkpoint_files(options["checkpoints"])
    budget = run_budget(options["budget"], page=options["out"] is not None, checkpoints=1)
    check_out(options["out"], ["diagonal"], force=options["force"], continues=lambda: is_begun(options["resume"]))
    objective, name, step = centre(build_objective(model, options), model, files)
    settings = {key: options[key] for key in ("products", "operator", "estimator", "memory", "seed", "resume")}
    with live_progress(quiet=options["quiet"]) as live, patience:
        result = fs.diagonal(
            objective, budget=budget, progress=live.show, method=method_of(options), name=name, step=step, **settings
        )
        interrupts.hold()
    return Outcome({"diagonal": result})
