"""Reading data: it ends, or is refused with what to write instead; what takes long is told."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fastscape as fs
from fastscape.objective import batches as _batches

BATCH = (torch.ones(2, 4), torch.tensor([0, 2]))


class Endless(IterableDataset):
    """Random samples without an end."""

    def __iter__(self):
        while True:
            yield np.random.randn(4).astype(np.float32), int(torch.randint(0, 3, ()))


class WrongLength:
    """Says that it has three batches."""

    def __iter__(self):
        return itertools.repeat(BATCH)

    def __len__(self):
        return 3


class NoLength(WrongLength):
    def __len__(self):
        raise NotImplementedError


def objective_of(data, **options):
    return fs.Objective(nn.Linear(4, 3), data, criterion=F.cross_entropy, **options)


ENDLESS = {
    "loader": lambda: DataLoader(Endless(), batch_size=2),
    "cycle": lambda: itertools.cycle([BATCH]),
    "repeat": lambda: itertools.repeat(BATCH),
    "generator": lambda: (BATCH for _ in itertools.count()),
    "wrong length": WrongLength,
    "no length": NoLength,
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_data_without_an_end_are_refused_with_the_remedy(kind, monkeypatch, untouched):
    monkeypatch.setattr(_batches, "_UNKNOWN_BATCHES", 50)
    model, data = nn.Linear(4, 3), ENDLESS[kind]()
    with untouched(model), pytest.raises(ValueError, match=r"data must end, got 51 batches of .*islice.*memory="):
        fs.Objective(model, data, criterion=F.cross_entropy)


def test_large_batches_of_unknown_number_are_refused_by_their_bytes(monkeypatch):
    monkeypatch.setattr(_batches, "_UNKNOWN_BYTES", 1000)
    with pytest.raises(ValueError, match=r"data must end, got \d+ batches of .*islice.*memory="):
        objective_of(itertools.repeat(BATCH))
    objective_of([BATCH] * 100)  # a list ends


@pytest.mark.parametrize("kind", ENDLESS)
def test_memory_bounds_what_is_read_of_them(kind):
    with pytest.raises(ValueError, match=r"data must fit in memory=0\.0095\d* MiB, got \d+ batches.*islice.*memory="):
        objective_of(ENDLESS[kind](), memory=10_000)


@pytest.mark.parametrize(
    "data",
    [
        lambda: itertools.islice(itertools.repeat(BATCH), 7),
        lambda: (BATCH for _ in range(7)),
        lambda: iter([BATCH] * 7),
        lambda: [BATCH] * 7,
        lambda: DataLoader(TensorDataset(torch.ones(14, 4), torch.zeros(14, dtype=torch.long)), batch_size=2),
    ],
)
def test_data_that_end_are_read_whole_and_without_a_word(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(objective_of(data()).batches) == 7


def test_data_that_cannot_fit_are_refused_after_a_few_batches():
    drawn = []

    class Large:
        def __len__(self):
            return 10_000

        def __iter__(self):
            for _ in range(10_000):
                drawn.append(1)
                yield BATCH

    with pytest.raises(ValueError, match="data must fit in memory=.*got 16 batches.*in all 10000"):
        objective_of(Large(), memory=100_000)
    assert len(drawn) == 16


def test_a_long_reading_is_told_each_time_it_has_doubled(monkeypatch):
    clock = iter(float(second) for second in itertools.count())
    monkeypatch.setattr(_batches, "now", lambda: next(clock))
    with pytest.warns(UserWarning, match="still reading data: .* unknown length .generator. may have no end; .*islice") as told:
        objective_of(BATCH for _ in range(50))
    assert len(told) == 3  # after 10, 20 and 40 seconds
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective_of([BATCH] * 50)


def test_a_data_set_in_place_of_a_loader_is_named():
    with pytest.raises(TypeError, match=r"data must be an iterable of batches.*got TensorDataset; torch.utils.data.DataLoader"):
        objective_of(TensorDataset(torch.ones(4, 4), torch.zeros(4)))
