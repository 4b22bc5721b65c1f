"""``fastscape spectrum``: eigenvalues, trace, density and stability."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fastscape as fs
from fastscape._checks import counted
from fastscape._interrupts import Interrupts
from fastscape._keeping import patience
from fastscape.cli.budgets import run_budget
from fastscape.cli.folder import check_out, force_option, is_begun
from fastscape.cli.inputs import (
    build_objective,
    checkpoint_files,
    checkpoint_option,
    distributed_option,
    gib,
    method_of,
    method_option,
    objective_options,
    rank_of,
    resume_option,
)
from fastscape.cli.output import Outcome, live_progress, run

if TYPE_CHECKING:
    from fastscape.cli.live import LiveProgress
    from fastscape.runs.budget import Budget
    from fastscape.runs.optimizers import OptimizerState

    Result = fs.SpectrumResult | fs.SpectrumTrajectory

BLOCK = 4  # of fastscape.probes.spectrum.probe
OPTIMIZER = ("optimizer_file", "learning_rate", "momentum", "nesterov", "weight_decay")  # what optimizer_options() gives


def optimizer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that name the optimizer, shared by ``spectrum``, ``multifractal --spectrum`` and ``run``."""
    options = (
        click.option(
            "--optimizer",
            "optimizer_file",
            type=click.Path(path_type=Path),
            help="State of the optimizer (torch file); default: STEM.optimizer.pt beside a checkpoint.",
        ),
        click.option("--learning-rate", type=float, help="SGD learning rate (instead of --optimizer)."),
        click.option("--momentum", type=float, help="SGD momentum, with --learning-rate."),
        click.option("--nesterov", is_flag=True, help="Nesterov momentum, with --momentum."),
        click.option("--weight-decay", type=float, help="SGD weight decay, with --learning-rate."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("spectrum")
@click.argument("model")
@objective_options
@checkpoint_option("Weights; repeatable, or a directory of them.")
@click.option(
    "--k",
    type=int,
    default=5,
    show_default=True,
    help="Eigenvalues of the upper end; of the lower end, the first and those that converged as well.",
)
@click.option("--operator", type=click.Choice(["hessian", "ggn"]), default="hessian", show_default=True)
@click.option("--budget", help="Time for everything, such as 60s or 5m; default: until the targets are met.")
@click.option("--memory", type=gib, help="GiB that products and vectors may take.")
@click.option("--target-trace", type=float, help="Stop when the trace's 95 % interval is this narrow: half-width over value.")
@click.option("--tolerance", type=float, help="Tolerance of the eigenvalues: residual over the largest.")
@click.option("--nodes", type=int, default=80, show_default=True, help="Nodes of the quadrature behind the density.")
@click.option("--block", type=int, default=BLOCK, show_default=True, help="Vectors per product.")
@optimizer_options
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random probes.")
@method_option("How to multiply, such as graph or forward; default: the fastest, measured.")
@resume_option
@distributed_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for spectrum.html, spectrum.npz and spectrum.json.",
)
@force_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of the table.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def spectrum_command(model: str, **options: Any) -> None:
    """Spectrum of the Hessian (or GGN) of MODEL's loss, or of its checkpoints with the same probes.

    Both ends with residuals, trace, tr(H^2), effective rank, traces by parameter, density, and, with an optimizer, how near
    the edge of stability is. MODEL and data are named as for multifractal.

    Exit codes: 0 done, 2 bad input, 3 a target was not reached in the budget, 4 the model cannot be probed, 130
    interrupted (the partial result is saved).

    torchrun --nproc-per-node 8 -m fastscape spectrum MODEL ... shares the batches of every product among 8 processes, of which
    the first prints and writes.
    """
    options["process"] = process = rank_of(options.pop("distributed"))
    run(lambda interrupts: _spectrum(model, options, interrupts), options["out"], as_json=options["as_json"], rank=process)


def _spectrum(model: str, options: dict[str, Any], interrupts: Interrupts) -> Outcome:
    files = checkpoint_files(options["checkpoints"])
    first = not options["process"]  # of several processes, which decides, prints and writes
    text, page = (options["budget"], options["out"] is not None) if first else (None, False)
    budget = run_budget(text, page=page, checkpoints=len(files))
    if first:
        check_out(options["out"], ["spectrum"], force=options["force"], continues=lambda: is_begun(options["resume"]))
    objective = build_objective(model, options)
    with live_progress(quiet=options["quiet"] or not first) as live, patience:
        result = measure(objective, files, model, budget, options, live)
        interrupts.hold()
    return Outcome({"spectrum": result}, unmet(result, options))


def measure(
    objective: fs.Objective, files: Sequence[Path], name: str, budget: Budget, options: dict[str, Any], live: LiveProgress
) -> Result:
    """The spectrum of the model itself, or of checkpoint files, under the options of the command."""
    settings: dict[str, Any] = {
        key: options[key] for key in ("k", "operator", "nodes", "block", "memory", "seed") if options.get(key) is not None
    }
    settings |= {"targets": options.get("targets") or targets(options) or None, "optimizer": optimizer(objective, options)}
    settings |= {"method": method_of(options), "resume": options.get("resume")}
    if options.get("process") is not None:
        from fastscape.runs.ranks import come_to

        come_to("the spectrum")
        settings["distributed"] = True
    if files:
        return fs.spectra(objective, files, budget=budget, progress=live.show, **settings)
    return fs.spectrum(objective, budget=budget, name=name, progress=live.show, **settings)


def targets(options: dict[str, Any]) -> dict[str, float]:
    """Targets that were asked for."""
    asked = {"trace": options.get("target_trace"), "eigenvalues": options.get("tolerance")}
    return {name: value for name, value in asked.items() if value is not None}


def optimizer(objective: fs.Objective, options: dict[str, Any]) -> OptimizerState | None:
    """The optimizer that was named: a file's, or SGD of the options.

    Raises:
        ValueError: options that exclude or need each other, or a file without an optimizer's state.
    """
    import torch

    from fastscape.runs.checkpoints import read_optimizer
    from fastscape.runs.optimizers import OptimizerState

    file, rate = options["optimizer_file"], options["learning_rate"]
    if rate is None:
        for name in ("momentum", "nesterov", "weight_decay"):
            if options[name]:
                raise ValueError(f"--{name.replace('_', '-')} requires --learning-rate")
        return read_optimizer(file) if file is not None else None
    if file is not None:
        raise ValueError("--optimizer and --learning-rate are both given; the file holds the learning rate")
    sgd = torch.optim.SGD(
        objective.model.parameters(),
        lr=rate,
        momentum=options["momentum"] or 0.0,
        nesterov=options["nesterov"],
        weight_decay=options["weight_decay"] or 0.0,
    )
    return OptimizerState.of(sgd, objective.model)


def optimizer_beside(objective: fs.Objective, files: Sequence[Path], options: dict[str, Any]) -> OptimizerState | None:
    """The optimizer that options name, or else the one whose state is beside the last checkpoint."""
    from fastscape.runs.checkpoints import checkpoints

    named = optimizer(objective, options)
    return checkpoints(files)[-1].optimizer() if named is None and files else named


def unmet(result: Result, options: dict[str, Any]) -> str:
    """Targets that were asked for and not reached, with the reason, in words; empty where all were."""
    asked, missed = targets(options), []
    for point in result.points if isinstance(result, fs.SpectrumTrajectory) else (result,):
        if "trace" in asked:
            missed += _unmet_trace(point, asked["trace"])
        if "eigenvalues" in asked and not (len(point.converged) and point.converged.all()):
            count = int(point.converged.sum())
            missed.append(f"{count} of {len(point.converged)} eigenvalues of {point.name} converged to {asked['eigenvalues']:g}")
    return f"a target was not reached ({result.meta['stop_reason']}): {'; '.join(missed)}" if missed else ""


def _unmet_trace(point: fs.SpectrumResult, asked: float) -> list[str]:
    value, (low, high) = point.trace.value, point.trace.interval
    half = (high - low) / 2
    if half <= asked * abs(value):
        return []
    if point.meta.get("nan_products"):
        return [f"the trace of {point.name} is not known: {counted(point.meta['nan_products'], 'product')} of H held NaN or inf"]
    if not math.isfinite(half):
        return [f"the trace of {point.name} has no interval after {counted(point.products, 'product')}"]
    known = f"to ± {half / abs(value):.1%}, not {asked:.1%}" if value else f"as 0 ± {half:.3g}"
    return [f"the trace of {point.name} is known {known}"]
