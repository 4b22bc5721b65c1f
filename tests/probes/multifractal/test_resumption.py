"""A run that is killed and resumed gives the bytes of one that was not, and its folder gives the result without the model."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import limited
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.probes.multifractal import visits
from fastscape.reports import storage
from fastscape.runs import folder as folders
from fastscape.runs.journal import Journal
from fastscape.runs.plan import Plan
from fastscape.runs.units import Here

RADII = tuple(np.logspace(-3, -1, 5))
QUICK = fs.AnalysisSettings(bootstrap=10, permutations=9)


def made():
    torch.manual_seed(5)
    x = torch.randn(40, 6)
    return fs.Objective(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), [(x, torch.arange(40) % 3)],
                        criterion=F.cross_entropy)  # fmt: skip


@pytest.fixture
def objective():
    return made()


def settings(count=9, **others):
    return fs.ProbeSettings(**({"radii": RADII, "count": count, "banks": 2, "precision": "difference"} | others))


def same(first, second):
    for name in ("even", "odd", "noise", "base", "radii", "eps_abs", "counts", "batches"):
        assert getattr(first.measured, name).tobytes() == getattr(second.measured, name).tobytes()
    assert repr(first.analysis.estimates) == repr(second.analysis.estimates)  # with NaN where there is no interval
    assert (first.loss, first.accuracy) == (second.loss, second.accuracy)


class Stopped(Here):
    """Ctrl-C after so many units."""

    left = 3

    def map(self, units, seconds):
        for found in super().map(units, seconds):
            yield found
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


@pytest.fixture
def stopped(monkeypatch):
    """Runs that Ctrl-C ends after ``n`` units, until ``stopped(None)``."""
    return lambda after: monkeypatch.setattr(
        visits, "Here", Here if after is None else type("Stopped", (Stopped,), {"left": after})
    )


@pytest.mark.parametrize("after", [1, 3])
def test_a_run_goes_on_where_it_ended_and_evaluates_nothing_twice(objective, tmp_path, stopped, after, monkeypatch):
    folder = tmp_path / "run"
    stopped(after)
    partial = fs.multifractal(objective, settings(), QUICK, resume=folder)
    assert partial.meta["stop_reason"] == "interrupted"
    stopped(None)
    held = len(Journal(folder).done)
    whole = fs.multifractal(objective, settings(), QUICK, resume=folder)
    same(whole, fs.multifractal(objective, settings(), QUICK))
    assert whole.meta["stop_reason"] == "all directions done"
    assert held >= after
    assert len(Journal(folder).done) == 2 * 3

    def never(*_arguments):
        raise AssertionError("all is there")

    monkeypatch.setattr(visits, "responder", never)
    same(fs.multifractal(objective, settings(), QUICK, resume=folder), whole)
    same(fs.multifractal(objective, settings(5), QUICK, resume=folder), fs.merge(folder))


def test_a_folder_gives_the_result_without_the_model_also_of_an_unfinished_run(objective, tmp_path, stopped):
    folder = tmp_path / "run"
    stopped(2)
    partial = fs.multifractal(objective, settings(), QUICK, resume=folder, name="mine")
    merged = fs.merge(folder)
    same(merged, partial)
    assert (merged.name, merged.meta["stop_reason"]) == ("mine", "unfinished")
    assert "partial result: unfinished" in merged.flags
    stopped(None)
    whole = fs.multifractal(objective, settings(), QUICK, resume=folder, name="mine")
    merged = fs.merge(folder)
    same(merged, whole)
    assert merged.notes == whole.notes
    assert merged.meta["stop_reason"] == "all directions done"
    assert merged.meta["plan"] == fs.load(whole.save(tmp_path / "whole")).meta["plan"]
    same(fs.load(merged.save(tmp_path / "merged")), whole)
    str(merged)
    longer = fs.multifractal(objective, settings(12), QUICK, extend=merged)
    same(longer, fs.multifractal(objective, settings(12), QUICK))


def test_what_may_differ_goes_on_and_the_budget_is_one_of_it(objective, tmp_path):
    folder = tmp_path / "run"
    fs.multifractal(objective, settings(5, precision=None), QUICK, method="graph", run=fs.Run(resume=folder))
    assert Journal(folder).done
    analysis = dataclasses.replace(QUICK, variant="odd")
    longer = fs.multifractal(objective, settings(12, precision=None), analysis, resume=folder, memory=2**28, target=1e-9)
    same(longer, fs.multifractal(objective, settings(12), analysis))


def test_an_open_ended_run_under_a_budget_goes_on(objective, tmp_path, clock, monkeypatch):
    class Slow(Here):
        def map(self, units, seconds):
            for found in super().map(units, seconds):
                clock.now += 1
                yield found

    monkeypatch.setattr(visits, "Here", Slow)
    folder = tmp_path / "run"
    first = fs.multifractal(objective, settings(None), QUICK, budget=20, resume=folder)
    assert first.meta["stop_reason"] == "deadline"
    assert first.directions > 0
    second = fs.multifractal(objective, settings(None), QUICK, budget=20, resume=folder)
    assert second.directions > first.directions
    for bank, count in enumerate(first.measured.counts):
        assert (first.measured.even[bank, :, :count] == second.measured.even[bank, :, :count]).all()
    assert fs.merge(folder).measured.even.tobytes() == second.measured.even.tobytes()


def test_a_trajectory_goes_on(tmp_path, digits, stopped):
    files = zoo.train(zoo.cnn(width=2), zoo.digits(samples=64), tmp_path / "training", steps=4, checkpoints=2)
    torch.manual_seed(5)
    objective = fs.Objective(zoo.cnn(width=2), [(digits[0][0][:32], digits[0][1][:32])], criterion=F.cross_entropy)
    folder, probe = tmp_path / "run", settings(5, bank_batches="rotate")
    stopped(1)
    fs.trajectory(objective, files, probe, QUICK, resume=folder)
    merged = fs.merge(folder)
    assert [point.name for point in merged.points] == ["step0"]
    stopped(None)
    whole = fs.trajectory(objective, files, probe, QUICK, resume=folder)
    for a, b, c in zip(whole.points, fs.trajectory(objective, files, probe, QUICK).points, fs.merge(folder).points, strict=True):
        same(a, b)
        same(c, b)
    with pytest.raises(ValueError, match="is of other kind, identities; use another folder|is of other kind"):
        fs.multifractal(objective, probe, QUICK, resume=folder)
    with pytest.raises(ValueError, match="is of other checkpoints"):
        fs.trajectory(objective, files[::-1], probe, QUICK, resume=folder)


def test_a_journal_of_another_run_is_refused_before_any_work(objective, tmp_path, untouched):
    folder = tmp_path / "run"
    fs.multifractal(objective, settings(2), QUICK, resume=folder)
    x, y = objective.batches[0]
    with torch.no_grad():
        other = made()
        other.model[0].bias[0] += 1e-6
    twice = fs.Objective(objective.model, [(x, y)], criterion=lambda out, y: 2 * F.cross_entropy(out, y))
    for changed, words in (
        (other, "weights"),
        (fs.Objective(objective.model, [(x + 1, y)], criterion=F.cross_entropy), "data"),
        (fs.Objective(objective.model, [(x, y)], criterion=F.cross_entropy, params="0.*"), "parameters"),
    ):
        with untouched(changed.model), pytest.raises(ValueError, match=f"is of other {words}; use another folder"):
            fs.multifractal(changed, settings(2), QUICK, resume=folder)
    with pytest.raises(ValueError, match="resume must be the journal .* got other loss function"):
        fs.multifractal(twice, settings(2), QUICK, resume=folder)
    for changes, words in (
        ({"seed": 1}, "seed"),
        ({"radii": RADII[:4]}, "radii"),
        ({"scale": "unit", "banks": 3}, "banks, scale"),
    ):
        with pytest.raises(ValueError, match=f"is of other {words}; use another folder"):
            fs.multifractal(objective, settings(2, **changes), QUICK, resume=folder)
    with pytest.raises(ValueError, match="got other precision"):
        fs.multifractal(objective, settings(2, precision="float64"), QUICK, resume=folder)
    with pytest.raises(ValueError, match="method must be that of the plan, 'graph', got 'dispatch'"):
        fs.multifractal(objective, settings(2), QUICK, resume=folder, method="dispatch")
    earlier = fs.multifractal(objective, settings(2), QUICK)
    for given in ("extend", "plan"):
        with pytest.raises(ValueError, match=f"{given} must be left out with resume="):
            fs.multifractal(objective, settings(2), QUICK, resume=folder, **{given: earlier})


def test_damaged_units_are_evaluated_again_and_it_is_said(objective, tmp_path):
    folder = tmp_path / "run"
    whole = fs.multifractal(objective, settings(), QUICK, resume=folder)
    (file,) = folder.glob("units.*.jsonl")
    file.write_bytes(file.read_bytes()[:-37])
    again = fs.multifractal(objective, settings(), QUICK, resume=folder)
    same(again, whole)
    assert "left out of the journal: 1 torn or changed line" in again.flags


def test_what_was_chosen_is_chosen_anew_where_its_file_is_damaged_and_it_is_said(objective, tmp_path):
    folder = tmp_path / "run"
    whole = fs.multifractal(objective, settings(3), QUICK, resume=folder)
    file = folder / "point.0.npz"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match="at least one unit, .* left out of the journal: 1 damaged file of what was chosen"):
        fs.merge(folder)
    again = fs.multifractal(objective, settings(3), QUICK, resume=folder)
    same(again, whole)
    assert any(flag.startswith("left out of the journal: 1 damaged file") for flag in again.flags)
    same(fs.merge(folder), whole)


def test_names_that_are_no_text_go_on_and_are_saved_as_text(objective, tmp_path):
    for name in (Path("a/b"), 7, 7):
        result = fs.multifractal(objective, settings(2), QUICK, resume=tmp_path / str(name).replace("/", ""), name=name)
        result.save(tmp_path / "saved.npz")
        assert fs.load(tmp_path / "saved.npz").name == str(name)


class _Elsewhere:
    """A lock on a file system that shows none to other machines."""

    def __init__(self, *_arguments, **_keywords):
        pass

    def release(self):
        pass


@pytest.mark.filterwarnings("ignore:precision='float32'")
@pytest.mark.parametrize(
    ("mine", "other"), [(("float64", "loop"), ("float32", "loop")), (("float64", "loop"), ("float64", "vmap"))]
)
def test_two_runs_that_chose_otherwise_in_one_folder_are_not_put_together(objective, tmp_path, monkeypatch, mine, other):
    """As two machines may begin at once: each plans by itself, and their units come to the folder in turn."""
    folder, began = tmp_path / "run", []

    def run(way, count):
        return fs.multifractal(objective, settings(count, precision=way[0]), QUICK, method=way[1], resume=folder)

    class Interleaved(Here):
        """Of the run that began first: the other makes its plan and a part of its units between two of these."""

        def map(self, units, seconds):
            for found in super().map(units, seconds):
                if not began:
                    began.append(True)
                    with monkeypatch.context() as patch:  # it looked into the folder before there was a plan
                        patch.setattr(visits, "states", lambda _journal: {})
                        run(other, 5)
                yield found

    monkeypatch.setattr(folders, "Lock", _Elsewhere)
    monkeypatch.setattr(visits, "Here", Interleaved)
    first = run(mine, 3)
    monkeypatch.setattr(visits, "Here", Here)
    same(first, alone := fs.multifractal(objective, settings(3, precision=mine[0]), QUICK, method=mine[1]))
    merged = fs.merge(folder)
    same(merged, alone)
    resumed = run(mine, 9)
    same(resumed, fs.multifractal(objective, settings(9, precision=mine[0]), QUICK, method=mine[1]))
    for result in (merged, resumed, fs.merge(folder)):
        assert any(re.match(r"left out of the journal: \d+ results of another plan", flag) for flag in result.flags), result.flags
    (folder / "point.0.npz").unlink()  # what was chosen is lost: the units are nobody's
    same(run(other, 9), fs.multifractal(objective, settings(9, precision=other[0]), QUICK, method=other[1]))
    same(fs.merge(folder), run(other, 9))


def test_a_journal_without_labels_goes_on(objective, tmp_path, monkeypatch):
    """As earlier versions wrote it."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "label", lambda _self, _group: "")
        fs.multifractal(objective, settings(5), QUICK, resume=folder)
    assert not any('"way"' in file.read_text() for file in folder.glob("units.*.jsonl"))
    held = len(Journal(folder).done)
    resumed = fs.multifractal(objective, settings(), QUICK, resume=folder)
    same(resumed, fs.multifractal(objective, settings(), QUICK))
    assert len(Journal(folder).done) == 2 * 3
    assert sum(file.read_text().count('"way"') for file in folder.glob("units.*.jsonl")) == 2 * 3 - held


def test_folders_without_a_journal_have_no_result(objective, tmp_path, stopped):
    with pytest.raises(ValueError, match=r"folder must be the journal of a run .*has no manifest.json"):
        fs.merge(tmp_path)
    Journal(tmp_path / "empty").begin({"kind": "multifractal", "checkpoints": ["model"]}, ())
    with pytest.raises(ValueError, match="folder must hold at least one unit"):
        fs.merge(tmp_path / "empty")


def test_units_wait_for_the_plan_that_they_follow(objective, tmp_path, monkeypatch):
    """A disk that is full when the plan is to be written, and for the whole run, or until its end."""
    save, folder = storage.save, tmp_path / "run"

    def refused(*arguments):
        if len(Journal(folder).done) == 0 and left.pop():
            raise OSError(28, "No space left on device")
        return save(*arguments)

    monkeypatch.setattr(storage, "save", refused)
    left = [True, True]
    result = fs.multifractal(objective, settings(), QUICK, resume=folder)
    assert any("the journal lacks what was evaluated of model" in flag for flag in result.flags)
    assert Journal(folder).done == {}, "nobody could go on with units of an unknown plan"
    left = [False, True]
    again = fs.multifractal(objective, settings(), QUICK, resume=folder)
    same(again, result)
    assert not any("the journal lacks" in flag for flag in again.flags)
    assert len(Journal(folder).done) == 2 * 3
    same(fs.merge(folder), result)


def test_a_probe_with_a_journal_leaves_no_trace(bn_net, bn_objective, untouched, tmp_path):
    with untouched(bn_net):
        fs.multifractal(bn_objective, settings(2), QUICK, resume=tmp_path / "run")
        fs.multifractal(bn_objective, settings(3), QUICK, resume=tmp_path / "run")


KILLED = """
import os, signal, sys
import test_resumption as here
from fastscape.runs import journal
from fastscape.runs.journal import Journal

append, left = Journal.append, [int(sys.argv[2])]
def killed(self, *arguments):
    left[0] -= 1
    if left[0] == 0 and sys.argv[3] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, *arguments)
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
Journal.append = killed
here.fs.multifractal(here.made(), here.settings(), here.QUICK, resume=sys.argv[1])
"""


@pytest.mark.parametrize(
    ("unit", "when"),
    [(3, "before"), *(pytest.param(unit, when, marks=pytest.mark.slow) for unit in range(1, 7) for when in ("before", "after"))],
)
def test_a_process_that_is_killed_by_the_system_loses_one_unit_at_most(objective, tmp_path, unit, when):
    """SIGKILL in another process; what it planned and evaluated is taken over by this one."""
    folder = tmp_path / "run"
    path = os.pathsep.join((str(Path(__file__).parent), *(entry for entry in sys.path if entry)))
    command = [sys.executable, "-c", KILLED, str(folder), str(unit), when]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, preexec_fn=limited(), check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(Journal(folder).done) == unit - (when == "before")
    plan = Plan.of(fs.merge(folder)) if len(Journal(folder).done) else None
    resumed = fs.multifractal(objective, settings(), QUICK, resume=folder)
    assert plan in (None, Plan.of(resumed))
    same(resumed, fs.multifractal(objective, settings(), QUICK, plan=resumed))
