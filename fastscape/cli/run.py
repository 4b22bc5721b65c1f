"""``fastscape run``: several probes of one checkpoint on one page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fastscape as fs
from fastscape._interrupts import Interrupts
from fastscape._keeping import patience
from fastscape.cli.budgets import run_budget
from fastscape.cli.folder import check_out, force_option
from fastscape.cli.inputs import build_objective, centre, checkpoint_files, objective_options
from fastscape.cli.multifractal import unmet as unmet_multifractal
from fastscape.cli.output import Outcome, live_progress, run
from fastscape.cli.spectrum import optimizer_beside, optimizer_options, targets
from fastscape.cli.spectrum import unmet as unmet_spectrum

if TYPE_CHECKING:
    from fastscape.cli.live import LiveProgress
    from fastscape.runs.budget import Budget

PROBES = (  # of fastscape.probes.signature.probe
    *("spectrum", "slice", "sharpness", "critical_sharpness", "temperature", "barrier", "multifractal"),
)
_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
_TELLING = ("spectrum", "slice", "critical_sharpness", "barrier", "multifractal")  # probes that report progress


@click.command("run")
@click.argument("model")
@objective_options
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights to probe: a file, or the last one of a directory.")
@click.option("--other", type=click.Path(path_type=Path), help="Checkpoint of a second solution, for the barrier.")
@click.option(
    "--what",
    multiple=True,
    type=click.Choice(PROBES),
    help="Probes to run; repeatable. Default: spectrum, slice, both sharpnesses and multifractal; temperature and barrier where "
    "their options are given.",
)
@click.option("--budget", default="60s", show_default=True, help="Time for everything; each probe gets a share of it.")
@click.option(
    "--target",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop the multifractal probe when the 95 % interval of M_tau is this narrow.",
)
@click.option("--target-trace", type=_SHARE, help="Stop when the trace's 95 % interval is this narrow: half-width over value.")
@click.option("--tolerance", type=_SHARE, help="Tolerance of the eigenvalues: residual over the largest.")
@optimizer_options
@click.option("--batch-size", type=int, help="Batch size of the training, for the temperature.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random numbers.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Directory for run.html, run.npz and run.json.")
@force_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of the table.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def run_command(model: str, **options: Any) -> None:
    """Several probes of MODEL under one budget, on one page.

    A probe that fails, or whose share of the budget is too small, is listed with the reason; the others keep their results.
    MODEL and data are named as for multifractal.

    Exit codes: 0 done, 2 bad input, 3 a target was not reached in the budget, 4 the model cannot be probed, 130
    interrupted (the partial result is saved).
    """
    run(lambda interrupts: _run(model, options, interrupts), options["out"], as_json=options["as_json"])


def _run(model: str, options: dict[str, Any], interrupts: Interrupts) -> Outcome:
    files = [] if options["checkpoint"] is None else checkpoint_files([options["checkpoint"]])[-1:]
    budget = run_budget(options["budget"], page=options["out"] is not None, checkpoints=len(options["what"] or PROBES))
    check_out(options["out"], ["run"], force=options["force"])
    objective, name, step = centre(build_objective(model, options), model, files)
    training = {"batch_size": options["batch_size"], "optimizer": optimizer_beside(objective, files, options)}
    what = _what(options, training)
    with live_progress(quiet=options["quiet"]) as live, patience:
        result = fs.probe(
            objective,
            what,
            budget=budget,
            targets=targets(options) | ({} if options["target"] is None else {"m_tau": options["target"]}),
            other=options["other"],
            options=_progress(name, budget, live),
            seed=options["seed"],
            name=name,
            step=step,
            **training,
        )
        interrupts.hold()
    for kind in result.meta["settings"]["what"]:
        if kind in result.missing:
            click.echo(f"no {kind}: {result.missing[kind]}", err=True)
    return Outcome({"run": result}, _unmet(result, options))


def _what(options: dict[str, Any], training: dict[str, Any]) -> tuple[str, ...]:
    """Probes that were asked for, or else those whose options are given.

    Raises:
        ValueError: a probe without what it needs, or a target of a probe that is not run.
    """
    what = options["what"]
    if "temperature" in what and None in training.values():
        raise ValueError("--what temperature requires --batch-size, and --learning-rate or --optimizer")
    if "barrier" in what and options["other"] is None:
        raise ValueError("--what barrier requires --other")
    for option, kind in (("target", "multifractal"), ("target_trace", "spectrum"), ("tolerance", "spectrum")):
        if options[option] is not None and what and kind not in what:
            raise ValueError(f"--{option.replace('_', '-')} requires --what {kind}")
    if what:
        return tuple(what)
    if options["batch_size"] is not None and training["optimizer"] is None:
        click.echo("no temperature: --batch-size requires --learning-rate or --optimizer", err=True)
    without = {"temperature": None in training.values(), "barrier": options["other"] is None}
    return tuple(kind for kind in PROBES if not without.get(kind))


def _progress(name: str, budget: Budget, live: LiveProgress) -> dict[str, dict[str, Any]]:
    """Options of the probes that report progress: the share of the budget that is spent, or else of the probe."""

    def shown(kind: str) -> Callable[[fs.Progress], None]:
        def show(state: fs.Progress) -> None:
            spent = budget.elapsed / budget.seconds if budget.limited else state.fraction
            live.show(fs.Progress(name, kind, fraction=min(1.0, spent), remaining=budget.remaining))

        return show

    return {kind: {"progress": shown(kind)} for kind in _TELLING}


def _unmet(result: fs.ProbeResult, options: dict[str, Any]) -> str:
    """The targets that were not reached, and why; a probe without a result reached none."""
    asked = {"multifractal": options["target"] is not None, "spectrum": bool(targets(options))}
    found = [f"the target of the {kind} was not reached" for kind in asked if asked[kind] and kind not in result]
    found += [unmet_multifractal(result.results["multifractal"])] if "multifractal" in result else []
    found += [unmet_spectrum(result.results["spectrum"], options)] if "spectrum" in result else []
    return "; ".join(filter(None, found))
