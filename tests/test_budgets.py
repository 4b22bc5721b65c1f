"""Every public call with ``budget=`` keeps it: it returns, or refuses, one forward or product after it at the latest.

All that takes long takes simulated seconds: a forward one (of many points too), a backward pass one, a propagation of differences
one. The unit of every call is one of them on one batch. A budget that holds less than the first thing to be known is refused.
"""

import contextlib
import inspect

import pytest
import torch
from conftest import CLOCK
from safetensors.torch import save_file
from timed import Timed
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.differences.propagation import Propagation
from fastscape.runs.budget import BudgetError
from fastscape.runs.run import shared_keywords

UNIT = 1.0
BUDGETS = (0.5, 4, 21, 64, 230)
QUICK = fs.AnalysisSettings(bootstrap=2, permutations=1)


def small():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def state(seed):
    torch.manual_seed(seed)
    return Timed(small()).state_dict()


def objective(batches=2):
    torch.manual_seed(0)
    data = [(torch.randn(4, 4), torch.randint(0, 3, (4,))) for _ in range(batches)]
    return fs.Objective(Timed(small()), data, criterion=F.cross_entropy)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (1, 2):
        save_file(state(step), folder / f"step{step}.safetensors")
    return sorted(folder.iterdir())


TRAINING = {"batch_size": 2, "learning_rate": 0.1}
MULTIFRACTAL = {"multifractal": {"analysis": QUICK}}
CALLS = {
    "slice1d": lambda of, files, **run: fs.slice1d(of, points=5, **run),
    "slice2d": lambda of, files, **run: fs.slice2d(of, points=5, **run),
    "barrier": lambda of, files, **run: fs.barrier(of, *files, **run),
    "barriers": lambda of, files, **run: fs.barriers(of, [*files, None], **run),
    "connect": lambda of, files, **run: fs.connect(of, *files, **run),
    "sharpness": lambda of, files, **run: fs.sharpness(of, **run),
    "critical_sharpness": lambda of, files, **run: fs.critical_sharpness(of, **run),
    "diagonal": lambda of, files, **run: fs.diagonal(of, estimator="xdiag", **run),
    "temperature": lambda of, files, **run: fs.temperature(of, **TRAINING, **run),
    "spectrum": lambda of, files, **run: fs.spectrum(of, 3, optimizer=torch.optim.SGD(of.model.parameters(), lr=0.1), **run),
    "spectra": lambda of, files, **run: fs.spectra(of, files, 3, **run),
    "multifractal": lambda of, files, **run: fs.multifractal(of, analysis=QUICK, **run),
    "trajectory": lambda of, files, **run: fs.trajectory(of, files, analysis=QUICK, **run),
    "bench": lambda of, files, **run: fs.bench(of, **run),
    "probe": lambda of, files, **run: fs.probe(of, other=files[0], options=MULTIFRACTAL, **TRAINING, **run),
    "signature": lambda of, files, **run: fs.signature(of, other=files[0], **TRAINING, **run),
}


def takes_budget(name):
    function = getattr(fs, name)
    if not inspect.isfunction(function):
        return False
    names = set(inspect.signature(function).parameters)
    return "budget" in names | (set(shared_keywords(function)) if "keywords" in names else set())


@pytest.fixture
def timed(monkeypatch, clock):
    """All that takes long, but for the forwards of the model, takes a second."""

    def slow(function):
        def slowly(*arguments, **keywords):
            clock.now += UNIT
            return function(*arguments, **keywords)

        return slowly

    monkeypatch.setattr(torch.autograd, "grad", slow(torch.autograd.grad))
    monkeypatch.setattr(Propagation, "lanes", slow(Propagation.lanes))


def test_every_public_call_with_a_budget_is_tried_here():
    assert {name for name in fs.__all__ if takes_budget(name)} == CALLS.keys()


@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", CALLS)
def test_no_call_overruns_its_budget_by_more_than_a_forward(name, budget, timed, files):
    of, began = objective(), CLOCK.now
    with contextlib.suppress(BudgetError):
        assert CALLS[name](of, files, budget=budget).meta["stop_reason"] != "interrupted"
    assert CLOCK.now - began <= budget + UNIT + 0.5


@pytest.mark.parametrize("name", ["sharpness", "temperature", "slice1d"])
def test_a_budget_that_a_call_names_is_enough(name, timed, files):
    with pytest.raises(BudgetError) as refused:
        CALLS[name](objective(), files, budget=0.5)
    assert CALLS[name](objective(), files, budget=refused.value.enough).meta["stop_reason"] in ("complete", "deadline")


def test_the_probes_of_one_call_share_one_deadline(timed, files):
    """What one does not need goes to the others, and none of them outlasts the whole."""
    began = CLOCK.now
    found = CALLS["probe"](objective(), files, budget=300)
    assert CLOCK.now - began <= 300 + UNIT + 0.5
    assert len(found.results) >= 4
