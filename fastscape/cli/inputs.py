"""Arguments and options that commands share, and the objects they name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fastscape.objective import Objective
from fastscape.runs.checkpoints import is_checkpoint
from fastscape.zoo import specs

CRITERIA: dict[str, Callable[..., Any]] = {
    "cross_entropy": F.cross_entropy,
    "mse": F.mse_loss,
    "bce": F.binary_cross_entropy_with_logits,
}


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
        click.option("--params", multiple=True, help="Glob on the names of parameters to move; repeatable."),
        click.option("--batch-norm", type=click.Choice(["running", "batch"]), default="running", show_default=True),
        click.option("--device", help="Where to evaluate; default the CPU."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def radii(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
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


def gibibytes(_context: click.Context, _option: click.Parameter, gib: float | None) -> int | None:
    """Bytes of a number of GiB."""
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


def _orders(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[float, ...] | str | None:
    try:
        return text if text in (None, "core") else tuple(float(value) for value in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected a list such as -1,0.5,2, or core, got {text!r}") from error


def analysis_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that need no new evaluation, shared by ``probe`` and ``report``."""
    for option in (
        click.option("--q", callback=_orders, help="Orders of the moments, comma-separated, or core: -1 to 2."),
        click.option(
            "--window", "windows", multiple=True, callback=_windows, help="Scales START:STOP to analyse (half-open); repeatable."
        ),
        click.option("--variant", type=click.Choice(["even", "odd"]), help="Analyse even or odd responses."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of the table."),
    ):
        command = option(command)
    return command


def build_objective(model: str, options: dict[str, Any]) -> Objective:
    """The objective that MODEL and the options of :func:`objective_options` name.

    Raises:
        ValueError: names, data or functions that are not there or of the wrong kind.
    """
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


def checkpoint_files(given: Sequence[Path]) -> list[Path]:
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
