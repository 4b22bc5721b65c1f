"""``fastscape slice``: losses along lines, or over a plane."""

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
from fastscape.cli.inputs import (
    BATCH_NORM,
    PRECISIONS,
    build_objective,
    centre,
    checkpoint_files,
    checkpoint_option,
    gib,
    objective_options,
    resume_option,
)
from fastscape.cli.output import Outcome, live_progress, run

if TYPE_CHECKING:
    from fastscape.cli.live import LiveProgress
    from fastscape.probes.slices.axes import AnyDirections
    from fastscape.runs.budget import Budget

LINES, COMPONENTS = 32, 8  # of fastscape.probes.slices.axes
DIRECTIONS = ("random", "gradient", "eigenvectors", "difference", "pca")
_SHARE = 0.3  # of the budget, for the eigenvectors


@click.command("slice")
@click.argument("model")
@objective_options
@checkpoint_option(
    "Weights to slice around, the last of several; repeatable, or a directory. A plane shows the others projected."
)
@click.option("--dims", type=click.Choice(["1", "2"]), default="1", show_default=True, help="Lines, or a plane.")
@click.option(
    "--direction",
    type=click.Choice(DIRECTIONS),
    default="random",
    show_default=True,
    help="difference: from the last checkpoint to the first. pca: principal components of the checkpoints.",
)
@click.option(
    "--radius", type=float, help="Largest alpha, relative to ||w||; default 1, or large enough to show all checkpoints."
)
@click.option("--points", type=int, help="Odd number along each axis; default 41 for lines, 21 for a plane.")
@click.option("--count", type=int, help=f"Lines; default {LINES} random directions, {COMPONENTS} eigenvectors or components.")
@click.option(
    "--normalize",
    default="filter",
    show_default=True,
    help="Normalisation of random directions: filter, tensor, module, global ...",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random directions.")
@click.option(
    "--bn",
    type=click.Choice(BATCH_NORM),
    help="Running statistics of batch norm along the way; default: those of the centre, compared with recomputed ones.",
)
@click.option("--precision", type=click.Choice(PRECISIONS), help="Arithmetic; default the model's.")
@click.option(
    "--symlog/--linear", default=None, help="Scale of the loss; default: symmetric-logarithmic where its range is wide."
)
@click.option("--budget", help="Time for everything, such as 60s or 5m; lines and rows beyond it are left out.")
@click.option("--memory", type=gib, help="GiB that batched evaluation may take.")
@resume_option
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Directory for slice.html, slice.npz and slice.json."
)
@force_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of the table.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def slice_command(model: str, **options: Any) -> None:
    """Losses of MODEL along lines, or over a plane, through its weights, and their roughness.

    Alpha is in units of relative change of the weights. MODEL and data are named as for multifractal.

    Exit codes: 0 done, 2 bad input, 4 the model cannot be probed, 130 interrupted (the partial result is saved).
    """
    run(lambda interrupts: _slice(model, options, interrupts), options["out"], as_json=options["as_json"])


def _slice(model: str, options: dict[str, Any], interrupts: Interrupts) -> Outcome:
    files = checkpoint_files(options["checkpoints"])
    budget = run_budget(options["budget"], page=options["out"] is not None, checkpoints=1)
    check_out(options["out"], ["slice"], force=options["force"], continues=lambda: is_begun(options["resume"]))
    objective, name, step = centre(build_objective(model, options), model, files)
    with live_progress(quiet=options["quiet"]) as live, patience:
        result = _measured(objective, files, budget, options, live, {"name": name, "step": step})
        interrupts.hold()
    return Outcome({"slice": result})


def _measured(
    objective: fs.Objective,
    files: Sequence[Path],
    budget: Budget,
    options: dict[str, Any],
    live: LiveProgress,
    labels: dict[str, Any],
) -> fs.SliceResult | fs.PlaneResult:
    plane = options["dims"] == "2"
    settings: dict[str, Any] = {
        key: options[key] for key in ("normalize", "seed", "precision", "symlog", "memory", "bn", "resume")
    }
    settings |= {key: options[key] for key in ("radius", "points") if options[key] is not None}
    directions = _directions(objective, files, budget, options)
    trajectory = list(files) if len(files) > 1 else None
    settings |= {"budget": budget, "progress": live.show, **labels}
    if plane:
        return fs.slice2d(objective, directions, trajectory=trajectory, **settings)
    return fs.slice1d(objective, directions, trajectory=trajectory, count=options["count"], **settings)


def _directions(objective: fs.Objective, files: Sequence[Path], budget: Budget, options: dict[str, Any]) -> AnyDirections:
    kind: str = options["direction"]
    if kind == "pca" and len(files) < 2:
        raise ValueError(f"--direction pca needs the --checkpoint files of a trajectory, got {len(files)}")
    if kind == "difference":
        if len(files) < 2:
            raise ValueError(f"--direction difference needs two --checkpoint files, got {len(files)}")
        from fastscape.probes.slices.axes import states_of

        states, _ = states_of(objective, [files[-1], files[0]], "checkpoint")
        return fs.Axes.difference(objective, *states)
    if kind == "eigenvectors":
        from fastscape.runs.budget import BudgetError

        count = 2 if options["dims"] == "2" else options["count"]
        count = COMPONENTS if count is None else count
        share, before = _SHARE * budget.remaining if budget.limited else None, budget.reserve + budget.elapsed
        try:
            return fs.spectrum(objective, min(count, objective.size), budget=share, targets={"trace": None}, seed=options["seed"])
        except BudgetError as error:
            raise budget.refusal(error, "the eigenvectors", _SHARE, before) from error
    return kind
