"""One npz file of a JSON document and the arrays that it names, read within the memory that it declares."""

from __future__ import annotations

import codecs
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastscape._files import check_expansion, most_expanded

Arrays = dict[str, NDArray[Any]]
_CHUNK = 1 << 18
_HEADER = 4096  # bytes of a member's header, at most
_DENSE = 1 << 20  # characters from which on a document is looked at before it is parsed
_PER_CHARACTER = 12  # bytes of containers and references: twice what tables of pairs of numbers take


def write_archive(stream: BinaryIO, document: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an npz file; what compresses so well that :func:`read_archive` would take it for a bomb is written as it is."""
    members: dict[str, Any] = {"document": np.array(json.dumps(document)), **arrays}
    begin = stream.tell()
    np.savez_compressed(stream, allow_pickle=False, **members)
    if sum(np.asarray(member).nbytes + _HEADER for member in members.values()) > most_expanded(stream.tell() - begin):
        stream.seek(begin)
        stream.truncate()
        np.savez(stream, allow_pickle=False, **members)


def read_archive(path: Path) -> tuple[dict[str, Any], Arrays]:
    """The document of an npz file, and the arrays that it names; others are not touched.

    Raises:
        ValueError, KeyError, OSError, zipfile.BadZipFile and others: what is wrong with the file.
    """
    with zipfile.ZipFile(path) as archive:
        text = archive.getinfo("document.npy")
        check_expansion(archive, [text])
        document = json.loads(_text(archive, text))
        if not isinstance(document, dict):
            raise TypeError(f"its document is a {type(document).__name__}, not an object")
        wanted = {name: archive.getinfo(f"{name}.npy") for name in dict.fromkeys(_named(document.get("result")))}
        check_expansion(archive, [text, *wanted.values()])
        return document, {name: _array(archive, member, name) for name, member in wanted.items()}


def named_array(data: Any) -> str | None:
    """Name of the array that stands where ``data`` is in a document."""
    if isinstance(data, dict) and len(data) == 1 and isinstance(data.get("array"), str):
        return str(data["array"])
    return None


def _named(data: Any) -> Iterator[str]:
    pending = [data]
    while pending:
        item = pending.pop()
        name = named_array(item)
        if name is not None:
            yield name
        elif isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, list):
            pending += item


def _text(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    """A string that NumPy wrote, of four bytes a character, decoded as it is read."""
    with archive.open(member) as stream:
        shape, _, dtype = _header(stream, member, "document")
        if shape != () or dtype.kind != "U":
            raise TypeError(f"its document is an array of shape {list(shape)} and dtype {dtype}, not a string")
        decoder = codecs.getincrementaldecoder("utf-32-be" if dtype.str[0] == ">" else "utf-32-le")("surrogatepass")
        parts = [decoder.decode(chunk) for chunk in iter(lambda: stream.read(_CHUNK), b"")]
    text = "".join([*parts, decoder.decode(b"", final=True)]).rstrip("\0")
    containers = text.count("[") + text.count("{") if len(text) > _DENSE else 0
    if 64 * containers + 8 * text.count(",") > _PER_CHARACTER * len(text) and containers:
        raise ValueError(f"its document of {len(text)} characters holds {containers} objects and lists, more than a result does")
    return text


def _header(stream: Any, member: zipfile.ZipInfo, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape of a member, whether it is stored column by column, and dtype; it must be as large as they say.

    Raises:
        ValueError: it is not, or an array of Python objects.
    """
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"its array {name!r} is of the npy format {version}, not (1, 0) or (2, 0)")
    if dtype.hasobject:
        raise ValueError(f"its array {name!r} holds Python objects, which are not read")
    size = dtype.itemsize
    for length in shape:
        size *= length
    if min(shape, default=0) < 0 or stream.tell() + size != member.file_size:
        raise ValueError(
            f"its array {name!r} of shape {list(shape)} and dtype {dtype} does not fit into {member.file_size} bytes"
        )
    return shape, fortran, dtype


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> NDArray[Any]:
    with archive.open(member) as stream:
        shape, fortran, dtype = _header(stream, member, name)
        if dtype.kind not in "biuf":
            raise ValueError(f"its array {name!r} is of dtype {dtype}, not of numbers")
        content: NDArray[Any] = np.empty(shape[::-1] if fortran else shape, dtype)
        place = content.reshape(-1, copy=False).view(np.uint8).data if content.size else memoryview(b"")
        done = 0
        while done < len(place):
            chunk = stream.read(min(_CHUNK, len(place) - done))
            if not chunk:
                raise ValueError(f"its array {name!r} ends after {done} of {len(place)} bytes")
            place[done : done + len(chunk)] = chunk
            done += len(chunk)
        stream.read(1)  # at the end of a member its checksum is compared
        return content.T if fortran else content
