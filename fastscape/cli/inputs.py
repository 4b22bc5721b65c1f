"""Arguments and options that commands share, and the objects they name."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import fastscape as fs
from fastscape._checks import first_line

CRITERIA = ("cross_entropy", "mse", "bce")  # of fastscape.zoo.specs, without loading torch
BATCH_NORM = ("recalibrate", "running", "batch")  # of paths between weights
PRECISIONS = ("float64", "float32")
_MOST_RADII = 10_000


def checkpoint_option(words: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option for weights in files or directories, and what a command does with them."""
    return click.option("--checkpoint", "checkpoints", multiple=True, type=click.Path(path_type=Path), help=words)


def method_option(words: str, kind: Any = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option for how to evaluate or multiply, and hidden the name that it had before; :func:`method_of` reads both."""

    def notice(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
        if value is not None:
            click.echo("DeprecationWarning: --path is now --method; the old name will be removed", err=True)
        return value

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        former = click.option("--path", "former_method", type=kind, hidden=True, callback=notice)
        return click.option("--method", type=kind, help=words)(former(command))

    return decorate


def method_of(options: Mapping[str, Any]) -> str | None:
    """The way to evaluate or multiply that was asked for, by either name of its option.

    Raises:
        ValueError: both were given.
    """
    method, former = options.get("method"), options.get("former_method")
    if method is not None and former is not None:
        raise ValueError(f"--method {method} and --path {former} are both given; --path is its former name")
    return former if method is None else method


def distributed_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option for the processes that a launcher started."""
    words = "auto: processes that torchrun started share the work, and rank 0 prints; never: each of them works alone."
    return click.option("--distributed", type=click.Choice(["auto", "never"]), default="auto", help=words)(command)


def resume_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option for the folder of a journal."""
    words = "Folder for a journal of all evaluations; the same command goes on with what it holds, whatever ended it."
    return click.option("--resume", type=click.Path(path_type=Path, file_okay=False), help=words)(command)


def rank_of(distributed: str) -> int | None:
    """Rank of this process among those that share the work; ``None`` where it is alone."""
    if distributed == "never" or not os.environ.get("WORLD_SIZE"):
        return None  # without loading torch
    from fastscape.runs.ranks import launched

    return launched()


def objective_options(command: Callable[..., Any]) -> Callable[..., Any]:
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
        click.option("--model-output", help="What the criterion takes of what the model returns, such as logits."),
        click.option("--params", multiple=True, help="Glob on the names of parameters to move; repeatable."),
        click.option(
            "--batch-norm",
            type=click.Choice(["running", "batch"]),
            help="Statistics of batch norm; default: running, but those of each batch, as in training, with an optimizer.",
        ),
        click.option("--device", help="Where to evaluate; default the CPU."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def radii(text: str) -> tuple[float, ...]:
    """``LOW:HIGH:COUNT`` log-spaced, or a comma-separated list."""
    try:
        if ":" in text:
            low, high, count = text.split(":")
            if not (float(low) > 0 and float(high) > 0):
                raise click.BadParameter(f"radii must be positive, got {text!r}")
            if not 0 < int(count) <= _MOST_RADII:
                raise click.BadParameter(f"COUNT of radii must be 1 to {_MOST_RADII}, got {text!r}")
            import numpy as np

            return tuple(np.geomspace(float(low), float(high), int(count)).tolist())
        return tuple(float(value) for value in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected LOW:HIGH:COUNT or a list such as 1e-3,1e-2, got {text!r}") from error


def gib(text: str) -> int:
    """Bytes of a number of GiB."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < 2**30:
        raise click.BadParameter(f"memory must be a positive number of GiB, got {text!r}")
    return int(number * 2**30)


def window(text: str) -> tuple[int, int]:
    """``START:STOP`` of scales."""
    try:
        start, stop = text.split(":")
        return int(start), int(stop)
    except ValueError as error:
        raise click.BadParameter(f"expected START:STOP scale indices, got {text!r}") from error


def orders(text: str) -> tuple[float, ...] | str:
    """A comma-separated list, or ``core``."""
    try:
        return text if text == "core" else tuple(float(value) for value in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected a list such as -1,0.5,2, or core, got {text!r}") from error


def analysis_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that need no new evaluation, shared by ``multifractal`` and ``report``."""
    for option in (
        click.option("--q", type=orders, help="Orders of the moments, comma-separated, or core: -1 to 2."),
        click.option(
            "--window",
            "windows",
            multiple=True,
            type=window,
            callback=lambda _context, _option, windows: windows or None,
            help="Scales START:STOP to analyse (half-open); repeatable.",
        ),
        click.option("--variant", type=click.Choice(["even", "odd"]), help="Analyse even or odd responses."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of the table."),
    ):
        command = option(command)
    return command


def build_objective(model: str, options: dict[str, Any], *, evaluated: bool = True) -> fs.Objective:
    """The objective that MODEL and the options of :func:`objective_options` name; ``evaluated`` once, as they must fit.

    Raises:
        ValueError: names, data or functions that are not there or of the wrong kind.
    """
    import torch

    from fastscape.zoo import specs

    built = specs.build(model, "MODEL", specs.MODELS)
    if isinstance(built, fs.Objective):
        return built
    if not isinstance(built, torch.nn.Module):
        raise ValueError(f"MODEL must build a torch module or an Objective, got {type(built).__name__} from {model!r}")
    if options["data"] is None:
        raise ValueError("--data is missing: name the batches to evaluate on, such as --data zoo:digits")
    return objective_on(model, built, options, "--data", options["data"], evaluated=evaluated)


def objective_on(
    model: str, module: Any, options: dict[str, Any], option: str, data: str, *, evaluated: bool = True
) -> fs.Objective:
    """The objective of a module on the batches that an option names, with the loss of :func:`objective_options`.

    Raises:
        ValueError: as :func:`build_objective`.
    """
    from fastscape.zoo import specs

    arguments = specs.loss_arguments(model, options["criterion"], options["loss"], options["model_output"], "--")
    batches = specs.build(data, option, specs.DATA)
    try:
        objective = fs.Objective(
            module,
            batches,
            params=options["params"] or None,
            batch_norm=options["batch_norm"],
            device=options["device"] or "cpu",
            **arguments,
        )
    except TypeError as error:  # a wrong kind of --data or --criterion is bad input
        raise ValueError(str(error)) from error
    if evaluated:
        _check_together(objective, arguments, option, data)
    return objective


def _check_together(objective: fs.Objective, arguments: Mapping[str, Any], option: str, data: str) -> None:
    """Evaluate the first batch once: model, loss and data that do not fit each other are bad input, whatever they raise.

    Raises:
        ValueError: what was raised, and what went in.
    """
    try:
        objective.on(0).loss()
    except Exception as error:
        if type(error).__module__.startswith("fastscape"):  # of the model alone, and told in its own words
            return
        given = next(f"--{name}" for name in arguments)
        words = "; ".join((first_line(error), *getattr(error, "__notes__", ())))
        found = f"{type(error).__name__} on {option} {data}: {words}"
        raise ValueError(f"MODEL, {given} and {option} must fit each other, got {found}") from error


def checkpoint_files(given: Sequence[Path]) -> list[Path]:
    """Checkpoints of files and folders, in natural order."""
    if not given:
        return []
    from fastscape.runs.checkpoint_layouts import expanded

    return [file for path in given for file in expanded(path, "--checkpoint")]


def centre(objective: fs.Objective, model: str, files: Sequence[Path]) -> tuple[fs.Objective, str, int | None]:
    """The objective at the last checkpoint, with its name and step; as it is without one."""
    if not files:
        return objective, model, None
    from fastscape.runs.checkpoints import checkpoints as read_checkpoints

    last = read_checkpoints(files)[-1]
    return last.at(objective), last.name, last.step
