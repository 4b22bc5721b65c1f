"""What people pass by mistake: an exception that names the argument, what it got and what to write, before any work."""

import inspect
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.runs.optimizers import OptimizerState
from fastscape.runs.run import shared_keywords

X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1, 0, 2, 2, 1])


def network(width=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


MODEL, OTHER = network(), network(6)
OBJECTIVE = fs.Objective(MODEL, [(X[:4], Y[:4]), (X[4:], Y[4:])], criterion=F.cross_entropy)
DIRECTIONS = fs.Directions(OBJECTIVE, 4)
HESSIAN = fs.hessian(OBJECTIVE)
FOREIGN = fs.Directions(fs.Objective(OTHER, [(X, Y)], criterion=F.cross_entropy), 8)


RADII, BANK = np.geomspace(1e-3, 1e-1, 6), np.random.default_rng(0).standard_normal((6, 8)) ** 2


def made(model=MODEL, data=((X, Y),), **options):
    return fs.Objective(model, list(data), **({"criterion": F.cross_entropy} | options))


OF_OBJECTIVES = {
    "class": (lambda: made(nn.Linear), "model must be a torch.nn.Module, got type; pass an instance"),
    "state dict": (lambda: made(MODEL.state_dict()), "model must be a torch.nn.Module, got OrderedDict; pass the module"),
    "function": (lambda: made(lambda x: x), "model must be a torch.nn.Module, got function; pass the network itself"),
    "no loss": (lambda: fs.Objective(MODEL, [(X, Y)]), "pass either criterion= .* or loss= .*, got neither"),
    "two losses": (lambda: made(loss=lambda m, b: 0), "pass either criterion= .* or loss= .*, got both"),
    "dtype": (lambda: made(dtype="float64"), "dtype must be .*, got 'float64'; use such as torch.float64"),
    "integers": (lambda: made(dtype=torch.int64), "dtype must be .*, got torch.int64"),
    "batch norm": (lambda: made(batch_norm=True), "batch_norm must be 'running', 'batch' or None, got True"),
    "normalised": (lambda: OBJECTIVE.normalised("eval"), "batch_norm must be 'running', 'batch' or None, got 'eval'"),
    "memory": (lambda: made(memory="1GB"), "memory must be a positive number of bytes, got '1GB'"),
    "no memory": (lambda: made(memory=0), "memory must be a positive number of bytes, got 0"),
    "negative memory": (lambda: made(memory=-1), "memory must be a positive number of bytes, got -1"),
    "parameters": (lambda: made(params=list(MODEL.parameters())), "params must be names .*, got Parameter; write such as"),
    "generator": (lambda: made(params=MODEL.parameters()), "params must be names .*, got generator; write such as"),
    "number": (lambda: made(params=3), r"params must be names .*, got int; write such as params='0\.weight'"),
    "module": (lambda: OBJECTIVE.at(OTHER), r"state must be a state dict, got Sequential; pass its state_dict\(\)"),
    "path": (lambda: OBJECTIVE.at("a.pt"), r"state must be a state dict, got str; pass .*torch.load\(path\)"),
    "checkpoint": (lambda: OBJECTIVE.at({"model": MODEL.state_dict()}), "state must match .*; pass its entry 'model'"),
    "batch": (lambda: OBJECTIVE.on(2), "batch must be below the number of batches, 2, got 2"),
    "batch name": (lambda: OBJECTIVE.on("first"), "batch must be an integer, got 'first'"),
}
OF_EVALUATIONS = {
    "words": (lambda: fs.losses(OBJECTIVE, DIRECTIONS, ["a"]), r"radii must be a vector of numbers, got \['a'\]"),
    "text": (lambda: fs.responses(OBJECTIVE, DIRECTIONS, "0.1"), "radii must be a vector of numbers, got '0.1'"),
    "complex": (lambda: fs.losses(OBJECTIVE, DIRECTIONS, [1j]), "radii must be a vector of numbers"),
    "truth": (lambda: fs.losses(OBJECTIVE, DIRECTIONS, [True]), "radii must be a vector of numbers"),
    "none": (lambda: fs.responses(OBJECTIVE, DIRECTIONS, None), "radii must be a vector of numbers, got None"),
    "ragged": (lambda: fs.losses(OBJECTIVE, DIRECTIONS, [[1], [1, 2]]), "radii must be a vector of numbers"),
    "count": (lambda: fs.losses(OBJECTIVE, 4, [0.1]), "directions must be fastscape.Directions, got int; make them"),
    "tensors": (lambda: fs.losses(OBJECTIVE, DIRECTIONS[0], [0.1]), "directions must be fastscape.Directions, got dict"),
    "none mean": (lambda: fs.mean_quadratic_form(OBJECTIVE, None), "directions must be fastscape.Directions, got NoneType"),
    "foreign mean": (lambda: fs.mean_quadratic_form(OBJECTIVE, FOREIGN), "directions must be made for this objective"),
    "list": (lambda: fs.Directions.given(OBJECTIVE, [torch.zeros(3)]), r"tensors\[0\] must map parameter names .* got Tensor"),
    "string": (lambda: fs.Directions.given(OBJECTIVE, "ab"), r"tensors\[0\] must map parameter names to tensors, got str"),
    "name": (lambda: DIRECTIONS["0.weight"], "a direction is taken by its index, an integer, got '0.weight'"),
    "array": (lambda: HESSIAN @ np.ones(OBJECTIVE.size), "vector must be a tensor.*got ndarray; .*from_numpy"),
}
OF_PROBES = {
    "operator": (lambda: fs.spectra(OBJECTIVE, ["a.pt"], operator="fisher"), "operator must be 'hessian' or 'ggn', got 'fisher'"),
    "rank": (lambda: fs.spectra(OBJECTIVE, ["a.pt"], k=999), "k must be at most D = 43, got 999"),
    "targets": (lambda: fs.spectrum(OBJECTIVE, targets="trace"), "targets must map 'eigenvalues' or 'trace' .*, got 'trace'"),
    "states": (lambda: fs.spectra(OBJECTIVE, [MODEL.state_dict()]), r"checkpoints\[0\] must be the path .*, got OrderedDict"),
    "models": (lambda: fs.trajectory(OBJECTIVE, [MODEL]), r"checkpoints\[0\] must be the path of a file, got Sequential"),
    "none": (lambda: fs.trajectory(OBJECTIVE, [None]), r"checkpoints\[0\] must be the path of a file, got NoneType"),
    "solutions": (lambda: fs.barriers(OBJECTIVE, MODEL), r"checkpoints must be a sequence of solutions"),
    "result": (lambda: fs.load(3), "path must name a result file, got int"),
    "one logger": (lambda: fs.Tracker(OBJECTIVE, every=1, loggers=np.array("x")), r"loggers must be a sequence of functions"),
    "one batch": (lambda: fs.analyse([BANK], eps=RADII, batches=torch.tensor(0.0)), "batches must be a sequence of numbers"),
    "one path": (lambda: fs.trajectory(OBJECTIVE, np.array("x")), "checkpoints must be a sequence of paths of files"),
    "no parts": (lambda: fs.slice1d(OBJECTIVE, {}), r"directions\[0\] must not be zero"),
    "short": (lambda: fs.slice2d(OBJECTIVE, torch.zeros(2)), r"directions must have shape \[D = 43, k\], got \[2\]"),
    "none among": (lambda: fs.slice2d(OBJECTIVE, [None]), "directions must hold tensors by parameter name, got NoneType"),
    "no checkpoints": (
        lambda: fs.slice2d(OBJECTIVE, trajectory=[]),
        "trajectory must hold at least one checkpoint, got none",
    ),
    "no such checkpoint": (lambda: fs.slice1d(OBJECTIVE, "pca", trajectory=["a"]), r"trajectory\[0\] must be a file, got 'a'"),
    "no weights": (lambda: fs.slice2d(OBJECTIVE, trajectory=[{}]), r"trajectory\[0\]: state must match"),
    "class": (lambda: fs.quadratic_forms(OBJECTIVE, DIRECTIONS, progress=dict), "progress must be a function of .*, got type"),
    "no states": (lambda: fs.slice2d(OBJECTIVE, "pca", trajectory=[]), "trajectory must hold at least one checkpoint, got none"),
    "association": (lambda: fs.association("a", "b"), "early and outcome must hold one number per run, got 'a' and 'b'"),
    "foreign optimizer": (
        lambda: fs.edge_of_stability(OBJECTIVE, torch.optim.SGD(OTHER.parameters(), lr=0.1)),
        "optimizer must hold the parameters of Sequential in order, got 4 parameters",
    ),
    "scheduler": (
        lambda: fs.edge_of_stability(OBJECTIVE, torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD(MODEL.parameters(), lr=0.1))),
        r"optimizer must be a torch.optim.Optimizer .*, got ConstantLR; pass its .optimizer",
    ),
}


@pytest.mark.parametrize("case", [*OF_OBJECTIVES.values(), *OF_EVALUATIONS.values(), *OF_PROBES.values()])
def test_a_mistake_is_named_before_any_work(case, untouched, monkeypatch):
    call, words = case
    forwards = []
    handles = [model.register_forward_hook(lambda *_: forwards.append(1)) for model in (MODEL, OTHER)]
    try:
        with untouched(MODEL), pytest.raises((TypeError, ValueError)) as refused:
            call()
    finally:
        for handle in handles:
            handle.remove()
    assert re.search(words, " ".join(str(refused.value).splitlines()))
    assert not forwards


PROBES = (
    *(
        fs.hessian,
        fs.ggn,
        fs.multifractal,
        fs.spectrum,
        fs.slice1d,
        fs.slice2d,
        fs.sharpness,
        fs.critical_sharpness,
        fs.diagonal,
        fs.signature,
        fs.probe,
        fs.bench,
    ),
    *(fs.operators, fs.Tracker, lambda objective: fs.Directions(objective, 2)),
)


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("value", [MODEL, None, 0, "net"])
def test_everything_that_takes_an_objective_says_how_to_make_one(probe, value):
    with pytest.raises(TypeError, match=r"objective must be a fastscape.Objective, got \w+; make one of model, data and loss"):
        probe(value)


def test_an_optimizer_of_a_copy_is_still_taken():
    copied = network()
    assert (
        OptimizerState.of(torch.optim.SGD(copied.parameters(), lr=0.1), MODEL).by_parameter(MODEL).keys()
        == dict(MODEL.named_parameters()).keys()
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((X[:, :3], Y), r"the model was given inputs \(8, 3\) of torch.float32"),
        ((X.long(), Y), r"the model was given inputs \(8, 4\) of torch.int64"),
        ((X, Y[:5]), r"targets \(5,\) of torch.int64; 8 outputs want as many targets, got 5"),
        ((X, Y[:, None]), r"targets \(8, 1\) of torch.int64; classes want targets.squeeze\(1\)"),
        ((X, Y + 5), r"the targets lie in 5 .. 7, 3 classes in 0 .. 2"),
    ],
)
def test_what_model_and_criterion_fail_on_is_told(data, words):
    with pytest.raises((RuntimeError, ValueError, IndexError)) as refused:
        made(data=[data]).loss()
    assert re.search(words, " ".join(refused.value.__notes__))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda loss: loss.item(), "got float; do not call .item"),
        (lambda loss: {"loss": loss}, "got dict; take the tensor of the loss"),
        (lambda loss: (loss, 1), "got tuple; take the tensor of the loss"),
        (lambda loss: None, "got NoneType; name the tensor of the loss in its return"),
    ],
)
def test_what_a_loss_returns_is_told(value, words):
    objective = fs.Objective(MODEL, [(X, Y)], loss=lambda m, b: value(F.cross_entropy(m(b[0]), b[1])))
    with pytest.raises(TypeError, match=words):
        objective.loss()


FILE = {"checkpoints": ["a.safetensors"]}  # never read: what is wrong with the other arguments is told before
DOORS = {
    fs.Objective: {"model": MODEL, "data": [(X, Y)], "criterion": F.cross_entropy},
    fs.Directions: {"objective": OBJECTIVE},
    fs.losses: {"objective": OBJECTIVE, "directions": DIRECTIONS, "radii": [0.1]},
    fs.responses: {"objective": OBJECTIVE, "directions": DIRECTIONS, "radii": [0.1]},
    fs.quadratic_forms: {"objective": OBJECTIVE, "directions": DIRECTIONS},
    fs.mean_quadratic_form: {"objective": OBJECTIVE, "directions": DIRECTIONS, "groups": 2},
    fs.trace: {"objective": OBJECTIVE},
    fs.operators: {"objective": OBJECTIVE},
    fs.hessian: {"objective": OBJECTIVE},
    fs.ggn: {"objective": OBJECTIVE},
    fs.multifractal: {"objective": OBJECTIVE},
    fs.trajectory: {"objective": OBJECTIVE, **FILE},
    fs.spectrum: {"objective": OBJECTIVE},
    fs.spectra: {"objective": OBJECTIVE, **FILE},
    fs.slice1d: {"objective": OBJECTIVE},
    fs.slice2d: {"objective": OBJECTIVE},
    fs.barrier: {"objective": OBJECTIVE, "a": None, "b": OTHER.state_dict()},
    fs.barriers: {"objective": OBJECTIVE, **FILE},
    fs.connect: {"objective": OBJECTIVE, "a": None, "b": OTHER.state_dict()},
    fs.sharpness: {"objective": OBJECTIVE},
    fs.critical_sharpness: {"objective": OBJECTIVE},
    fs.diagonal: {"objective": OBJECTIVE},
    fs.temperature: {"objective": OBJECTIVE, "batch_size": 2, "learning_rate": 0.1},
    fs.edge_of_stability: {"objective": OBJECTIVE, "optimizer": torch.optim.SGD(MODEL.parameters(), lr=0.1)},
    fs.signature: {"objective": OBJECTIVE},
    fs.probe: {"objective": OBJECTIVE},
    fs.doctor: {"objective": OBJECTIVE},
    fs.bench: {"objective": OBJECTIVE},
    fs.Tracker: {"objective": OBJECTIVE, "when": [0, 1]},
    fs.Difficulty: {"objective": OBJECTIVE},
    fs.ProbeSettings: {},
    fs.AnalysisSettings: {},
    fs.preset: {},
    fs.analyse: {"response": [BANK], "eps": RADII},
    fs.association: {"early": [1.0, 2.0, 3.0, 4.0], "outcome": [1.0, 2.0, 3.0, 5.0]},
    fs.log_spaced: {"total_steps": 100, "count": 4},
    fs.fractions: {"total_steps": 100},
}


def parameters():
    """Every door with arguments that it takes, and the name of each of its parameters."""
    for door, given in DOORS.items():
        function = door.__init__ if isinstance(door, type) else door
        named = inspect.signature(door).parameters.values()
        names = [each.name for each in named if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
        shared = shared_keywords(function) if any(each.kind is each.VAR_KEYWORD for each in named) else ()
        for name in dict.fromkeys((*names, *shared)):
            yield door, given, name


@pytest.mark.parametrize("value", [object(), np.zeros((2, 2))], ids=["object", "array"])
@pytest.mark.parametrize(
    ("door", "given", "name"),
    [pytest.param(door, given, name, id=f"{door.__name__}-{name}") for door, given, name in parameters()],
)
def test_what_no_argument_can_be_is_named_before_any_work(door, given, name, value):
    def worked(*_):
        raise RuntimeError("a forward before the arguments were checked")

    handle = MODEL.register_forward_hook(worked)
    try:
        with pytest.raises((TypeError, ValueError)) as refused:
            door(**{**given, name: value})
    finally:
        handle.remove()
    assert {fs.preset: "preset"}.get(door, name) in str(refused.value)  # as the command line names it
