"""What a command writes into --out: all of a result or nothing, by one process at a time, over an older one only by --force."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from full_disk import full_after
from processes import Heard

import fastscape as fs
from fastscape._interrupts import Interrupts
from fastscape.cli import main, output
from fastscape.cli import study as cli_study
from fastscape.study.plan import quick

SAVED = Path(__file__).parents[1] / "reports" / "saved"
DIGITS = ("--data", "zoo:digits?samples=16")
MODEL = "from fastscape import zoo\nimport torch\n\ndef make():\n    torch.manual_seed(0)\n    return zoo.mlp(hidden=(4,))\n"


def fastscape(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def _plain_pages(monkeypatch):
    """Drawing one takes seconds."""
    monkeypatch.setattr(output, "write_page", lambda page, *_: output.write_text(page, "new"))


@pytest.fixture
def command(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    return ("slice", f"{tmp_path}/model.py:make", *DIGITS, "--count", "1", "--points", "3", "--quiet")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_older_result_is_replaced_by_force_alone_and_the_message_comes_before_the_work(tmp_path, command, monkeypatch):
    out = tmp_path / "out"
    assert fastscape(*command, "--out", out).exit_code == 0
    older = contents(out)
    assert sorted(older) == ["slice.html", "slice.json", "slice.npz"]
    with monkeypatch.context() as patch:
        patch.setattr(fs, "slice1d", lambda *_, **_named: pytest.fail("the work was started"))
        refused = fastscape(*command, "--seed", "1", "--out", out)
    assert refused.exit_code == 2
    for words in (str(out), "slice.npz, slice.json, slice.html", "pass --force", "choose another directory"):
        assert words in refused.stderr
    assert contents(out) == older
    done = fastscape(*command, "--seed", "1", "--out", out, "--force")
    assert done.exit_code == 0, done.stderr
    assert fs.load(out / "slice.npz").meta["seed"] == 1
    assert sorted(contents(out)) == sorted(older)
    assert json.loads((out / "slice.json").read_text())["meta"]["seed"] == 1


@pytest.mark.parametrize("name", ["slice.npz", "slice.json", "slice.html"])
def test_every_file_that_would_be_replaced_counts(tmp_path, command, name):
    (tmp_path / name).write_text("mine")
    refused = fastscape(*command, "--out", tmp_path)
    assert refused.exit_code == 2
    assert f"with {name}; pass --force" in refused.stderr
    assert (tmp_path / name).read_text() == "mine"


def test_results_of_other_commands_are_left_alone(tmp_path, command):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "spectrum.npz").write_text("another")
    assert fastscape(*command, "--out", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "spectrum.npz").read_text() == "another"


def test_what_is_extended_is_no_older_result(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    command = ("multifractal", f"{tmp_path}/model.py:make", *DIGITS, "--radii", "1e-3:1e-1:4", "--banks", 1, "--path", "loop")
    out = tmp_path / "out"
    assert fastscape(*command, "--count", 2, "--out", out).exit_code == 0
    assert fastscape(*command, "--count", 4, "--out", out).exit_code == 2
    done = fastscape(*command, "--count", 4, "--out", out, "--extend", out / "result.npz")
    assert done.exit_code == 0, done.stderr
    assert fs.load(out / "result.npz").directions == 4


def test_a_study_goes_on_from_one_of_its_plan_and_refuses_another(tmp_path, monkeypatch):
    found = fs.load(SAVED / "study.npz")
    plan = quick(1)
    monkeypatch.setattr("fastscape.study.study.study", lambda *_, **_named: found)
    monkeypatch.setattr(cli_study, "_plan", lambda *_: plan)
    assert CliRunner().invoke(main, ["study", "--out", str(tmp_path), "--quiet"]).exit_code == 0
    refused = fastscape("study", "--out", tmp_path, "--quiet")  # its plan is another
    assert refused.exit_code == 2
    assert "pass --force" in refused.stderr
    monkeypatch.setattr(type(plan), "words", lambda self: found.plan)
    again = fastscape("study", "--out", tmp_path, "--quiet")
    assert again.exit_code == 0, again.stderr


HOLD = """
import os, sys
from pathlib import Path
from fastscape.cli.folder import _held
with _held(Path(sys.argv[1])):
    os.write(int(os.environ["READY"]), b"x")
    os.read(0, 1)
"""


def test_two_processes_on_one_directory_do_not_overwrite_each_other(tmp_path, command):
    out = tmp_path / "out"
    program = [sys.executable, "-c", HOLD, str(out)]
    with Heard(program, stdin=subprocess.PIPE, cwd=Path(__file__).parents[2]) as other:
        other.wait_until_ready()
        refused = fastscape(*command, "--out", out)
        assert refused.exit_code == 2
        assert f"is in use by process {other.process.pid}" in refused.stderr
        assert str(out) in refused.stderr
        other.process.kill()
        other.process.wait()
        other.process.stdin.close()
    assert fastscape(*command, "--out", out).exit_code == 0
    assert sorted(contents(out)) == ["slice.html", "slice.json", "slice.npz"]


def test_a_directory_in_which_nothing_was_written_is_not_left(tmp_path):
    done = fastscape("slice", "zoo:vgg", *DIGITS, "--out", tmp_path / "new" / "out")
    assert done.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", range(30))
def test_whichever_operation_meets_a_full_disk_no_new_file_stands_beside_an_older_one(tmp_path, monkeypatch, count, capsys):
    """Of the data and the page; what cannot be written into the directory is saved elsewhere."""
    out, rescued = tmp_path / "out", tmp_path / "rescued"
    out.mkdir()
    rescued.mkdir()
    older = dict.fromkeys(("track.npz", "track.json", "track.html"), b"older")
    for name, content in older.items():
        (out / name).write_bytes(content)
    result = fs.load(SAVED / "track.npz")
    monkeypatch.setattr(output.tempfile, "gettempdir", lambda: str(rescued))
    with Interrupts() as interrupts, full_after(monkeypatch, count, out):
        try:
            output.finish(output.Outcome({"track": result}), out, interrupts, as_json=False)
            code = 0
        except SystemExit as exit:
            code = exit.code
    found = contents(out)
    if code == 0:
        assert sorted(found) == sorted(older)
        assert not any(content == b"older" for content in found.values())
        return
    assert code == 2
    assert "No space left" in capsys.readouterr().err
    if found != older:  # the data are new, and there is no page
        assert sorted(found) == ["track.json", "track.npz"]
        assert fs.load(out / "track.npz").name == result.name
        json.loads(found["track.json"])
    else:
        (place,) = rescued.iterdir()
        assert fs.load(place).name == result.name


def test_the_demo_can_be_made_twice():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    commands = [line for line in makefile.splitlines() if "--out demo " in f"{line} "]
    assert len(commands) == 1
    assert commands[0].endswith("--force")
