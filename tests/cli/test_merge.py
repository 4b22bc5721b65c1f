"""``fastscape multifractal --resume`` and ``fastscape merge``."""

import json

import pytest
from click.testing import CliRunner

import fastscape as fs
from fastscape.cli import main
from fastscape.curvature.products import Products
from fastscape.probes.multifractal import visits
from fastscape.runs.units import Here

FAST = ("zoo:mlp", "--data", "zoo:digits?samples=32", "--radii", "1e-3:1e-1:8", "--banks", "2", "--path", "loop")


def fastscape(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def even(path):
    return fs.load(path / "result.npz").measured.even.tobytes()


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """The journal of a run that Ctrl-C has ended."""

    class Stopped(Here):
        def map(self, units, seconds):
            yield next(super().map(units, seconds))
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(visits, "Here", Stopped)
        ended = fastscape("multifractal", *FAST, "--count", 4, "--resume", tmp_path / "run", "--out", tmp_path / "partial")
    assert ended.exit_code == 130
    return tmp_path / "run"


def test_the_same_command_goes_on_and_merge_shows_what_there_is(interrupted, tmp_path):
    shown = fastscape("merge", interrupted, "--out", tmp_path / "merged")
    assert shown.exit_code == 0, shown.stderr
    assert "partial result: unfinished" in shown.stdout
    assert even(tmp_path / "merged") == even(tmp_path / "partial")
    assert sorted(file.name for file in (tmp_path / "merged").iterdir()) == ["report.html", "result.json", "result.npz"]
    whole = fastscape("multifractal", *FAST, "--count", 4, "--resume", interrupted, "--out", tmp_path / "whole")
    assert whole.exit_code == 0, whole.stderr
    assert fastscape("multifractal", *FAST, "--count", 4, "--out", tmp_path / "alone").exit_code == 0
    assert even(tmp_path / "whole") == even(tmp_path / "alone")
    shown = fastscape("merge", interrupted, "--json", "--q=-1,2,3")
    document = json.loads(shown.stdout)
    assert document["meta"]["stop_reason"] == "all directions done"
    assert document["analysis"]["settings"]["q"] == [-1, 0, 1, 2, 3]


def test_the_spectrum_beside_goes_on_too(tmp_path, monkeypatch):
    class Failed(Here):
        def map(self, units, seconds):
            raise RuntimeError("lost")

    command = ("multifractal", *FAST, "--spectrum", "--count", 2, "--resume", tmp_path / "run", "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(visits, "Here", Failed)
        assert fastscape(*command).exit_code == 4
    monkeypatch.setattr(Products, "_multiply", None)  # every product is there
    done = fastscape(*command, "--force")
    assert done.exit_code == 0, done.stderr
    assert fs.load(tmp_path / "out" / "spectrum.npz").products > 0


def test_a_journal_of_something_else_is_bad_input(interrupted, tmp_path):
    other = fastscape("multifractal", *FAST, "--count", 4, "--seed", 3, "--resume", interrupted)
    assert other.exit_code == 2
    assert "is of other seed; use another folder" in other.stderr
    both = fastscape("multifractal", *FAST, "--resume", interrupted, "--extend", tmp_path / "partial" / "result.npz")
    assert both.exit_code == 2
    assert "--extend must be left out with --resume" in both.stderr
    foreign = fastscape("multifractal", *FAST, "--spectrum", "--resume", tmp_path / "partial")
    assert foreign.exit_code == 2
    assert "which holds other files" in foreign.stderr
    for arguments, words in (
        (("merge", tmp_path / "partial"), "has no manifest.json"),
        (("merge", tmp_path / "no"), "does not exist"),
    ):
        bad = fastscape(*arguments)
        assert bad.exit_code == 2
        assert words in bad.stderr
