"""``fastscape probe``: the multifractal probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastscape._interrupts import Interrupts
from fastscape.cli.budgets import run_budget
from fastscape.cli.inputs import analysis_options, build_objective, checkpoint_files, gibibytes, objective_options, radii
from fastscape.cli.output import Outcome, check_out, exit_codes, finish
from fastscape.estimators import AnalysisSettings
from fastscape.probes import multifractal, trajectory
from fastscape.probes.session import Progress
from fastscape.reports import MultifractalResult, TrajectoryResult, load
from fastscape.reports.live import LiveProgress
from fastscape.runs import ProbeSettings, preset

Result = MultifractalResult | TrajectoryResult


@click.command()
@click.argument("model")
@objective_options
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Weights; repeatable, or a directory of them.",
)
@click.option("--budget", help="Time for everything, such as 60s or 5m; directions come until it ends.")
@click.option("--target", type=float, help="Stop when the 95 % interval of M_tau is this narrow (half-width).")
@click.option("--count", type=int, help="Directions per bank.")
@click.option("--banks", type=int, help="Banks of directions with their own seeds.")
@click.option("--seed", type=int, help="Of the directions.")
@click.option("--radii", callback=radii, help="LOW:HIGH:COUNT log-spaced, or a comma-separated list.")
@click.option("--distribution", help="gaussian or rademacher.")
@click.option("--normalize", help="tensor, filter, module, global, element or none.")
@click.option("--scale", help="relative (radii are relative to ||w||) or unit (absolute).")
@click.option("--one-d", help="same or zero: whether biases and norm parameters move.")
@click.option("--precision", help="difference, difference-bf16, float64 or float32; default: measured.")
@click.option("--bank-batches", help="all or rotate: data of each bank.")
@click.option("--preset", "preset_name", help="torok2026: the settings of a published protocol.")
@click.option("--path", type=click.Choice(["loop", "vmap", "graph", "dispatch"]), help="Evaluation path; default: measured.")
@click.option("--memory", type=float, callback=gibibytes, help="GiB that batched evaluation may take.")
@click.option("--extend", type=click.Path(path_type=Path), help="An earlier result.npz of the same run to continue.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for report.html, result.npz and result.json.",
)
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@analysis_options
def probe(model: str, **options: Any) -> None:
    """Multifractal probe of MODEL, or of its checkpoints along the same directions.

    MODEL is zoo:NAME, torchvision:NAME, package.module:factory or file.py:factory, with arguments as ?name=value&...; a
    factory returns a torch module, or a whole fastscape.Objective.

    Exit codes: 0 done, 2 bad input, 3 the target was not reached in the budget, 4 the model cannot be probed, 130
    interrupted (the partial result is saved).

    Ctrl-C ends the run with what is known; a second one leaves out the analysis and the page that are not done by then.
    """
    with Interrupts() as interrupts:
        outcome = exit_codes(lambda: _probe(model, options, interrupts))
        exit_codes(lambda: finish(outcome, options["out"], interrupts, as_json=options["as_json"]))


def _probe(model: str, options: dict[str, Any], interrupts: Interrupts) -> Outcome:
    files = checkpoint_files(options["checkpoints"])
    budget = run_budget(options["budget"], page=options["out"] is not None, checkpoints=len(files))
    probe_settings, analysis = _settings(options)
    check_out(options["out"])
    objective = build_objective(model, options)
    earlier = load(options["extend"]) if options["extend"] is not None else None
    with LiveProgress(quiet=options["quiet"]) as live:

        def show(state: Progress) -> None:
            live.show(state.checkpoint, state.directions, state.fraction, state.remaining, state.m_tau)

        common: dict[str, Any] = {
            "budget": budget,
            "target": options["target"],
            "path": options["path"],
            "memory": options["memory"],
            "progress": show,
        }
        if files:
            if earlier is not None and not isinstance(earlier, TrajectoryResult):
                raise ValueError("--extend must be a trajectory result for --checkpoint, got one of a single model")
            result: Result = trajectory(objective, files, probe_settings, analysis, extend=earlier, **common)
        else:
            if earlier is not None and not isinstance(earlier, MultifractalResult):
                raise ValueError("--extend must be the result of a single model without --checkpoint, got a trajectory")
            result = multifractal(objective, probe_settings, analysis, extend=earlier, name=model, **common)
        interrupts.hold()
    return Outcome({"result": result}, _unmet(result))


def _unmet(result: Result) -> str:
    target, reason = result.meta["target"], result.meta["stop_reason"]
    return "" if target is None or reason == "target met" else f"the target {target:g} was not reached ({reason})"


def _settings(options: dict[str, Any]) -> tuple[ProbeSettings, AnalysisSettings]:
    """Settings from the preset (or the defaults), with the options that were given on top."""
    name = options["preset_name"]
    probe_settings, analysis = preset(name) if name else (ProbeSettings(), AnalysisSettings())
    return _changed(probe_settings, options), _changed(analysis, options)


def _changed(settings: Any, options: dict[str, Any]) -> Any:
    fields = {name: options[name] for name in settings.__dataclass_fields__ if options.get(name) is not None}
    return type(settings)(**{**{name: getattr(settings, name) for name in settings.__dataclass_fields__}, **fields})
