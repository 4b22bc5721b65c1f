"""``fastscape trace``: the trace of the Hessian from a few forwards."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

import fastscape as fs
from fastscape._interrupts import EXIT_INTERRUPTED, Interrupts
from fastscape.cli.budgets import start_up
from fastscape.cli.inputs import (
    build_objective,
    centre,
    checkpoint_files,
    checkpoint_option,
    gib,
    method_of,
    method_option,
    objective_options,
)
from fastscape.cli.output import exit_codes, live_progress


@click.command("trace")
@click.argument("model")
@objective_options
@checkpoint_option("Weights, the last of several; repeatable, or a directory.")
@click.option("--probes", type=int, default=8, show_default=True, help="Random directions, at least 2.")
@click.option("--rank", type=click.IntRange(min=0), default=16, show_default=True, help="Of the directions; 0: all elements.")
@click.option("--distribution", type=click.Choice(["rademacher", "gaussian"]), default="rademacher", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the directions.")
@click.option("--memory", type=gib, help="GiB that the forms may take.")
@method_option("How to evaluate: graph, dispatch or forwards; default: the first that can.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a line.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def trace_command(model: str, **options: Any) -> None:
    """Trace of the Hessian of MODEL's loss with its 95 % interval, from a few forwards: about two for each direction.

    MODEL and data are named as for multifractal. For eigenvalues and traces by parameter see spectrum and diagonal.

    Exit codes: 0 done, 2 bad input, 4 the model cannot be probed, 130 interrupted (what is known is printed).
    """
    start_up()
    with exit_codes(), Interrupts() as interrupts:
        found = _trace(model, options)
        interrupts.hold()
    click.echo(json.dumps(_data(found), indent=1, allow_nan=False) if options["as_json"] else str(found))
    if found.forms is not None and found.forms.stop_reason == "interrupted":
        sys.exit(EXIT_INTERRUPTED)


def _trace(model: str, options: dict[str, Any]) -> fs.TraceEstimate:
    from fastscape.runs.progress import Progress

    objective, name, _ = centre(build_objective(model, options), model, checkpoint_files(options["checkpoints"]))
    settings = {key: options[key] for key in ("probes", "distribution", "seed", "memory")}
    method: Any = method_of(options)
    with live_progress(quiet=options["quiet"]) as live:

        def told(done: int, total: int) -> None:
            live.show(Progress(name, unit="direction", done=done, total=total, fraction=done / total))

        return fs.trace(objective, rank=options["rank"] or None, method=method, progress=told, **settings)


def _data(found: fs.TraceEstimate) -> dict[str, Any]:
    from fastscape.reports.storage import plain

    assert found.forms is not None
    estimate = {key: getattr(found, key) for key in ("value", "stderr", "interval", "n", "method")}
    forms = found.forms
    cost = {"path": forms.path.name, "forwards": forms.forwards, "seconds": forms.seconds, "stop_reason": forms.stop_reason}
    data: dict[str, Any] = plain(estimate | {"loss": forms.base, "forms": forms.curvature, "law": forms.law} | cost)
    return data
