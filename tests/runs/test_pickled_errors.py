"""Exceptions of the package go through pickle, as those of a worker process do."""

import importlib
import inspect
import pickle
import pkgutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape
import fastscape as fs

SKIPPED = ("fastscape._native", "fastscape.__main__", "fastscape.zoo.__main__")  # a library without Python; programs


def error_classes():
    for module in pkgutil.walk_packages(fastscape.__path__, "fastscape."):
        if module.name.startswith(SKIPPED):
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(kind) and issubclass(kind, BaseException) and kind.__module__ == module.name:
                yield kind


CLASSES = list(error_classes())


@pytest.mark.parametrize("kind", CLASSES, ids=[kind.__name__ for kind in CLASSES])
def test_an_exception_goes_through_pickle_with_all_it_has(kind):
    error = kind("words", {"known": 1}) if issubclass(kind, fs.PartialResultError) else kind("words")
    error.add_note("a note")
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        found = pickle.loads(pickle.dumps(error, protocol))
        assert type(found) is kind
        assert (str(found), found.args, vars(found)) == (str(error), error.args, vars(error))


class Failing(nn.Module):
    """Raises once, at the given forward."""

    def __init__(self, at):
        super().__init__()
        self.linear, self.left = nn.Linear(4, 3), [at]

    def forward(self, x):
        self.left[0] -= 1
        if self.left[0] == -1:
            raise RuntimeError("midway")
        return self.linear(x)


def failing(work):
    """The error of a call whose model raises late."""
    torch.manual_seed(0)
    data = [(torch.randn(8, 4), torch.randint(0, 3, (8,)))]
    for at in (30, 40, 120, 20, 60):
        objective = fs.Objective(Failing(at), data, criterion=F.cross_entropy)
        try:
            work(objective)
        except fs.PartialResultError as error:
            return error
        except Exception:  # before anything was known
            continue
    return None


@pytest.mark.parametrize(
    "work",
    [
        lambda objective: fs.slice1d(objective, count=40, points=21),
        lambda objective: fs.slice2d(objective, points=7, method="loop"),
        lambda objective: fs.multifractal(
            objective, fs.ProbeSettings(count=8, banks=2), fs.AnalysisSettings(bootstrap=20, permutations=19), method="loop"
        ),
    ],
    ids=["slice1d", "slice2d", "multifractal"],
)
@pytest.mark.filterwarnings("ignore")
def test_the_partial_result_of_an_error_goes_through_pickle(work):
    error = failing(work)
    assert error is not None
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert type(found.partial) is type(error.partial)
    assert str(found.partial) == str(error.partial)
