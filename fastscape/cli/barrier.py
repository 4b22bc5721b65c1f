"""``fastscape barrier``: how much the loss rises between solutions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fastscape as fs
from fastscape._interrupts import Interrupts
from fastscape._keeping import patience
from fastscape.cli.budgets import run_budget
from fastscape.cli.folder import check_out, force_option, is_begun
from fastscape.cli.inputs import BATCH_NORM, PRECISIONS, build_objective, checkpoint_files, objective_options, resume_option
from fastscape.cli.output import Outcome, live_progress, run

if TYPE_CHECKING:
    from fastscape.cli.live import LiveProgress
    from fastscape.runs.budget import Budget

_OF_CURVE = ("steps", "learning_rate")


@click.command("barrier")
@click.argument("model")
@click.argument("checkpoints", nargs=-1, type=click.Path(path_type=Path))
@objective_options
@click.option(
    "--bn",
    type=click.Choice(BATCH_NORM),
    help="Running statistics of batch norm along the way; default: recalibrate, recomputed on the data at every point.",
)
@click.option("--match", is_flag=True, help="First reorder the hidden units of the later checkpoint to match the earlier.")
@click.option("--curve", is_flag=True, help="Also train a quadratic Bezier curve around the barrier; for two checkpoints.")
@click.option("--steps", type=int, help="Training steps of the curve; default 300.")
@click.option("--learning-rate", type=float, help="Learning rate of the curve's training (Adam); default 0.01.")
@click.option("--points", type=int, help="Maximum points per path; default 41, and 21 for more than two checkpoints.")
@click.option("--start", type=int, help="Points of the even grid that is refined; default 11.")
@click.option(
    "--tolerance",
    type=float,
    help="Tolerance of the maximum, relative to the range of losses; default 0.001 (0.01 for a matrix).",
)
@click.option("--precision", type=click.Choice(PRECISIONS), help="Arithmetic; default the model's.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of intervals, matching and training.")
@click.option("--budget", help="Time for everything, such as 60s or 5m; the refinement ends there.")
@resume_option
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Directory for barrier.html, barrier.npz and barrier.json."
)
@force_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of the table.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def barrier_command(model: str, checkpoints: Sequence[Path], **options: Any) -> None:
    """Loss barrier of MODEL along the straight line between CHECKPOINTS.

    Two checkpoints (files, or a directory of them) give the losses along their line; one gives the line from the weights MODEL is
    built with; more give a matrix of all pairs. MODEL and data are named as for multifractal.

    Exit codes: 0 done, 2 bad input, 4 the model cannot be probed, 130 interrupted (the partial result is saved).
    """
    run(lambda interrupts: _barrier(model, checkpoints, options, interrupts), options["out"], as_json=options["as_json"])


def _barrier(model: str, given: Sequence[Path], options: dict[str, Any], interrupts: Interrupts) -> Outcome:
    files = checkpoint_files(given)
    if not files:
        raise ValueError("CHECKPOINTS must name at least one file; the line from a model to itself has no barrier")
    if options["curve"] and len(files) > 2:
        raise ValueError(f"--curve connects two checkpoints, got {len(files)}")
    for name in _OF_CURVE:
        if options[name] is not None and not options["curve"]:
            raise ValueError(f"--{name.replace('_', '-')} requires --curve")
    budget = run_budget(options["budget"], page=options["out"] is not None, checkpoints=1)
    check_out(options["out"], ["barrier"], force=options["force"], continues=lambda: is_begun(options["resume"]))
    objective = build_objective(model, options)
    with live_progress(quiet=options["quiet"]) as live, patience:
        result = _measured(objective, files, model, budget, options, live)
        interrupts.hold()
    return Outcome({"barrier": result})


def _measured(
    objective: fs.Objective, files: Sequence[Path], model: str, budget: Budget, options: dict[str, Any], live: LiveProgress
) -> fs.BarrierResult | fs.BarrierMatrix | fs.CurveResult:
    names = ("bn", "match", "points", "start", "tolerance", "precision", "seed", "resume", *_OF_CURVE)
    settings: dict[str, Any] = {name: options[name] for name in names if options[name] is not None}
    settings |= {"budget": budget, "progress": live.show, "name": model}
    if len(files) > 2:
        return fs.barriers(objective, files, **settings)
    ends = (None, *files)[-2:]
    return (fs.connect if options["curve"] else fs.barrier)(objective, *ends, **settings)
