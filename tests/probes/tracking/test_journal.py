"""A record that survives full disks and torn lines; killing is tested with the tracker."""

import json
import math
from pathlib import Path

import pytest

from fastscape.probes.tracking.journal import Record, read_record


def test_lines_come_back_with_nan_and_inf_and_are_strict_json(tmp_path):
    record = Record(tmp_path / "a.jsonl")
    record.append({"a": [1.5, math.nan, math.inf], "b": {"c": -math.inf, "d": "text"}})
    record.append({"e": None, "f": True})
    for line in (tmp_path / "a.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    first, second = read_record(tmp_path / "a.jsonl")
    assert first["a"][0] == 1.5
    assert math.isnan(first["a"][1])
    assert (first["a"][2], first["b"]) == (math.inf, {"c": -math.inf, "d": "text"})
    assert second == {"e": None, "f": True}


def test_a_torn_line_is_left_out_and_what_follows_is_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": ')
    record = Record(path)
    assert record.lines == [{"a": 1}, {"a": 2}]
    record.append({"a": 3})
    assert read_record(path) == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_what_cannot_be_written_is_kept_and_written_when_it_can(tmp_path):
    path = tmp_path / "gone" / "a.jsonl"
    record = Record(path)
    record.append({"a": 1})
    record.append({"a": 2})
    assert isinstance(record.error, FileNotFoundError)
    assert record.unwritten == 2
    path.parent.mkdir()
    record.append({"a": 3})
    assert (record.error, record.unwritten) == (None, 0)
    assert read_record(path) == [{"a": 1}, {"a": 2}, {"a": 3}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_raises_nothing():
    record = Record("/dev/full")
    record.append({"a": 1})
    assert "space" in str(record.error)
    assert record.unwritten == 1


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="directory"):
        Record(tmp_path)
    (tmp_path / "notes.txt").write_text("these are\nnotes\n")
    with pytest.raises(ValueError, match="no line"):
        Record(tmp_path / "notes.txt")
    assert Record(None).lines == []
