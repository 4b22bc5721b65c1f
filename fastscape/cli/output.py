"""Results to stdout and files, exceptions to messages and exit codes."""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

import fastscape as fs
from fastscape._files import staged, write_text
from fastscape._interrupts import EXIT_INTERRUPTED, Interrupts
from fastscape.cli.budgets import start_up
from fastscape.cli.folder import page_of

if TYPE_CHECKING:
    from fastscape.cli.live import LiveProgress
    from fastscape.reports.document import Document

EXIT_TARGET, EXIT_MODEL = 3, 4


class BadInput(click.ClickException):
    """Arguments, files or data that cannot be."""

    exit_code = 2


class BadModel(click.ClickException):
    """A model that cannot be probed."""

    exit_code = EXIT_MODEL


class Interrupted(click.ClickException):
    """Ctrl-C where nothing could be kept."""

    exit_code = EXIT_INTERRUPTED


@dataclass(frozen=True)
class Outcome:
    """Results of a run, and whether its target was reached.

    Attributes:
        results: by the stem of their files; the first heads the table and the page, a spectrum may follow.
        unmet: the target that was not reached and why, in words; empty where all were.
    """

    results: dict[str, Document]
    unmet: str = ""

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the run."""
        return any(result.meta.get("stop_reason") == "interrupted" for result in self.results.values())

    @property
    def page(self) -> str:
        """Name of the page, which is that of the first result."""
        return page_of(next(iter(self.results)))


def run(work: Callable[[Interrupts], Outcome], out: Path | None, *, as_json: bool, rank: int | None = None) -> None:
    """Do the work of a command, write and print what it leaves, and leave with its exit code.

    ``rank``: of this process, where several processes do it together: the others than 0 say nothing and leave as that one does.
    """
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what their encoding does not
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    start_up()  # before signals raise: KeyboardInterrupt could become the ImportError of a half-loaded library
    if rank:
        _follow(work)
    with _common_exit(alone=rank is None), Interrupts() as interrupts:
        with exit_codes():
            outcome = work(interrupts)
        with exit_codes():
            finish(outcome, out, interrupts, as_json=as_json)


def _follow(work: Callable[[Interrupts], Outcome]) -> NoReturn:
    """Do the work for rank 0, which prints and writes, and leave with its exit code; an error of this process alone is told."""
    from fastscape.runs.ranks import LeftError, common_exit, elsewhere

    with Interrupts(quiet=True) as interrupts:
        with exit_codes(quiet=True):
            try:
                work(interrupts)
            except LeftError:
                pass
            except BaseException as error:
                if not elsewhere(error):
                    raise
        interrupts.hold()
        sys.exit(common_exit(0))


@contextmanager
def _common_exit(*, alone: bool) -> Iterator[None]:
    """Tell the other processes the exit code of a block."""
    if alone:
        yield
        return
    from fastscape.runs.ranks import common_exit

    code = 0
    try:
        yield
    except click.ClickException as error:
        code = error.exit_code
        raise
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
        raise
    except BaseException:
        code = 1
        raise
    finally:
        common_exit(code)


def live_progress(*, quiet: bool) -> LiveProgress:
    """The progress line of a run."""
    from fastscape.cli.live import LiveProgress

    return LiveProgress(quiet=quiet)


def finish(outcome: Outcome, out: Path | None, interrupts: Interrupts, *, as_json: bool) -> None:
    """Write the files and the page, print the result, and leave with the exit code of the run."""
    written = 0
    if out is not None:  # files first: stdout may be closed
        written = _write(outcome, out) or _write_page(outcome, out, interrupts)
    if out is None and outcome.interrupted:
        rescue(*outcome.results.values())
    try:
        show(*outcome.results.values(), as_json=as_json)
    except OSError:
        if out is None and not outcome.interrupted:
            rescue(*outcome.results.values())
        raise
    if outcome.interrupted or written:
        sys.exit(EXIT_INTERRUPTED if outcome.interrupted else written)
    if outcome.unmet:
        click.echo(outcome.unmet, err=True)
        if _starts_again():
            click.echo(f"torchrun would repeat what leaves with exit code {EXIT_TARGET}: leaving with 0", err=True)
        else:
            sys.exit(EXIT_TARGET)


def _starts_again() -> bool:
    """Whether torchrun would start again, with ``--max-restarts``, what leaves with another code than 0."""
    restarts, most = (int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return restarts < most


def show(result: Document, spectrum: Document | None = None, *, as_json: bool) -> None:
    """Print a result, and the spectra beside it, as tables or as one JSON document."""
    from rich.console import Console

    if as_json:
        click.echo(json.dumps(result.to_dict(spectrum), indent=1, allow_nan=False))
        return
    console = Console()
    if not console.is_terminal:
        console.width = 150  # a pipe or a file has no width of its own
    console.print(result.table(spectrum))


def _write(outcome: Outcome, out: Path) -> int:
    """Write the data of all results, or of none, and return the exit code.

    The older page goes with the older data; where the disk refuses the new ones, these go to the temporary directory.
    """
    files = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        with staged(out, outdated=[outcome.page]) as staging:
            for stem, result in outcome.results.items():
                result.save(staging / f"{stem}.npz")
                write_text(staging / f"{stem}.json", result.to_json() + "\n")
                files += [f"{out / stem}.npz", f"{out / stem}.json"]
    except OSError as error:
        click.echo(f"cannot write to {out}: {error.strerror or error}", err=True)
        rescue(*outcome.results.values())
        return 2
    click.echo(f"data: {', '.join(files)}", err=True)
    return 0


def _write_page(outcome: Outcome, out: Path, interrupts: Interrupts) -> int:
    """Draw the page, which takes seconds, once the data are safe. Returns the exit code."""
    page, (first, *others) = out / outcome.page, outcome.results.items()
    try:
        with interrupts.second_stops():
            write_page(page, first[1], *(result for _, result in others))
    except KeyboardInterrupt:
        more = "".join(f" --{stem} {out / stem}.npz" for stem, _ in others)
        click.echo(f"stopped before the page; fastscape report {out / first[0]}.npz{more} --out {page} writes it", err=True)
        return EXIT_INTERRUPTED
    except OSError as error:
        click.echo(f"cannot write to {out}: {error.strerror or error}", err=True)
        return 2
    click.echo(f"report: {page}", err=True)
    return 0


def write_page(page: Path, result: Document, spectrum: Document | None = None) -> None:
    """The page of a result with the spectra beside it.

    Raises:
        ValueError: what should be a spectrum is none, or stands beside a spectrum.
    """
    from fastscape.reports.html import write_html

    if spectrum is not None and spectrum.kind not in result.companions:
        raise ValueError(
            f"--spectrum must be a spectrum to show beside a multifractal result, got one of the kind "
            f"{spectrum.kind!r} beside one of {result.kind!r}"
        )
    write_html(result, page, spectrum=spectrum)


def rescue(*results: Document) -> None:
    """Save results that have no place of their own."""
    for result in results:
        for folder in (Path(tempfile.gettempdir()), Path.cwd(), Path.home()):
            try:
                handle, name = tempfile.mkstemp(prefix="fastscape-", suffix=".npz", dir=folder)
                os.close(handle)
                click.echo(f"the result is saved in {result.save(name)}", err=True)
            except OSError:
                continue
            break
        else:
            click.echo("the result could not be saved anywhere; it follows as JSON", err=True)
            click.echo(result.to_json())


@contextmanager
def exit_codes(*, quiet: bool = False) -> Iterator[None]:
    """Turn warnings into messages, unless quiet, and exceptions into messages with exit codes."""
    try:
        with _readable_warnings(quiet=quiet):
            yield
    except (click.ClickException, BrokenPipeError):  # which click knows
        raise
    except fs.PartialResultError as error:
        rescue(error.partial)
        raise BadModel(str(error)) from error
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted before the first result; nothing to save") from error
    except Exception as error:
        raise _failure(error) from error


def _failure(error: Exception) -> click.ClickException:
    from fastscape.objective.replica import MODEL_NOTE

    refusals = (
        fs.AsymmetricProductError,
        fs.MissingRuleError,
        fs.NarrowLossError,
        fs.NondeterministicLossError,
        fs.UntraceableError,
    )
    if isinstance(error, refusals):
        return BadModel(str(error))
    of_model = any(MODEL_NOTE in note for note in getattr(error, "__notes__", ()))
    if isinstance(error, (ValueError, OSError, ImportError)) and not of_model:
        return BadInput(str(error))
    return BadModel(f"the model cannot be probed: {type(error).__name__}: {error}")


@contextmanager
def _readable_warnings(*, quiet: bool) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", fs.PrecisionWarning)
        yield
    for warning in () if quiet else caught:
        click.echo(f"Warning: {warning.message}", err=True)
