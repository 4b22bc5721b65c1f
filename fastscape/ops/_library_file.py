"""Whether a library's file is the one that was built: loading a truncated one ends the process by a signal."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

_ELF = b"\x7fELF\x02\x01"  # 64 bits, little-endian


def damage_of(path: Path) -> str:
    """What is wrong with a library's file, in words that follow its name; empty where nothing is.

    It is compared with the size and the SHA-256 that the build has left in ``<name>.json`` beside it: the size first, so that the
    bytes are read, once, where it fits. Without that file, an ELF library must at least be as long as its headers say.
    """
    try:
        size, description = path.stat().st_size, path.with_name(path.name + ".json")
        if description.is_file():
            return _compared(path, size, description)
        with path.open("rb") as stream:
            return _shortened(stream.read(64), size)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"cannot be compared with what was built ({error})"


def _compared(path: Path, size: int, description: Path) -> str:
    built = json.loads(description.read_bytes())
    if size != built["size"]:
        return f"has {size} bytes, {built['size']} were built"
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return "" if found == built["sha256"] else f"has the SHA-256 {found}, {built['sha256']} was built"


def _shortened(header: bytes, size: int) -> str:
    if not header.startswith(_ELF) or len(header) < 64:
        return ""
    (sections,) = struct.unpack_from("<Q", header, 40)  # at the end of the file
    width, count = struct.unpack_from("<HH", header, 58)
    end = sections + width * count
    return f"has {size} bytes, its headers say {end}" if size < end else ""
