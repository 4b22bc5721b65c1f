"""The command line: results on stdout, progress on stderr."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from fastscape._interrupts import EXIT_INTERRUPTED, Interrupts
from fastscape._replica import MODEL_NOTE
from fastscape._version import __version__
from fastscape.estimators import AnalysisSettings
from fastscape.evaluation import MissingRuleError, NondeterministicLossError, PrecisionWarning, UntraceableError, operators
from fastscape.objective import Objective
from fastscape.ops import status
from fastscape.probes import ProbeError, multifractal, trajectory
from fastscape.probes.session import Progress
from fastscape.reports import MultifractalResult, TrajectoryResult, load, tables
from fastscape.reports.html import write_html
from fastscape.reports.live import LiveProgress
from fastscape.runs import ProbeSettings, preset
from fastscape.runs.budget import Budget
from fastscape.runs.checkpoints import is_checkpoint
from fastscape.zoo import specs

Result = MultifractalResult | TrajectoryResult
EXIT_TARGET, EXIT_MODEL = 3, 4
CRITERIA: dict[str, Callable[..., Any]] = {
    "cross_entropy": F.cross_entropy,
    "mse": F.mse_loss,
    "bce": F.binary_cross_entropy_with_logits,
}
_REPORT_START, _REPORT_POINT = 2.5, 1.1  # seconds to load matplotlib, and to draw and save a checkpoint
_START_UP = min(time.process_time(), 10.0)  # seconds to import torch, part of a budget; capped where a host imports this late


@click.group()
@click.version_option(__version__, prog_name="fastscape")
def main() -> None:
    """Measure the geometry of a neural network's loss."""


def _objective_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that make an objective of a model, in the order of the help page."""
    options = (
        click.option("--data", help="zoo:digits, zoo:pydoc-text, module:factory, file.py:factory: an iterable of batches."),
        click.option(
            "--criterion",
            default="cross_entropy",
            show_default=True,
            help=f"{', '.join(CRITERIA)}, or module:function(outputs, targets).",
        ),
        click.option("--loss", help="module:function(model, batch) -> mean, for batches that are not (inputs, targets)."),
        click.option("--params", multiple=True, help="Glob on the names of parameters to move; repeatable."),
        click.option("--batch-norm", type=click.Choice(["running", "batch"]), default="running", show_default=True),
        click.option("--device", help="Where to evaluate; default the CPU."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@main.command("status")
@click.option("--model", help="Tell how difference propagation handles the operations of this MODEL (see probe) on --data.")
@_objective_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def show_status(model: str | None, as_json: bool, **options: Any) -> None:
    """Tell which kernels answer on this machine, and why not others; with --model, how its operations are handled."""
    if model is None and options["data"] is not None:
        raise click.UsageError("--data is for the model of --model, which is missing")
    found = status() if model is None else _exit_codes(lambda: operators(_objective(model, options)))
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))


def _radii(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """``LOW:HIGH:COUNT`` log-spaced, or a comma-separated list."""
    if text is None:
        return None
    try:
        if ":" in text:
            low, high, count = text.split(":")
            if not (float(low) > 0 and float(high) > 0):
                raise click.BadParameter(f"radii must be positive, got {text!r}")
            return tuple(np.geomspace(float(low), float(high), int(count)).tolist())
        return tuple(float(value) for value in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected LOW:HIGH:COUNT or a list such as 1e-3,1e-2, got {text!r}") from error


def _bytes(_context: click.Context, _option: click.Parameter, gib: float | None) -> int | None:
    if gib is None:
        return None
    if not (math.isfinite(gib) and gib > 0):
        raise click.BadParameter(f"memory must be a positive number of GiB, got {gib!r}")
    return int(gib * 2**30)


def _windows(_context: click.Context, _option: click.Parameter, pairs: Sequence[str]) -> tuple[tuple[int, int], ...] | None:
    try:
        return tuple((int(pair.split(":")[0]), int(pair.split(":")[1])) for pair in pairs) or None
    except (ValueError, IndexError) as error:
        raise click.BadParameter(f"expected START:STOP scale indices, got {', '.join(pairs)!r}") from error


def _orders(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(value) for value in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected a list such as -1,0.5,2, got {text!r}") from error


def _analysis_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that need no new evaluation, shared by ``probe`` and ``report``."""
    for option in (
        click.option("--q", callback=_orders, help="Orders of the moments, comma-separated."),
        click.option(
            "--window", "windows", multiple=True, callback=_windows, help="Scales START:STOP to analyse (half-open); repeatable."
        ),
        click.option("--variant", type=click.Choice(["even", "odd"]), help="Analyse even or odd responses."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of the table."),
    ):
        command = option(command)
    return command


@main.command()
@click.argument("model")
@_objective_options
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
@click.option("--radii", callback=_radii, help="LOW:HIGH:COUNT log-spaced, or a comma-separated list.")
@click.option("--distribution", help="gaussian or rademacher.")
@click.option("--normalize", help="tensor, filter, module, global, element or none.")
@click.option("--scale", help="relative (radii are relative to ||w||) or unit (absolute).")
@click.option("--one-d", help="same or zero: whether biases and norm parameters move.")
@click.option("--precision", help="difference, difference-bf16, float64 or float32; default: measured.")
@click.option("--bank-batches", help="all or rotate: data of each bank.")
@click.option("--preset", "preset_name", help="torok2026: the settings of a published protocol.")
@click.option("--path", type=click.Choice(["loop", "vmap", "graph", "dispatch"]), help="Evaluation path; default: measured.")
@click.option("--memory", type=float, callback=_bytes, help="GiB that batched evaluation may take.")
@click.option("--extend", type=click.Path(path_type=Path), help="An earlier result.npz of the same run to continue.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for report.html, result.npz and result.json.",
)
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@_analysis_options
def probe(model: str, **options: Any) -> None:
    """Multifractal probe of MODEL, or of its checkpoints along the same directions.

    MODEL is zoo:NAME, torchvision:NAME, package.module:factory or file.py:factory, with arguments as ?name=value&...; a
    factory returns a torch module, or a whole fastscape.Objective.

    Exit codes: 0 done, 2 bad input, 3 the target was not reached in the budget, 4 the model cannot be probed, 130
    interrupted (the partial result is saved).

    Ctrl-C ends the run with what is known; a second one leaves out the analysis and the page that are not done by then.
    """
    with Interrupts() as interrupts:
        result = _exit_codes(lambda: _probe(model, options, interrupts))
        _exit_codes(lambda: _finish(result, options["out"], interrupts, as_json=options["as_json"]))


def _probe(model: str, options: dict[str, Any], interrupts: Interrupts) -> Result:
    files = _files(options["checkpoints"])
    writing = _REPORT_START + _REPORT_POINT * max(1, len(files)) if options["out"] is not None else 0.0
    budget = Budget(options["budget"], spent=_START_UP, reserve=writing)
    probe_settings, analysis = _settings(options)
    if options["out"] is not None:
        _check_writable(options["out"])
        for extra in ("matplotlib", "jinja2"):
            if importlib.util.find_spec(extra) is None:
                raise ValueError(f"--out needs {extra} for report.html: pip install 'fastscape-probes[report]'")
    objective = _objective(model, options)
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
        return result


def _settings(options: dict[str, Any]) -> tuple[ProbeSettings, AnalysisSettings]:
    """Settings from the preset (or the defaults), with the options that were given on top."""
    name = options["preset_name"]
    probe_settings, analysis = preset(name) if name else (ProbeSettings(), AnalysisSettings())
    return _changed(probe_settings, options), _changed(analysis, options)


def _changed(settings: Any, options: dict[str, Any]) -> Any:
    fields = {name: options[name] for name in settings.__dataclass_fields__ if options.get(name) is not None}
    return type(settings)(**{**{name: getattr(settings, name) for name in settings.__dataclass_fields__}, **fields})


def _objective(model: str, options: dict[str, Any]) -> Objective:
    built = specs.build(model, "MODEL", specs.MODELS)
    if isinstance(built, Objective):
        return built
    if not isinstance(built, nn.Module):
        raise ValueError(f"MODEL must build a torch module or an Objective, got {type(built).__name__} from {model!r}")
    if options["data"] is None:
        raise ValueError("--data is missing: name the batches to evaluate on, such as --data zoo:digits")
    arguments: dict[str, Any] = (
        {"loss": specs.find(options["loss"], "--loss", {})}
        if options["loss"]
        else {"criterion": _criterion(options["criterion"])}
    )
    data = specs.build(options["data"], "--data", specs.DATA)
    try:
        return Objective(
            built,
            data,
            params=options["params"] or None,
            batch_norm=options["batch_norm"],
            device=options["device"] or torch.device("cpu"),
            **arguments,
        )
    except TypeError as error:  # a wrong kind of --data or --criterion is bad input
        raise ValueError(str(error)) from error


def _criterion(name: str) -> Callable[..., Any]:
    if name in CRITERIA:
        return CRITERIA[name]
    if ":" not in name:
        raise ValueError(f"--criterion must be one of {', '.join(CRITERIA)} or module:function, got {name!r}")
    return specs.find(name, "--criterion", {})


def _files(given: Sequence[Path]) -> list[Path]:
    """Checkpoint files; a directory stands for the checkpoints in it, in natural order."""
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            found = [file for file in path.iterdir() if is_checkpoint(file)]
            if not found:
                raise ValueError(f"--checkpoint must name a file or a directory of checkpoints, got {str(path)!r} without any")
            files += sorted(found, key=_natural)
        else:
            files.append(path)
    return files


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that orders ``step2`` before ``step10``."""
    parts = "".join(character if character.isdigit() else f" {character} " for character in path.stem).split()
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


@main.command()
@click.argument("result", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the report page here.")
@_analysis_options
def report(result: Path, out: Path | None, **options: Any) -> None:
    """Show a saved RESULT (npz) again, analysed anew where options ask for it; the model is not needed."""

    def again() -> Result:
        loaded = load(result)
        changes = {name: options[name] for name in ("q", "windows", "variant") if options[name] is not None}
        return loaded.reanalyse(**changes) if changes or not loaded.analysed else loaded

    shown = _exit_codes(again)
    if out is not None:
        _check_and_write(shown, out)
    _print(shown, as_json=options["as_json"])


def _check_and_write(result: Result, page: Path) -> None:
    def write() -> Path:
        _check_writable(page.parent)
        return write_html(result, page)

    _exit_codes(write)


# ---------------------------------------------------------------------- results, files, exit codes


def _finish(result: Result, out: Path | None, interrupts: Interrupts, *, as_json: bool) -> None:
    interrupted = result.meta["stop_reason"] == "interrupted"
    written = 0
    if out is not None:  # files first: stdout may be closed
        written = _write(result, out) or _write_page(result, out, interrupts)
    if out is None and interrupted:
        _rescue(result)
    try:
        _print(result, as_json=as_json)
    except OSError:
        if out is None and not interrupted:
            _rescue(result)
        raise
    if interrupted or written:
        sys.exit(EXIT_INTERRUPTED if interrupted else written)
    if result.meta["target"] is not None and result.meta["stop_reason"] != "target met":
        click.echo(f"the target {result.meta['target']:g} was not reached ({result.meta['stop_reason']})", err=True)
        sys.exit(EXIT_TARGET)


def _print(result: Result, *, as_json: bool) -> None:
    if as_json:
        click.echo(result.to_json())
        return
    table = tables.trajectory_table(result) if isinstance(result, TrajectoryResult) else tables.multifractal_table(result)
    console = Console()
    if not console.is_terminal:
        console.width = 150  # a pipe or a file has no width of its own
    console.print(table)


def _write(result: Result, out: Path) -> int:
    """Write the data; they go to the temporary directory where the disk refuses them. Returns the exit code."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        result.save(out / "result.npz")
        (out / "result.json").write_text(result.to_json() + "\n", encoding="utf-8")
    except OSError as error:
        click.echo(f"cannot write to {out}: {error.strerror or error}", err=True)
        _rescue(result)
        return 2
    click.echo(f"data: {out / 'result.npz'}, {out / 'result.json'}", err=True)
    return 0


def _write_page(result: Result, out: Path, interrupts: Interrupts) -> int:
    """Draw the page, which takes seconds, once the data are safe. Returns the exit code."""
    page = out / "report.html"
    try:
        with interrupts.second_stops():
            write_html(result, page)
    except KeyboardInterrupt:
        click.echo(f"stopped before the page; fastscape report {out / 'result.npz'} --out {page} writes it", err=True)
        return EXIT_INTERRUPTED
    except OSError as error:
        click.echo(f"cannot write to {out}: {error.strerror or error}", err=True)
        return 2
    click.echo(f"report: {page}", err=True)
    return 0


def _rescue(result: Result) -> None:
    """Save a result that has no place of its own."""
    for folder in (Path(tempfile.gettempdir()), Path.cwd(), Path.home()):
        try:
            handle, name = tempfile.mkstemp(prefix="fastscape-", suffix=".npz", dir=folder)
            os.close(handle)
            click.echo(f"the result is saved in {result.save(name)}", err=True)
        except OSError:
            continue
        return
    click.echo("the result could not be saved anywhere; it follows as JSON", err=True)
    click.echo(result.to_json())


def _check_writable(folder: Path) -> None:
    """Find out before the work whether ``folder`` can be made and written to; leave nothing behind."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"--out must be a writable directory, got {str(folder)!r} (in {existing}: {error.strerror or error})"
        ) from error


def _exit_codes(work: Callable[[], Any]) -> Any:
    """Run ``work``, turning exceptions into messages and exit codes."""
    try:
        with _readable_warnings():
            return work()
    except ProbeError as error:
        _rescue(error.partial)
        _fail(str(error), EXIT_MODEL)
    except (MissingRuleError, NondeterministicLossError, UntraceableError) as error:
        _fail(str(error), EXIT_MODEL)
    except BrokenPipeError:
        sys.stdout = None  # or Python flushes the closed pipe again at exit
        sys.exit(1)
    except KeyboardInterrupt:
        _fail("interrupted before the first direction; nothing to save", EXIT_INTERRUPTED)
    except Exception as error:
        of_model = any(MODEL_NOTE in note for note in getattr(error, "__notes__", ()))
        if isinstance(error, (ValueError, OSError, ImportError)) and not of_model:
            _fail(str(error), 2)
        _fail(f"the model cannot be probed: {type(error).__name__}: {error}", EXIT_MODEL)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


@contextmanager
def _readable_warnings() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PrecisionWarning)
        yield
    for warning in caught:
        click.echo(f"Warning: {warning.message}", err=True)
