"""``fastscape multifractal``: the multifractal probe; ``fastscape probe``, its former name."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fastscape as fs
from fastscape._interrupts import Interrupts
from fastscape._keeping import patience
from fastscape.cli.budgets import run_budget
from fastscape.cli.folder import check_out, force_option, is_begun
from fastscape.cli.inputs import (
    analysis_options,
    build_objective,
    checkpoint_files,
    checkpoint_option,
    distributed_option,
    gib,
    method_of,
    method_option,
    objective_options,
    radii,
    rank_of,
    resume_option,
)
from fastscape.cli.output import Outcome, live_progress, rescue, run
from fastscape.cli.spectrum import OPTIMIZER, measure, optimizer_options

if TYPE_CHECKING:
    from fastscape.cli.live import LiveProgress
    from fastscape.reports.document import Document
    from fastscape.runs.budget import Budget

SHARE = 0.4  # of the budget for spectra; what they leave is for directions
COMPANION = {"targets": {"eigenvalues": 1e-2, "trace": None}, "nodes": 50}  # a trace near zero would take it all


@click.command("multifractal")
@click.argument("model")
@objective_options
@checkpoint_option("Weights; repeatable, or a directory of them.")
@click.option("--budget", help="Time for everything, such as 60s or 5m; directions are added until it ends.")
@click.option("--target", type=float, help="Stop when the 95 % interval of M_tau is this narrow (half-width).")
@click.option("--count", type=int, help="Directions per bank.")
@click.option("--banks", type=int, help="Banks of directions with their own seeds.")
@click.option("--seed", type=int, help="Seed of the random directions.")
@click.option("--radii", type=radii, help="LOW:HIGH:COUNT log-spaced, or a comma-separated list.")
@click.option("--distribution", help="gaussian or rademacher.")
@click.option("--rank", type=int, help="Rank of the directions of every matrix; default: noise in every element.")
@click.option("--normalize", help="tensor, filter, module, global, element or none.")
@click.option("--scale", help="relative (radii are relative to ||w||) or unit (absolute).")
@click.option("--one-d", help="same or zero: whether biases and norm parameters move.")
@click.option("--precision", help="difference, difference-bf16, float64 or float32; default: measured.")
@click.option("--bank-batches", help="all or rotate: data of each bank.")
@click.option("--preset", "preset_name", help="torok2026: the settings of a published protocol.")
@method_option("How to evaluate; default: the fastest, measured.", click.Choice(["loop", "vmap", "stream", "graph", "dispatch"]))
@click.option("--memory", type=gib, help="GiB that batched evaluation may take.")
@click.option(
    "--spectrum",
    "with_spectrum",
    is_flag=True,
    help=f"Also eigenvalues (to 1 %), trace, effective rank and stability: first, in at most {SHARE:.0%} of the budget.",
)
@optimizer_options
@click.option("--extend", type=click.Path(path_type=Path), help="An earlier result.npz of the same run to continue.")
@distributed_option
@click.option("--workers", type=click.IntRange(1), help="Processes that evaluate the directions, each with a model of its own.")
@resume_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for report.html, result.npz and result.json (and spectrum.npz, spectrum.json).",
)
@force_option
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@analysis_options
def multifractal_command(model: str, **options: Any) -> None:
    """Multifractal probe of MODEL, or of its checkpoints along the same directions.

    MODEL is zoo:NAME, torchvision:NAME, package.module:factory or file.py:factory, with arguments as ?name=value&...; a
    factory returns a torch module, or a whole fastscape.Objective.

    Exit codes: 0 done, 2 bad input, 3 the target was not reached in the budget, 4 the model cannot be probed, 130
    interrupted (the partial result is saved).

    Ctrl-C ends the run with what is known; a second one skips the analysis and the page if they are not finished.

    torchrun --nproc-per-node 8 -m fastscape multifractal MODEL ... shares the directions among 8 processes, of which the first
    prints and writes; the numbers are the same. So they are with --workers 8, processes that this one starts on its machine.
    """
    options["process"] = process = rank_of(options.pop("distributed"))
    if options["workers"] is not None and process is not None:
        raise click.UsageError("--workers must be left out under torchrun, whose processes share the directions already")
    run(lambda interrupts: _outcome(model, options, interrupts), options["out"], as_json=options["as_json"], rank=process)


class _FormerName(click.Command):
    """A command by the name that it had before; it says so once on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command behind the notice."""
        click.echo("DeprecationWarning: fastscape probe is now fastscape multifractal; the old name will be removed", err=True)
        return super().invoke(ctx)


probe_command = _FormerName(
    "probe",
    params=multifractal_command.params,
    callback=multifractal_command.callback,
    help=f"Former name of multifractal.\n\n{multifractal_command.help}",
    hidden=True,
)


def _outcome(model: str, options: dict[str, Any], interrupts: Interrupts) -> Outcome:
    files = checkpoint_files(options["checkpoints"])
    with_spectrum = options["with_spectrum"]
    if not with_spectrum and any(options[name] for name in ("optimizer_file", "learning_rate", "momentum", "nesterov")):
        raise ValueError("--optimizer, --learning-rate, --momentum and --nesterov require --spectrum")
    if options["resume"] is not None and options["extend"] is not None:
        raise ValueError("--extend must be left out with --resume, whose folder has the directions of the run")
    first = not options["process"]  # of several processes, which decides, prints and writes
    text, page = (options["budget"], options["out"] is not None) if first else (None, False)
    budget = run_budget(text, page=page, checkpoints=len(files), spectrum=with_spectrum)
    probe_settings, analysis = _settings(options)
    out, stems = options["out"], ["result", *(["spectrum"] if with_spectrum else [])]
    if first:
        check_out(out, stems, force=options["force"], continues=lambda: _goes_on(out, options))
    objective = build_objective(model, options)
    if first and options["resume"] is not None:
        from fastscape.runs.journal import Journal

        Journal(options["resume"])  # a folder of something else is refused before the spectrum is made
    earlier = fs.load(options["extend"]) if first and options["extend"] is not None else None
    results: dict[str, Document] = {}
    with live_progress(quiet=options["quiet"] or not first) as live, patience:
        if with_spectrum:
            found = _spectrum(objective, files, model, budget, options, live)
            if found is not None:
                results["spectrum"] = found
        if not Outcome(results).interrupted:
            try:
                with _workers(objective, model, options) as (given, pool):
                    result = _multifractal(given, files, model, budget, (probe_settings, analysis), earlier, options, live, pool)
            except BaseException:
                if first:
                    rescue(*results.values())
                raise
            results = {"result": result, **results}
        interrupts.hold()
    return Outcome(results, unmet(results.get("result")))


def _spectrum(
    objective: fs.Objective, files: Sequence[Path], model: str, budget: Budget, options: dict[str, Any], live: LiveProgress
) -> fs.SpectrumResult | fs.SpectrumTrajectory | None:
    """Spectra in their share of the budget; ``None``, and a message, for a loss without second derivatives."""
    from fastscape.runs.budget import Budget, BudgetError

    first = not options["process"]
    before = budget.reserve + budget.elapsed
    share = Budget(SHARE * budget.remaining if budget.limited else None)
    names = ("memory", "seed", "process", *OPTIMIZER)  # --method is that of the responses
    spectral = COMPANION | {name: options[name] for name in names}
    spectral["resume"] = None if options["resume"] is None else options["resume"] / "spectrum"  # a journal within that of the run
    try:
        return measure(objective, files, model, share, spectral, live)
    except fs.SpectrumError as error:
        words, found = f"the spectrum ended early: {error}", error.partial
    except BudgetError as error:
        words, found = f"no spectrum: {budget.refusal(error, 'the spectrum', SHARE, before)}", None
    except (fs.AsymmetricProductError, fs.NoPathError) as error:
        words, found = f"no spectrum: {error}", None
    if first:
        click.echo(words, err=True)
    return found


@contextmanager
def _workers(
    objective: fs.Objective, model: str, options: dict[str, Any]
) -> Iterator[tuple[fs.Objective | fs.Source, ProcessPoolExecutor | None]]:
    """The objective, or how workers make it, and the workers: new processes, which Ctrl-C leaves to this one."""
    if options["workers"] is None:
        yield objective, None
        return
    named = {name: options[name] for name in ("batch_norm", "device") if options[name] is not None}
    named |= {"loss": options["loss"]} if options["loss"] else {"criterion": options["criterion"]}
    named |= {"output": options["model_output"]} if options["model_output"] else {}
    named |= {"params": options["params"]} if options["params"] else {}
    source = fs.Source(model, options["data"], **(named if options["data"] is not None else {}))
    ignored = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(
        options["workers"], mp_context=get_context("spawn"), initializer=signal.signal, initargs=ignored
    ) as pool:
        yield source, pool


def _multifractal(
    objective: fs.Objective | fs.Source,
    files: Sequence[Path],
    model: str,
    budget: Budget,
    settings: tuple[fs.ProbeSettings, fs.AnalysisSettings],
    earlier: Document | None,
    options: dict[str, Any],
    live: LiveProgress,
    pool: ProcessPoolExecutor | None,
) -> fs.MultifractalResult | fs.TrajectoryResult:
    common: dict[str, Any] = {"budget": budget, "progress": live.show, "method": method_of(options)}
    common |= {key: options[key] for key in ("target", "memory", "resume")} | {"distributed": options["process"] is not None}
    common["executor"] = pool
    if files:
        if earlier is not None and not isinstance(earlier, fs.TrajectoryResult):
            raise ValueError("--extend must be a trajectory result for --checkpoint, got one of a single model")
        return fs.trajectory(objective, files, *settings, extend=earlier, **common)
    if earlier is not None and not isinstance(earlier, fs.MultifractalResult):
        raise ValueError("--extend must be the result of a single model without --checkpoint, got another kind")
    return fs.multifractal(objective, *settings, extend=earlier, name=model, **common)


def _goes_on(out: Path, options: dict[str, Any]) -> bool:
    """Whether an older result in a directory is of the run that goes on: that of ``--extend``, or of a journal begun before."""
    older, other = out / "result.npz", options["extend"]
    journal = options["resume"]
    if is_begun(journal) or (journal is not None and is_begun(journal / "spectrum")):
        return True
    return other is not None and other.is_file() and older.is_file() and older.samefile(other)


def unmet(result: Document | None) -> str:
    """The target that was asked for and not reached, and why, in words; empty where it was, or there was none."""
    if result is None or result.meta["target"] is None or result.meta["stop_reason"] == "target met":
        return ""
    return f"the target {result.meta['target']:g} was not reached ({result.meta['stop_reason']})"


def _settings(options: dict[str, Any]) -> tuple[fs.ProbeSettings, fs.AnalysisSettings]:
    """Settings from the preset (or the defaults), with the options that were given on top."""
    name = options["preset_name"]
    probe_settings, analysis = fs.preset(name) if name else (fs.ProbeSettings(), fs.AnalysisSettings())
    return _changed(probe_settings, options), _changed(analysis, options)


def _changed(settings: Any, options: dict[str, Any]) -> Any:
    fields = {name: options[name] for name in settings.__dataclass_fields__ if options.get(name) is not None}
    return type(settings)(**{**{name: getattr(settings, name) for name in settings.__dataclass_fields__}, **fields})
