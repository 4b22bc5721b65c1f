"""A record that survives full disks and torn lines, and touches no foreign file; killing is tested with the tracker."""

import errno
import json
import math
import os
from pathlib import Path

import pytest

from fastscape.runs.record import FORMAT, Record, read_record

HEAD = b'{"test": {"format": 1}}\n'


def lines(path, **options):
    return read_record(path, "test", **options).lines


def record(path, **options):
    return Record(path, "test", {}, **options)


def test_lines_come_back_with_nan_and_inf_and_are_strict_json(tmp_path):
    written = record(tmp_path / "a.jsonl")
    written.append({"a": [1.5, math.nan, math.inf], "b": {"c": -math.inf, "d": "text"}})
    written.append({"e": None, "f": True})
    for line in (tmp_path / "a.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    first, second = lines(tmp_path / "a.jsonl")
    assert first["a"][0] == 1.5
    assert math.isnan(first["a"][1])
    assert (first["a"][2], first["b"]) == (math.inf, {"c": -math.inf, "d": "text"})
    assert second == {"e": None, "f": True}


def test_the_first_line_names_what_it_is_and_comes_back(tmp_path):
    path = tmp_path / "a.jsonl"
    written = Record(path, "test", {"seed": 3, "scale": math.inf})
    assert not written.continued
    written.append({"a": 1})
    assert json.loads(path.read_text().splitlines()[0]) == {"test": {"format": FORMAT, "seed": 3, "scale": "Infinity"}}
    again = Record(path, "test", {"seed": 4})
    assert again.continued
    assert again.head == {"format": FORMAT, "seed": 3, "scale": math.inf}
    assert again.lines == [{"a": 1}]


def test_a_torn_line_is_left_out_and_what_follows_is_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(HEAD + b'{"a": 1}\n{"a": 2}\n{"a": ')
    found = record(path)
    assert (found.lines, found.torn) == ([{"a": 1}, {"a": 2}], 1)
    found.append({"a": 3})
    assert lines(path) == [{"a": 1}, {"a": 2}, {"a": 3}]


@pytest.mark.parametrize("checksums", [False, True])
def test_wherever_a_crash_cuts_a_record_it_goes_on(tmp_path, checksums):
    path = tmp_path / "a.jsonl"
    whole = record(path, checksums=checksums)
    whole.append({"a": 1})
    whole.append({"a": 2})
    content = path.read_bytes()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        found = record(path, checksums=checksums)
        kept = found.lines
        assert kept == [{"a": 1}, {"a": 2}][: len(kept)]
        found.append({"b": 3})
        assert lines(path, checksums=checksums) == [*kept, {"b": 3}]
        assert path.read_bytes().endswith(b"\n")


def test_with_checksums_every_changed_bit_is_counted_and_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    written = record(path, checksums=True)
    written.append({"a": 123})
    written.append({"b": 4})
    content = path.read_bytes()
    start = content.index(b"\n") + 1
    assert content[start:].split(b"\n")[0][8:] == b' {"a": 123}'
    end = content.index(b"\n", start)
    for place in range(start, end):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            found = read_record(path, "test", checksums=True)
            assert (found.lines, found.torn >= 1) == ([{"b": 4}], True)


def test_what_cannot_be_written_is_kept_and_written_when_it_can(tmp_path):
    path = tmp_path / "gone" / "a.jsonl"
    kept = record(path)
    kept.append({"a": 1})
    kept.append({"a": 2})
    assert isinstance(kept.error, FileNotFoundError)
    assert kept.unwritten == 3
    path.parent.mkdir()
    kept.append({"a": 3})
    assert (kept.error, kept.unwritten) == (None, 0)
    assert lines(path) == [{"a": 1}, {"a": 2}, {"a": 3}]


@pytest.mark.parametrize("room", range(80))
def test_on_a_disk_that_is_full_after_any_byte_the_file_holds_whole_lines(tmp_path, monkeypatch, room):
    path, write, left = tmp_path / "a.jsonl", os.write, [room]

    def limited(descriptor, content):
        written = write(descriptor, content[: left[0]])
        left[0] -= written
        if written == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written

    monkeypatch.setattr(os, "write", limited)
    kept = record(path)
    for number in range(5):
        kept.append({"a": number})
        assert not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    monkeypatch.undo()
    kept.write()
    assert kept.unwritten == 0
    assert lines(path) == [{"a": number} for number in range(5)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_raises_nothing():
    full = record("/dev/full")
    full.append({"a": 1})
    assert "space" in str(full.error)
    assert full.unwritten == 2


@pytest.mark.parametrize(
    "content",
    [
        b"these are\nnotes\n",
        b"notes without an end",
        b'{"test": 3}\n',
        b'{"other": {"format": 1}}\n',
        b'{"test": {"format": true}}\n',
        b'{"test": {"format": 0}}\n',
        b"[1, 2]\n",
        b'{"test": {"format": 1}}'[::-1],
        b"\x00" * 100,
        b"\xff\xfe\n" + HEAD,
        b"[" * 100_000,
    ],
)
def test_a_foreign_file_is_refused_by_name_and_stays_what_it_is(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.txt.*choose another path"):
        record(path)
    assert path.read_bytes() == content


def test_a_record_of_a_newer_version_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"test": {"format": 2}}\n')
    with pytest.raises(ValueError, match=r"newer fastscape: its format is 2, .*pip install --upgrade"):
        record(path)


def test_a_directory_is_refused_and_nothing_is_kept_without_a_path(tmp_path):
    with pytest.raises(ValueError, match="directory"):
        record(tmp_path)
    nothing = record(None)
    nothing.append({"a": 1})
    assert nothing.lines == []
