"""One Run in place of plain keywords: the same results, and a refusal of what contradicts or is not there."""

import dataclasses
import inspect
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.runs.budget import Budget
from fastscape.runs.run import settled, shared_keywords
from tests.equality import same

WORDS = {"seed": 3, "name": "asked", "step": 7, "memory": 2**28, "precision": "float64", "budget": "1h"}
WORDS |= {"targets": {"eigenvalues": 0.1, "trace": None}}
SETTINGS = fs.ProbeSettings(count=3, banks=2, radii=(1e-3, 1e-2, 1e-1, 1.0), seed=3)
TIMED = re.compile(
    r"seconds|created|elapsed|threads|versions|share|peak|reason|refused|evidence|cost|choice|budget|gradients_per_product|verdict|"
    r"plan"
)
METHODS = {fs.slice1d: "loop", fs.slice2d: "loop", fs.multifractal: "loop", fs.trajectory: "loop"}  # of the rest: of products
OWN = {fs.bench: {"budget": "3ms"}}  # its units are tried at other doors


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


MODEL, OTHER = model(), model(1)
DATA = [(torch.linspace(-1, 1, 32, dtype=torch.float64).reshape(8, 4).cos(), torch.tensor([0, 2, 1, 1, 0, 2, 2, 1]))]
SGD = torch.optim.SGD(MODEL.parameters(), lr=0.1)
SMALL = {"spectrum": {"nodes": 4, "method": "reverse"}, "slice": {"count": 4, "points": 5, "method": "loop"}}


def objective():
    """A new one: what one has evaluated it does not evaluate again."""
    return fs.Objective(MODEL, DATA, criterion=F.cross_entropy)


def tracked(**keywords):
    with fs.Tracker(objective(), when=[0], share=1e6, what=("loss",), **keywords) as tracker:
        tracker.step(0)
    return tracker.result


def summed(**keywords):
    found = fs.Difficulty(objective(), every=1, gradient="full", **keywords)
    for step in range(3):
        found.step(step, lr=0.1)
    return found.result


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for step, network in enumerate((MODEL, OTHER)):
        save_file(network.state_dict(), folder / f"step{step}.safetensors")
    return sorted(folder.iterdir())


DOORS = {  # a call that is quick, by the function
    fs.slice1d: lambda _, **k: fs.slice1d(objective(), count=2, points=5, **k),
    fs.slice2d: lambda _, **k: fs.slice2d(objective(), points=3, **k),
    fs.barrier: lambda _, **k: fs.barrier(objective(), MODEL, OTHER, points=5, start=3, **k),
    fs.barriers: lambda _, **k: fs.barriers(objective(), [MODEL, OTHER], points=5, start=3, **k),
    fs.connect: lambda _, **k: fs.connect(objective(), MODEL, OTHER, steps=2, points=5, start=3, **k),
    fs.sharpness: lambda _, **k: fs.sharpness(objective(), restarts=1, steps=2, samples=4, products=0, **k),
    fs.critical_sharpness: lambda _, **k: fs.critical_sharpness(objective(), curvature=False, **k),
    fs.diagonal: lambda _, **k: fs.diagonal(objective(), 8, estimator="xdiag", **k),
    fs.temperature: lambda _, **k: fs.temperature(objective(), batch_size=2, learning_rate=0.1, products=0, **k),
    fs.bench: lambda _, **k: fs.bench(objective(), count=1, repeats=1, **k),
    fs.spectrum: lambda _, **k: fs.spectrum(objective(), k=1, nodes=4, **k),
    fs.spectra: lambda files, **k: fs.spectra(objective(), files, k=1, nodes=4, **k),
    fs.edge_of_stability: lambda _, **k: fs.edge_of_stability(objective(), SGD, **k),
    fs.multifractal: lambda _, **k: fs.multifractal(objective(), SETTINGS, **k),
    fs.trajectory: lambda files, **k: fs.trajectory(objective(), files, SETTINGS, **k),
    fs.probe: lambda _, **k: fs.probe(objective(), ["spectrum", "slice"], options=SMALL, **k),
    fs.signature: lambda _, **k: fs.signature(objective(), what=["spectrum", "slice"], options=SMALL, **k),
    fs.Tracker: lambda _, **k: tracked(**k),
    fs.Difficulty: lambda _, **k: summed(**k),
}
every_door = pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)


def door_of(value):
    return value.__init__ if inspect.isclass(value) else value


def shared(door):
    return shared_keywords(door_of(door))


def plain(door):
    return {
        name: value
        for name, value in ({**WORDS, "method": METHODS.get(door, "reverse")} | OWN.get(door, {})).items()
        if name in shared(door)
    }


def untimed(value):
    """A result as data, without what the clock says and the words that quote it."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if not TIMED.search(str(key))}
    return [untimed(item) for item in value] if isinstance(value, (list, tuple)) else value


def content(result):
    if isinstance(result, fs.BenchResult):  # its numbers are times
        return [unit.name for unit in result.units], result.loss, result.name, result.step, result.meta["settings"]
    return untimed(result.to_dict() if hasattr(result, "to_dict") else dataclasses.asdict(result))


def test_every_function_that_takes_shared_keywords_is_tried():
    public = [getattr(fs, name) for name in fs.__all__]
    callables = [value for value in public if inspect.isfunction(value) or inspect.isclass(value)]
    taking = [value for value in callables if "keywords" in getattr(door_of(value), "__annotations__", {})]
    assert {value for value in taking if "run" in shared_keywords(door_of(value))} == set(DOORS)


@every_door
def test_a_run_gives_what_its_keywords_give(door, files):
    given = plain(door)
    first, second = DOORS[door](files, **given), DOORS[door](files, run=fs.Run(**given))
    assert same(content(first), content(second))


@every_door
def test_a_keyword_stands_beside_a_run_of_others_or_of_the_same_value(door):
    given, name = plain(door), "seed"
    others = {key: value for key, value in given.items() if key != name}
    beside = settled(door_of(door), {name: given[name], "run": fs.Run(**others)})
    again = settled(door_of(door), {name: given[name], "run": fs.Run(**given)})
    assert beside == again == settled(door_of(door), given)


@every_door
def test_two_values_of_one_keyword_are_refused(door):
    for name, value in plain(door).items():
        with pytest.raises(ValueError, match=rf"^{name} must be given once, got .* beside run\.{name} = .*; leave one out"):
            DOORS[door]([], **{name: value}, run=fs.Run(**{name: None}))


@every_door
def test_what_a_function_does_not_take_is_refused_with_the_way_to_leave_it_out(door):
    for name in {field.name for field in dataclasses.fields(fs.Run)} - set(shared(door)):
        run = fs.Run(seed=3, **{name: WORDS.get(name)})
        with pytest.raises(ValueError, match=rf"^run must say what .* takes of it, .*, got {name}=.*run\.without\('{name}'\)"):
            DOORS[door]([], run=run)
        assert run.without(name) == fs.Run(seed=3)


@every_door
def test_an_unknown_keyword_is_a_type_error_with_the_nearest_name(door):
    for name in shared(door):
        with pytest.raises(TypeError, match=rf"got an unexpected keyword argument '{name}x'; did you mean '{name}'\?"):
            DOORS[door]([], **{f"{name}x": 1})


@every_door
def test_a_run_is_a_run(door):
    with pytest.raises(TypeError, match=r"run must be a fastscape.Run, got dict; write fs.Run\(\*\*settings\)"):
        DOORS[door]([], run={"seed": 1})


@every_door
def test_the_docstring_lists_every_shared_keyword(door):
    missing = [name for name in shared(door) if not re.search(rf"^ +[\w, ]*\b{name}\b[\w, ]*: ", door.__doc__, re.MULTILINE)]
    assert not missing


def test_an_own_argument_is_the_nearest_name_as_well():
    with pytest.raises(TypeError, match=r"slice1d\(\) got an unexpected keyword argument 'point'; did you mean 'points'\?"):
        fs.slice1d(objective(), point=3)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'zzz'$"):
        fs.slice1d(objective(), zzz=3)


def test_bad_values_of_a_run_are_refused_as_plain_ones():
    for name, value in {"seed": -1, "budget": "soon", "precision": "float16", "memory": -1, "method": "jit"}.items():
        with pytest.raises(ValueError, match=name) as first:
            fs.slice1d(objective(), count=1, points=3, **{name: value})
        with pytest.raises(ValueError, match=name) as second:
            fs.slice1d(objective(), count=1, points=3, run=fs.Run(**{name: value}))
        assert str(first.value) == str(second.value)


def test_none_is_said_and_what_is_not_said_is_the_function_s_own_default():
    assert settled(fs.bench, {}).budget is None  # the fall-back of all functions
    assert settled(fs.bench, {}, budget="60s").budget == "60s"
    assert settled(fs.bench, {"run": fs.Run(budget=None)}, budget="60s").budget is None
    assert settled(fs.bench, {"run": None, "seed": 2}).seed == 2
    assert fs.Run(budget=None) != fs.Run()
    assert fs.Run().said == {}


def test_a_started_budget_is_one_deadline_for_all():
    clock = Budget("1h")
    assert fs.Run(budget=clock).clock() is clock
    assert fs.Run(budget="1h").clock().seconds == 3600


def test_runs_are_frozen_values():
    run = fs.Run("30s", seed=1)
    assert repr(run) == "Run(budget='30s', seed=1)"
    assert pickle.loads(pickle.dumps(run)) == run == dataclasses.replace(fs.Run(seed=1), budget="30s")
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.seed = 2


def test_the_seed_of_a_run_is_that_of_multifractal_directions():
    settings = dataclasses.replace(SETTINGS, seed=0)
    with pytest.raises(ValueError, match="seed must be that of probe=, 0, got 3; leave one of them out"):
        fs.multifractal(objective(), settings, run=fs.Run(seed=3))
    budget = Budget("1h")
    with pytest.raises(ValueError, match="target"):  # after the seed has been taken
        fs.multifractal(objective(), target=-1.0, run=fs.Run(seed=3, budget=budget))


@pytest.mark.parametrize("door", [fs.multifractal, fs.trajectory])
@pytest.mark.parametrize(("argument", "kind"), [("probe", fs.ProbeSettings), ("analysis", fs.AnalysisSettings)])
def test_a_field_of_the_settings_is_told_where_it_belongs(door, argument, kind):
    for name in {field.name for field in dataclasses.fields(kind)} - set(shared(door)):
        words = rf"got an unexpected keyword argument '{name}'; it belongs to {argument}=fs\.{kind.__name__}\({name}=\.\.\.\)$"
        with pytest.raises(TypeError, match=words):
            DOORS[door]([], **{name: 1})
    with pytest.raises(TypeError, match=r"'counts'; it belongs to probe=fs\.ProbeSettings\(count=\.\.\.\)$"):
        DOORS[door]([], counts=16)


@pytest.mark.parametrize("name", [Path("runs/epoch 3"), 3])
def test_a_name_that_is_no_text_becomes_one(name, tmp_path):
    objective = fs.Objective(MODEL, DATA, criterion=F.cross_entropy)
    for result in (
        fs.slice1d(objective, count=1, points=3, name=name),
        fs.slice1d(objective, count=1, points=3, run=fs.Run(name=name)),
    ):
        result.save(tmp_path / "saved.npz")
        assert fs.load(tmp_path / "saved.npz").name == str(name)
    assert "name" not in settled(fs.edge_of_stability, {}).said


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (fs.sharpness, {"epsilon": 0.05, "eta": 0.01}),
        (fs.barrier, {"tolerance": 0.5}),
        (fs.temperature, {"learning_rate": 0.5, "momentum": 0.5}),
        (fs.spectrum, {"targets": {"eigenvalues": 0.5}}),
        (fs.Tracker, {"share": 0.5}),
    ],
)
def test_numbers_of_numpy_are_numbers(call, arguments, tmp_path):
    objective = fs.Objective(MODEL, DATA, criterion=F.cross_entropy)
    few = {
        fs.sharpness: {"restarts": 1, "steps": 1, "samples": 4, "products": 0},
        fs.barrier: {"a": MODEL, "b": OTHER, "points": np.int64(5), "start": np.int64(3)},
        fs.temperature: {"batch_size": 4, "products": 0},
        fs.spectrum: {"k": 1, "nodes": 3, "method": "graph"},
        fs.Tracker: {"every": 1},
    }[call]

    def narrow(value):
        return {key: np.float32(item) for key, item in value.items()} if isinstance(value, dict) else np.float32(value)

    result = call(objective, **few, **{key: narrow(value) for key, value in arguments.items()})
    if isinstance(result, fs.Tracker):
        result = result.finish()
    result.save(tmp_path / "saved.npz")
    assert fs.load(tmp_path / "saved.npz").name == result.name
