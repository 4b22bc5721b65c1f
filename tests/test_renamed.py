"""The earlier name of a keyword does what the new one does, says so once, and is refused beside it."""

import inspect
import warnings

import numpy as np
import pytest
import torch

import fastscape as fs
from fastscape._renamed import METHOD
from fastscape.runs.run import settled, shared_keywords
from tests.runs.test_run import DOORS, METHODS, MODEL, OTHER, door_of, objective

RADII = [1e-3, 1e-2]
FUNCTIONS = {  # that take no shared keywords: a call, what to compare, a method
    "losses": (lambda o, **k: fs.losses(o, fs.Directions(o, 2), RADII, **k).numpy(), "vmap"),
    "responses": (lambda o, **k: fs.responses(o, fs.Directions(o, 2), RADII, **k).even, "loop"),
    "operators": (lambda o, **k: len(fs.operators(o, **k).rows), "dispatch"),
    "quadratic_forms": (lambda o, **k: fs.quadratic_forms(o, fs.Directions(o, 2), **k).curvature, "dispatch"),
    "hessian": (lambda o, **k: (fs.hessian(o, **k) @ torch.ones(o.size, dtype=torch.float64)).numpy(), "reverse"),
    "ggn": (lambda o, **k: (fs.ggn(o, **k) @ torch.ones(o.size, dtype=torch.float64)).numpy(), "forward"),
    "CurvatureOperator": (
        lambda o, **k: (fs.CurvatureOperator(o, "hessian", **k) @ torch.ones(o.size, dtype=torch.float64)).numpy(),
        "forward",
    ),
}
PROBES = [door for door in DOORS if "method" in shared_keywords(door_of(door))]


def warned(call):
    """What a call returns, and its warnings, which come from this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call()
    assert {warning.filename for warning in caught} <= {__file__}
    return found, [(warning.category, str(warning.message)) for warning in caught]


def said(name):
    return [(DeprecationWarning, f"path= of {name}() is now method=; the old name will be removed")]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_both_names_give_the_same_and_the_earlier_one_warns_once(name):
    call, method = FUNCTIONS[name]
    now, silent = warned(lambda: call(objective(), method=method))
    before, words = warned(lambda: call(objective(), path=method))
    assert np.array_equal(now, before)
    assert (silent, words) == ([], said(name))
    with pytest.raises(TypeError, match=rf"^{name}\(\) got method= and path=, its earlier name; leave path= out"):
        call(objective(), method=method, path=None)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_earlier_name_is_refused_by_the_new_one(name):
    with (
        pytest.raises(ValueError, match="^method must be .*, got 'sideways'"),
        pytest.warns(DeprecationWarning, match="now method="),
    ):
        FUNCTIONS[name][0](objective(), path="sideways")


@pytest.mark.parametrize("door", PROBES, ids=lambda door: door.__name__)
def test_a_probe_is_told_by_either_name(door):
    method = METHODS.get(door, "reverse")
    now, silent = warned(lambda: settled(door_of(door), {"method": method}))
    with pytest.warns(DeprecationWarning, match=rf"^path= of {door.__name__}\(\) is now method=; the old name will be removed$"):
        before = settled(door_of(door), {"path": method})
    assert (before, silent) == (now, [])
    assert before.method == method
    with pytest.raises(TypeError, match=r"got method= and path=, its earlier name"):
        settled(door_of(door), {"method": method, "path": method})


def test_the_warning_of_a_probe_names_the_line_that_called_it():
    call = lambda: fs.slice1d(objective(), count=1, points=3, path="loop")  # noqa: E731
    assert warned(call)[1] == said("slice1d")
    assert warned(lambda: fs.Difficulty(objective(), every=1, path="reverse"))[1] == said("Difficulty")


def test_a_run_takes_and_leaves_out_the_earlier_name():
    run, words = warned(lambda: fs.Run(seed=1, path="loop"))
    assert (run, words) == (fs.Run(seed=1, method="loop"), said("Run"))
    assert repr(run) == "Run(seed=1, method='loop')"
    assert run.without("path") == run.without("method") == fs.Run(seed=1)


@pytest.mark.parametrize("door", [fs.barrier, fs.sharpness, fs.bench])
def test_a_function_without_a_method_does_not_know_the_earlier_name_either(door):
    with pytest.raises(TypeError, match="unexpected keyword argument 'path'"):
        settled(door, {"path": "loop"})


def test_a_file_is_still_a_path(tmp_path):
    record = tmp_path / "record.jsonl"
    with fs.Tracker(objective(), when=[0], share=1e6, what=("loss",), path=record) as tracker:
        tracker.step(0)
    found = fs.barrier(objective(), MODEL, OTHER, points=5, start=3)
    assert record.exists()
    assert found.path == "line"
    assert fs.load(path=found.save(path=tmp_path / "line.npz")).a == found.a


def test_every_public_function_with_a_method_is_tried_and_a_path_is_of_a_file_or_of_a_result():
    doors = {
        name: door_of(value) for name in fs.__all__ if inspect.isroutine(value := getattr(fs, name)) or inspect.isclass(value)
    }
    takes = {name: inspect.signature(door).parameters for name, door in doors.items()}
    always = {"temperature", "TemperatureResult", "Estimate", "serve", "trace", "TraceEstimate"}  # had the word from the start
    assert METHOD == {"path": "method"}
    assert {name for name in takes if "method" in takes[name]} == {*FUNCTIONS, "Run"} | always
    assert {name for name in takes if "path" in takes[name]} == {
        "Tracker", "load", "BarrierResult", "QuadraticForms", "Responses"
    }  # fmt: skip
