"""One type tells the progress of every probe; functions of the arguments before it are called with those, and warned of."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

import fastscape as fs
from fastscape.cli.live import described
from fastscape.runs.budget import Budget
from fastscape.runs.progress import Progress, reporter
from fastscape.runs.run import shared_keywords
from tests.runs.test_run import DOORS, door_of, files  # noqa: F401 - a fixture

REPORTING = [door for door in DOORS if "progress" in shared_keywords(door_of(door))]
ONE = [fs.multifractal, fs.trajectory, fs.spectrum, fs.critical_sharpness, fs.diagonal]  # whose function always took one state
FORMER = {  # what others called it with
    fs.slice1d: (int, int),
    fs.slice2d: (int, int),
    fs.barrier: (str, float),
    fs.barriers: (str, float),
    fs.connect: (str, float),
    fs.bench: (str, float),
    fs.spectra: (str, float, Progress),
}
PATTERN = r"(?m)^(class \w*Progress\b|\w*Progress = )"
UNITS = {fs.multifractal: "direction", fs.trajectory: "direction", fs.spectrum: "product", fs.spectra: "product", fs.bench: ""}
UNITS |= {
    fs.critical_sharpness: "step",
    fs.diagonal: "product",
    fs.slice1d: "direction",
    fs.slice2d: "row",
    fs.barrier: "point",
    fs.barriers: "pair",
    fs.connect: "step",
}


def test_there_is_one_class():
    package = Path(fs.__file__).parent
    holding = [file.relative_to(package).as_posix() for file in package.rglob("*.py") if re.search(PATTERN, file.read_text())]
    assert sorted(holding) == ["cli/live.py", "runs/progress.py"]  # what draws, and what is drawn
    assert set(REPORTING) == {*ONE, *FORMER}


@pytest.mark.parametrize("door", REPORTING, ids=lambda door: door.__name__)
def test_every_probe_tells_its_state(door, files):  # noqa: F811
    seen = []
    DOORS[door](files, progress=seen.append, **({"budget": "1s"} if door is fs.bench else {}))
    assert seen
    assert {type(state) for state in seen} == {Progress}
    assert {state.unit for state in seen} == {UNITS[door]}
    names = {"step0", "step1"} if door in (fs.spectra, fs.trajectory) else {"model"}
    assert {state.name for state in seen} == names
    fractions = [state.fraction for state in seen]
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert fractions == sorted(fractions) or door in (fs.spectrum, fs.spectra)  # whose work grows as it is known
    for state in seen:
        assert state.total is None or (0 < state.done <= state.total and state.fraction >= state.done / state.total)
        assert 0 <= state.elapsed < math.inf
        assert state.remaining >= 0
        assert described(state).startswith(state.name)


@pytest.mark.parametrize("door", FORMER, ids=lambda door: door.__name__)
def test_a_function_of_the_former_arguments_gets_them_and_a_warning(door, files):  # noqa: F811
    kinds, seen = FORMER[door], []
    old = (
        (lambda one, two, three: seen.append((one, two, three))) if len(kinds) == 3 else lambda one, two: seen.append((one, two))
    )
    with pytest.warns(DeprecationWarning, match=r"^progress= is now called with one fastscape\.Progress") as caught:
        DOORS[door](files, progress=old, **({"budget": "1s"} if door is fs.bench else {}))
    assert [warning.filename.rsplit("/", 1)[1] for warning in caught] == ["test_run.py"]  # where the call is
    assert seen
    assert all(isinstance(value, kind) for row in seen for value, kind in zip(row, kinds, strict=True))


@pytest.mark.parametrize("door", REPORTING, ids=lambda door: door.__name__)
@pytest.mark.parametrize("progress", [True, lambda: None, lambda *, words: None, lambda a, b, c, d: None])
def test_what_is_no_function_of_a_state_is_refused_before_any_work(door, progress):
    with pytest.raises(TypeError, match=r"^progress must be a function of one fastscape\.Progress, got "):
        DOORS[door]([], progress=progress)


@pytest.mark.parametrize("door", ONE, ids=lambda door: door.__name__)
def test_where_it_always_was_a_state_nothing_else_is_taken(door):
    with pytest.raises(TypeError, match=r"^progress must be a function of one"):
        DOORS[door]([], progress=lambda done, total: None)


def test_nobody_is_told_nothing():
    assert reporter(None) is None


def test_the_share_is_of_the_work_or_of_the_time_whichever_is_farther():
    time = iter([0.0, 25.0, 25.0])
    state = Progress.under(Budget(100.0, clock=lambda: next(time)), "a", 0.1, unit="row", done=1, total=10)
    assert (state.fraction, state.elapsed, state.remaining) == (0.25, 25.0, 75.0)
    open_ended = iter([0.0, 30.0, 30.0])
    state = Progress.under(Budget(None, clock=lambda: next(open_ended)), "a", 0.6)
    assert (state.fraction, state.elapsed) == (0.6, 30.0)
    assert state.remaining == pytest.approx(20.0)
    nothing = Progress.under(Budget(None, clock=lambda: 0.0), "a", 0.0)
    assert nothing.remaining == math.inf


def test_attributes_have_their_former_names_too():
    state = fs.Progress("step3", unit="direction", done=12, total=64)
    assert (state.checkpoint, state.directions, state.products) == ("step3", 12, 12)
    assert fs.Progress is Progress


def test_a_line_says_what_is_known_and_nothing_else():
    state = fs.Progress("step3", unit="direction", done=12)
    assert described(state) == "step3 · 12 directions"
    assert described(dataclasses.replace(state, total=64)) == "step3 · 12 of 64 directions"
    assert described(dataclasses.replace(state, done=1)) == "step3 · 1 direction"
    assert described(dataclasses.replace(state, unit="", stage="forward")) == "step3 · forward"
    known = dataclasses.replace(state, m_tau=fs.Estimate(0.1, 0.01, (0.08, 0.12), 40), lambda_max=2.5)
    assert described(known) == "step3 · 12 directions · M_tau 0.100 [0.080, 0.120] · lambda_max 2.5"
