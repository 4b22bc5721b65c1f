"""``fastscape bench``: what probes cost on this model, data and machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import fastscape as fs
from fastscape._files import write_text
from fastscape._interrupts import Interrupts
from fastscape._keeping import patience
from fastscape.cli.budgets import run_budget
from fastscape.cli.folder import check_out, check_writable, force_option
from fastscape.cli.inputs import build_objective, gib, objective_options
from fastscape.cli.output import Outcome, live_progress, run


@click.command("bench")
@click.argument("model")
@objective_options
@click.option("--budget", default="60s", show_default=True, help="Time for everything; what does not fit is listed as left out.")
@click.option("--count", type=int, default=8, show_default=True, help="Directions per call, and vectors of a block.")
@click.option("--repeats", type=int, default=9, show_default=True, help="Rounds at most.")
@click.option("--memory", type=gib, help="GiB for each way to evaluate.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random directions.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Directory for bench.html, bench.npz and bench.json."
)
@click.option(
    "--benchmark-json",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the timings in the format of pytest-benchmark, for its compare command.",
)
@force_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of the table.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def bench_command(model: str, **options: Any) -> None:
    """Time forwards, gradients, responses, quadratic forms and products of MODEL in turns, beside plain torch.

    MODEL and data are named as for multifractal. Numbers are compared before anything is timed.

    Exit codes: 0 done, 2 bad input, 4 the model cannot be probed, 130 interrupted (what was timed is saved).
    """
    run(lambda interrupts: _bench(model, options, interrupts), options["out"], as_json=options["as_json"])


def _bench(model: str, options: dict[str, Any], interrupts: Interrupts) -> Outcome:
    budget = run_budget(options["budget"], page=options["out"] is not None, checkpoints=0)
    check_out(options["out"], ["bench"], force=options["force"])
    file = options["benchmark_json"]
    if file is not None:
        check_writable(file.parent)
    objective = build_objective(model, options)
    settings = {key: options[key] for key in ("count", "repeats", "memory", "seed")}
    with live_progress(quiet=options["quiet"]) as live, patience:
        result = fs.bench(
            objective,
            budget=budget,
            name=model,
            progress=live.show,
            **settings,
        )
        interrupts.hold()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(result.pytest_benchmark(), indent=1, allow_nan=False) + "\n")
    return Outcome({"bench": result})
