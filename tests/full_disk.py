"""A disk that is full after a number of operations, for the files that the package writes."""

import errno
import io
import os
from contextlib import contextmanager
from pathlib import Path


class Stream(io.FileIO):
    """A file whose every write is an operation."""

    operation = staticmethod(lambda name: None)

    def write(self, content):
        Stream.operation("write")
        return super().write(content)


@contextmanager
def full_after(monkeypatch, count, folder):
    """Let the operation behind ``count`` ones in ``folder`` fail; gives a list of their names."""
    done, patched = [], monkeypatch.context()

    def operation(name):
        done.append(name)
        if len(done) == count + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fdopen, fsync, replace = os.fdopen, os.fsync, Path.replace

    def opened(descriptor, mode="r", *arguments, **named):
        return Stream(descriptor, "w+") if mode == "w+b" else fdopen(descriptor, mode, *arguments, **named)

    def synchronised(descriptor):
        operation("fsync")
        fsync(descriptor)

    def replaced(path, target):
        operation("rename")
        return replace(path, target)

    with patched as patch:
        patch.setattr(Stream, "operation", staticmethod(operation))
        patch.setattr(os, "fdopen", opened)
        patch.setattr(os, "fsync", synchronised)
        patch.setattr(Path, "replace", replaced)
        yield done
