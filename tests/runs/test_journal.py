"""A journal: whatever is torn, duplicated or foreign, and whenever the process is killed, the same bytes come out."""

import errno
import json
import os
import platform
import random
import signal

import numpy as np
import psutil
import pytest

from fastscape._lock import InUseError
from fastscape.runs import record
from fastscape.runs.folder import MANIFEST
from fastscape.runs.journal import KIND, Journal
from fastscape.runs.units import Here, Unit, encode

UNITS = [Unit(0, 0, bank, block) for bank in range(2) for block in range(5)]
ABOUT = {"kind": "test", "identity": {"weight_fingerprint": "a", "names": ["x"]}, "settings": {"seed": 1}, "loss": float("nan")}
COMPARED = ("kind", "identity", "settings")


def evaluate(unit):
    """A fake evaluation: numbers by the unit."""
    numbers = np.random.default_rng(unit.key).standard_normal((2, 3, 4))
    return encode(numbers[0], numbers[1], float("nan"))


def run(folder, wanted=UNITS, evaluation=evaluate):
    journal = Journal(folder)
    journal.begin(ABOUT, COMPARED)
    found = dict(Here(journal.recording(evaluation)).map(wanted))
    journal.close()
    return journal, found


WHOLE = {unit: evaluate(unit) for unit in UNITS}


def never(unit):
    raise AssertionError(f"{unit} is done")


def files(folder):
    return sorted(folder.glob("units.*.jsonl"))


def test_what_is_done_is_not_done_again(tmp_path):
    _, first = run(tmp_path / "a", UNITS[:6])
    journal, found = run(tmp_path / "a")
    assert found == WHOLE
    assert {unit: WHOLE[unit] for unit in UNITS[:6]} == first
    assert len(files(tmp_path / "a")) == 2, "one file per process and run"
    assert run(tmp_path / "a", evaluation=never)[1] == WHOLE
    assert (journal.torn, journal.note) == (0, "")
    assert not list((tmp_path / "a").glob(".*")), "nothing temporary is left"


def test_the_manifest_is_strict_json_and_comes_back(tmp_path):
    run(tmp_path, [])
    text = (tmp_path / MANIFEST).read_text()
    json.loads(text, parse_constant=never)
    found = Journal(tmp_path).manifest
    assert found["identity"] == ABOUT["identity"]
    assert np.isnan(found["loss"])


def test_torn_changed_and_foreign_lines_are_left_out_and_done_again(tmp_path):
    run(tmp_path)
    (file,) = files(tmp_path)
    head, *lines = file.read_bytes().splitlines(keepends=True)
    for damage in (
        [*lines[:4], lines[4][:-37]],
        [*lines[:4], lines[4].replace(b'"lanes": null', b'"lanes": 1234')],
        [b'{"key": [0, 0, 0, 0], "data": "AAAA", "seconds": 1, "lanes": null}\n', *lines],
        [b"\0" * 50 + b"\n", *lines[2:]],
        [record._line({"key": [0, 0], "data": "AAAA", "lanes": None}, checksum=True), *lines[1:]],
        [record._line({"key": [0, 0, 0, 0], "data": "=A", "lanes": None}, checksum=True), *lines[1:]],
        [record._line({"of": "somebody else"}, checksum=True), *lines[1:]],
    ):
        file.write_bytes(head + b"".join(damage))
        assert Journal(tmp_path).torn == 1
        assert run(tmp_path)[1] == WHOLE
        for other in set(files(tmp_path)) - {file}:
            other.unlink()


def test_a_file_of_another_program_is_refused_and_not_written_to(tmp_path):
    run(tmp_path, UNITS[:1])
    (tmp_path / "units.of.mine.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match=r"path must be a record of fastscape.*units.of.mine.jsonl"):
        run(tmp_path)
    assert (tmp_path / "units.of.mine.jsonl").read_text() == '{"a": 1}\n'


def test_records_of_one_unit_agree_or_the_wider_wins(tmp_path):
    """A unit evaluated in parts, where memory was short, is the same up to rounding only."""
    run(tmp_path, [])
    for order in ((None, 2), (2, None), (1, 2), (2, 1)):
        for lanes in order:
            journal = Journal(tmp_path)
            journal.append(UNITS[0], b"%d" % (lanes or 0), 1.0, lanes)
            journal.close()
        assert Journal(tmp_path).done == {UNITS[0]: b"0" if None in order else b"2"}
        for file in files(tmp_path):
            file.unlink()
    for data in (b"same", b"same", b"other"):
        assert Journal(tmp_path).done in ({}, {UNITS[0]: b"same"})
        Journal(tmp_path).append(UNITS[0], data, 1.0)
    with pytest.raises(ValueError, match=r"has two results of unit \(0, 0, 0, 0\)"):
        Journal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "other"}, "kind"),
        ({"identity": {"weight_fingerprint": "b", "names": ["x"]}}, "weights"),
        ({"identity": {"weight_fingerprint": "a", "names": ["y"]}}, "parameters"),
        ({"identity": {"weight_fingerprint": "b", "names": ["y"]}, "settings": {"seed": 2}}, "weights, parameters, seed"),
        ({"settings": {"seed": 1, "more": 3}}, "more"),
        ({"settings": {}}, "seed"),
    ],
)
def test_a_journal_of_something_else_is_refused_by_name(tmp_path, changes, words):
    run(tmp_path, UNITS[:1])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"resume: the journal in '.*' is of other {words}; use another folder"):
        Journal(tmp_path).begin({**ABOUT, **changes}, COMPARED)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    Journal(tmp_path).begin({**ABOUT, "loss": 1.0}, COMPARED)  # what is not compared may differ


def test_folders_of_something_else_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for folder, words in (
        (tmp_path, "which holds other files"),
        (tmp_path / "notes.txt", "resume must be a folder, got the file"),
    ):
        with pytest.raises(ValueError, match=words):
            Journal(folder)
    with pytest.raises(TypeError, match="resume must be the path of a folder, got int"):
        Journal(3)
    for content, words in (
        ("{", "is damaged"),
        ("[1]", "is of something else"),
        ('{"format": 99}', "written by a newer fastscape"),
    ):
        (tmp_path / MANIFEST).write_text(content)
        with pytest.raises(ValueError, match=words):
            Journal(tmp_path)


def test_a_full_disk_loses_nothing_and_is_told(tmp_path, monkeypatch):
    real, full = os.write, [True]

    def write(descriptor, content):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content)

    journal = Journal(tmp_path)
    journal.begin(ABOUT, COMPARED)
    monkeypatch.setattr(record.os, "write", write)
    evaluated = dict(Here(journal.recording(evaluate)).map(UNITS[:3]))
    assert "No space left" in journal.note
    full[0] = False
    evaluated |= dict(Here(journal.recording(evaluate)).map(UNITS[3:]))
    journal.close()
    assert journal.note == ""
    assert Journal(tmp_path).done == evaluated == WHOLE


def test_units_are_synchronised_each_where_long_and_once_a_second_where_short(tmp_path, clock, monkeypatch):
    synced = []
    monkeypatch.setattr(record.os, "fsync", lambda _: synced.append(1))
    journal = Journal(tmp_path)
    journal.begin(ABOUT, COMPARED)
    synced.clear()

    def taking(seconds):
        def evaluation(unit):
            clock.now += seconds
            return evaluate(unit)

        return evaluation

    list(Here(journal.recording(taking(0.6))).map(UNITS[:3]))
    assert len(synced) == 3
    list(Here(journal.recording(taking(0.3))).map(UNITS[3:]))
    assert len(synced) == 3 + 1
    journal.close()
    assert len(synced) == 3 + 1 + 1, "the end takes the rest to disk"


def killed(folder, seed, left):
    """A process that is killed while it writes or evaluates some unit, leaving any part of a line."""
    chance = random.Random(seed)
    last, share = chance.randrange(left), chance.choice([0.0, chance.random(), 1.0])
    process = os.fork()
    if process == 0:
        real, written = os.write, [0]

        def write(descriptor, content):
            written[0] += 1
            if written[0] > last + 2:  # the first are the lock and the head of the file
                real(descriptor, content[: int(share * len(content))])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(descriptor, content)

        record.os.write = write
        try:
            run(folder, chance.sample(UNITS, len(UNITS)))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    return last


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # the child runs no thread and no torch
@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 53))])
def test_a_run_that_is_killed_goes_on_to_the_same_bytes_and_loses_one_unit_at_most(tmp_path, seed):
    last = killed(tmp_path, seed, len(UNITS))
    kept = Journal(tmp_path)
    assert len(kept.done) >= last
    assert kept.torn <= 1
    if left := len(UNITS) - len(kept.done):
        killed(tmp_path, seed + 1000, left)
    assert run(tmp_path)[1] == WHOLE
    assert set(Journal(tmp_path).done) == set(UNITS)


def test_lines_name_their_kind(tmp_path):
    run(tmp_path)
    assert json.loads(files(tmp_path)[0].read_bytes().splitlines()[0])[KIND]["format"] == 1


def test_a_second_run_does_not_write_to_the_same_folder(tmp_path):
    """Two that begin at once may choose otherwise, and their units do not fit together."""
    parent = os.getppid()
    holder = {"pid": parent, "host": platform.node(), "started": psutil.Process(parent).create_time()}
    (tmp_path / ".lock").write_text(json.dumps(holder))
    with pytest.raises(InUseError, match=f"is in use by process {parent} .*; wait until it has ended"):
        Journal(tmp_path).begin(ABOUT, COMPARED)
    (tmp_path / ".lock").write_text(json.dumps(holder | {"pid": 2**22 + 1}))  # has ended
    run(tmp_path)


def test_a_run_that_was_moved_to_another_machine_goes_on(tmp_path):
    first = Journal(tmp_path / "run")
    first.begin(ABOUT, COMPARED)
    first.close()
    (tmp_path / "run" / ".lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": 1.0}))
    Journal(tmp_path / "run").begin(ABOUT, COMPARED)
