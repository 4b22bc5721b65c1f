"""Ctrl-C at any instruction of what switches something leaves nothing switched, nor lost signals."""

import contextlib
import gc
import math
import os
import signal

import pytest
import torch
from injection import Injector, interrupted, whole_state
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape._generators import _Drawing
from fastscape._interrupts import Restoring, held_signals, undo
from fastscape._state import (
    RoundedProducts,
    entered,
    exact_arithmetic,
    kept_generators,
    left_on_failure,
    plain_arithmetic,
    preserved_rng,
)
from fastscape._warnings import filtered_warnings


@pytest.fixture(autouse=True)
def _none_waits_to_be_destroyed():
    """A block that Ctrl-C left is switched back as it is destroyed: here, and not in a later test."""
    yield
    gc.collect()


def plain():
    with plain_arithmetic(torch.float64):
        torch.zeros(2)


def exact():
    with exact_arithmetic(torch.float32):
        torch.rand(2)


def nested():
    with exact_arithmetic(torch.float64), plain_arithmetic(torch.float32):
        torch.rand(2)


def preserved():
    with preserved_rng():
        torch.rand(2)


def kept():
    with kept_generators():
        torch.rand(2)


def redirected():
    with _Drawing():
        torch.rand(2)


def rounded():
    with plain_arithmetic(torch.float32), RoundedProducts():
        pass


def filtered():
    with filtered_warnings("a", "b"):
        pass


def stacked():
    with contextlib.ExitStack() as stack:
        entered(stack, exact_arithmetic(torch.float64))
        torch.rand(2)


def around():
    block = exact_arithmetic(torch.float64)
    with left_on_failure(block):
        torch.rand(2)
    block.__exit__()


BLOCKS = (plain, exact, nested, preserved, kept, redirected, rounded, filtered, around)


def leaks(work, every, first=1):
    """Places where Ctrl-C at every so-many-th instruction left something, and the number of them all."""
    found, at, count, came = [], first, 0, True
    while came:
        came, place, left = interrupted(work, at)
        if left:
            found.append((place, sorted(left)))
        at, count = at + every, count + came
    return found, count


@pytest.mark.parametrize("work", BLOCKS)
def test_ctrl_c_at_some_instructions_of_a_block_leaks_nothing(work):
    work()  # imports and caches of the first time
    found, count = leaks(work, 997 if work is redirected else 97, first=7)
    assert not found
    assert count > 3


@pytest.mark.slow
@pytest.mark.parametrize("work", BLOCKS)
def test_ctrl_c_at_every_instruction_of_a_block_leaks_nothing(work):
    """About 16 000 instructions in all."""
    work()
    found, count = leaks(work, 13 if work is redirected else 1)
    assert not found
    assert count > 200


def model_and_data():
    """Everything that could be disturbed: batch norm, dropout, buffers, gradients, training mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))
    data = [(torch.randn(8, 4), torch.randint(0, 3, (8,)))]
    F.cross_entropy(model(data[0][0]), data[0][1]).backward()
    return model, data


CALLS = {
    "loss": lambda objective: objective.loss(),
    "gradient": lambda objective: objective.gradient(),
    "responses": lambda objective: fs.responses(
        objective, fs.Directions(objective, 2), [1e-2], precision="float64", method="loop"
    ),
    "product": lambda objective: fs.ggn(objective) @ torch.ones(objective.size),
    "slice": lambda objective: fs.slice1d(objective, count=1, points=3),
    "doctor": lambda objective: fs.doctor(objective),
}


def lines_of(work):
    """Number of lines that a call runs in the package."""
    with Injector(math.inf, instructions=False) as injector:
        work()
    return injector.count


def ctrl_c_in_calls(untouched, name, share, generator):
    """Ctrl-C at a share of the lines of a public call; what each left."""
    model, data = model_and_data()

    def work():
        CALLS[name](fs.Objective(model, data, criterion=F.cross_entropy))

    work()
    lines, count = lines_of(work), 0
    for at in torch.randint(1, lines, (max(1, int(share * lines)),), generator=generator).tolist():
        with untouched(model):
            came, place, left = interrupted(work, at, instructions=False)
        assert not left, (place, left)
        count += came
    return count


@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
@pytest.mark.parametrize("name", ["loss", "responses"])
def test_ctrl_c_at_some_instants_of_a_call_leaves_the_process_and_the_model(untouched, name):
    assert ctrl_c_in_calls(untouched, name, 0.001, torch.Generator().manual_seed(1)) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_at_many_instants_of_a_call_leaves_the_process_and_the_model(untouched, name):
    assert ctrl_c_in_calls(untouched, name, 0.02, torch.Generator().manual_seed(2)) > 10


# ---------------------------------------------------------------------- signals


def hold_and_raise(came):
    with held_signals:
        with held_signals:
            os.kill(os.getpid(), signal.SIGUSR1)
            signal.raise_signal(signal.SIGINT)
        assert not came
        signal.raise_signal(signal.SIGUSR1)


def test_signals_wait_for_the_end_of_the_outermost_block_and_none_is_lost():
    came = []
    before = signal.signal(signal.SIGUSR1, lambda *_: came.append("usr1"))
    try:
        with pytest.raises(KeyboardInterrupt):
            hold_and_raise(came)
        assert came == ["usr1", "usr1"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGUSR1, before)


class Counting(Restoring):
    """Three steps, one of which may fail, to the order of which each adds."""

    def __init__(self, order, fails=None):
        self.order, self.fails = order, fails

    def _begin(self, later):
        for step in range(3):
            later(lambda step=step: self.order.append(-step))
            self.order.append(step)
            if step == self.fails:
                raise ValueError(step)
        return True


def test_what_was_begun_is_undone_in_reverse_where_the_beginning_fails():
    order = []
    with pytest.raises(ValueError, match="1"), Counting(order, fails=1):
        pass
    assert order == [0, 1, -1, 0]


def test_every_step_back_is_taken_though_one_raises():
    done = []

    def fail():
        raise ValueError("one")

    with pytest.raises(ValueError, match="one"):
        undo([lambda: done.append(1), fail, lambda: done.append(2)])
    assert done == [2, 1]


def test_a_block_that_is_destroyed_before_its_end_is_ended():
    before = whole_state()
    block = plain_arithmetic(torch.float64)
    block.__enter__()
    assert whole_state() != before
    del block
    assert whole_state() == before
