"""Files that are written whole or not at all, alone or together, and archives that are no larger than they should be."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_STAGING = ".fastscape-"  # of directories in which files wait for the others
_FREE, _EXPANSION = 1 << 24, 100  # bytes that any archive may unpack to, and times its own size; deflate may reach 1000


@contextmanager
def replaced(target: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of ``target`` at the end of the block; a failure leaves the older file whole.

    Without ``sync`` it outlives the process, but not the machine.
    """
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(target)) from error  # not the temporary file beside it
        raise
    if sync:
        synchronise(target.parent)


def write_text(target: Path, text: str) -> None:
    """Write a text file whole or not at all, in UTF-8; what that cannot hold becomes a question mark."""
    with replaced(target) as stream:
        stream.write(text.encode("utf-8", "replace"))


@contextmanager
def staged(folder: Path, outdated: Sequence[str] = ()) -> Iterator[Path]:
    """A directory whose files take their places in ``folder`` at the end of the block, all or none.

    Args:
        folder: where they go.
        outdated: names of files that belong to what is replaced, and go with it.
    """
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
    try:
        yield staging
        new = sorted(path.name for path in staging.iterdir())
        for name in new:
            synchronise(staging / name)
        _exchange(staging, folder, new, [name for name in outdated if name not in new])
        synchronise(folder)
    except OSError as error:
        if error.filename is not None and Path(str(error.filename)).parent == staging:
            error.filename, error.filename2 = str(folder / Path(str(error.filename)).name), None
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _exchange(staging: Path, folder: Path, new: Sequence[str], outdated: Sequence[str]) -> None:
    """Put the new files in place; where one cannot be, the older ones come back."""
    for name in (*outdated, *new):
        if (folder / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / name))
    older = staging / "older"
    older.mkdir()
    done: list[str] = []
    try:
        for name in (*outdated, *new):
            done.append(name)
            if (folder / name).exists():
                _set_aside(folder / name, older / name, stays=name in new)
            if name in new:
                (staging / name).replace(folder / name)
    except BaseException:
        for name in done:
            if (older / name).exists():
                (older / name).replace(folder / name)
            elif name in new and not (staging / name).exists():
                (folder / name).unlink(missing_ok=True)
        raise


def _set_aside(path: Path, older: Path, *, stays: bool) -> None:
    """Keep a second name of a file that is to be replaced, or the only one where it goes."""
    if stays:
        with suppress(OSError):  # a file system without links
            os.link(path, older)
            return
    path.replace(older)


def leftovers(folder: Path) -> None:
    """Finish what a killed process was about to put in place, and remove the rest; no other may write there meanwhile."""
    for staging in folder.glob(f"{_STAGING}*/"):
        if (staging / "older").is_dir():  # all were complete
            for path in staging.iterdir():
                if path.is_file():
                    path.replace(folder / path.name)
        shutil.rmtree(staging, ignore_errors=True)


def synchronise(path: Path) -> None:
    """Take a file, or the entries of a directory where the system can, to disk."""
    folder = path.is_dir()
    with suppress(*([OSError] if folder else [])):
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def most_expanded(size: int) -> int:
    """Bytes that an archive of ``size`` bytes may unpack to."""
    return _FREE + _EXPANSION * size


def check_expansion(archive: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse members that would take far more memory than the archive takes on disk, by the sizes that it declares.

    Raises:
        ValueError: with the sizes.
    """
    wanted, size = sum(member.file_size for member in members), os.fstat(archive.fp.fileno()).st_size  # type: ignore[union-attr]
    limit = most_expanded(size)
    if wanted > limit:
        raise ValueError(
            f"its {size} bytes would unpack to {wanted}, more than the {limit} that an archive of this size may: it is damaged, "
            "or made to fill the memory"
        )
