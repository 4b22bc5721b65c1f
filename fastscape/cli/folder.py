"""The directory of ``--out``: writable, held by one process at a time, and with no older result unless it may be replaced."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from fastscape._files import leftovers
from fastscape._lock import Lock

_LOCK = ".fastscape.lock"


def force_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option that lets a command replace an older result."""
    return click.option("--force", is_flag=True, help="Replace an older result in --out.")(command)


def page_of(stem: str) -> str:
    """Name of the page of a result: a spectrum alone leaves that of a multifractal probe in its place."""
    return "report.html" if stem == "result" else f"{stem}.html"


def check_out(out: Path | None, stems: Sequence[str], *, force: bool, continues: Callable[[], bool] | None = None) -> None:
    """Find out before the work whether files and page can be written, and hold the directory until the command ends.

    Args:
        out: the directory.
        stems: of the results that the command writes.
        force: whether older ones may be replaced.
        continues: whether the older one is what this run goes on from.

    Raises:
        ValueError: it cannot be written to, or has an older result.
        InUseError: another process writes there.
    """
    if out is None:
        return
    check_writable(out)
    for extra in ("matplotlib", "jinja2"):
        if importlib.util.find_spec(extra) is None:
            raise ValueError(f"--out needs {extra} for the page: pip install 'fastscape-probes[report]'")
    click.get_current_context().with_resource(_held(out))
    names = [name for stem in stems for name in (f"{stem}.npz", f"{stem}.json", page_of(stem))]
    older = [name for name in names if (out / name).exists()]
    if older and not force and not (continues is not None and continues()):
        raise ValueError(
            f"--out must be a directory without an older result, got {str(out)!r} with {', '.join(older)}; pass --force to "
            "replace it, or choose another directory"
        )


def is_begun(journal: Path | None) -> bool:
    """Whether a folder for a journal (``--resume``) has one, so that an older result is of the run that goes on."""
    return journal is not None and (journal / "manifest.json").is_file()


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """The directory, made where it is missing and locked; one that stays empty is removed again."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    try:
        with Lock(out / _LOCK, f"--out {str(out)!r}", "wait until it has ended, or choose another directory"):
            leftovers(out)
            yield
    finally:
        with suppress(OSError):  # where there are files
            for folder in made:
                folder.rmdir()


def check_writable(folder: Path) -> None:
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
