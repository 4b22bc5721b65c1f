"""Which processes share a call."""

import os
import pickle
import signal
import subprocess
import sys
from threading import Thread

import pytest
import torch
from torch import nn

import fastscape as fs
from fastscape import _clock
from fastscape._interrupts import termination
from fastscape.runs import ranks
from fastscape.runs.ranks import LeftError, RankError, Ranks, elsewhere, launched, meet, opened, ranks_of, sealed
from fastscape.runs.torch_workers import serve

ALONE = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("distributed", [None, False])
def test_a_process_alone_works_alone(distributed, tanh_objective):
    with ranks_of(distributed, tanh_objective) as found:
        assert found is None
    assert launched() is None


def test_a_launcher_of_one_process_changes_nothing(monkeypatch, tanh_objective):
    for name, value in zip(ALONE, ("0", "1", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    with ranks_of(True, tanh_objective) as found:
        assert found is None
    assert launched() is None


def test_processes_must_be_there_to_share(tanh_objective):
    with pytest.raises(ValueError, match=r"distributed=True must find .* RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT .* torchrun"):
        fs.multifractal(tanh_objective, distributed=True)
    with pytest.raises(ValueError, match="torchrun"):
        fs.responses(tanh_objective, fs.Directions(tanh_objective, count=2), [1e-3], distributed=True)


@pytest.mark.parametrize("distributed", [1, "gloo", 2.0])
def test_other_values_are_refused(distributed, tanh_objective):
    with pytest.raises(TypeError, match=r"distributed must be None, True, False or a torch.distributed.ProcessGroup, got"):
        fs.multifractal(tanh_objective, distributed=distributed)


def test_a_training_with_others_is_seen(tanh_objective, monkeypatch):
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(ranks.dist, "is_torchelastic_launched", lambda: True)
    assert ranks._together(tanh_objective)

    class DistributedDataParallel(nn.Module):
        pass

    wrapped = DistributedDataParallel()
    with pytest.warns(UserWarning, match="pass distributed=True where all ranks make it"):
        assert not ranks._together(tanh_objective)
    del wrapped
    assert ranks._together(tanh_objective)
    next(tanh_objective.model.parameters()).grad = torch.zeros_like(next(tanh_objective.model.parameters()))
    with pytest.warns(UserWarning, match="pass distributed=True"):
        assert not ranks._together(tanh_objective)


def test_an_exception_travels_with_what_it_holds():
    error = fs.ProbeError("the probe failed", "what is known")
    error.add_note("on rank 0")
    with pytest.raises(fs.ProbeError, match="the probe failed") as caught:
        opened(pickle.loads(pickle.dumps(sealed(error))))
    assert caught.value.partial == "what is known"
    assert caught.value.__notes__ == ["on rank 0"]
    assert elsewhere(caught.value)
    assert not elsewhere(error)


def test_rank_0_at_its_end_is_told_from_one_that_calls():
    store, told = torch.distributed.HashStore(), []

    def first():
        told.append(meet(0, 2, store, "", "the end").hosts)

    thread = Thread(target=first)
    thread.start()
    with pytest.raises(LeftError, match="all ranks must come to a call together, got rank 0 at the end"):
        meet(1, 2, store, "", "a call")
    assert meet(1, 2, store, "", "the end").rank == 1
    thread.join()
    assert len(told[0]) == 2


def test_a_rank_leaves_rank_0_that_has_ended_once_it_has_what_that_told():
    """Not by torchrun's SIGTERM, which is Ctrl-C to it: that one only asks rank 0 to end the run."""
    store, process = torch.distributed.HashStore(), subprocess.Popen([sys.executable, "-c", ""])
    second = Ranks(1, 2, store, "", ("here", "here"), process.pid)
    assert process.wait() == 0
    second.tell("outcome", 7)
    assert serve(second, bytes) == 7
    second.drop("outcome")
    for wait in (lambda: serve(second, bytes), lambda: second.share("exit", lambda: 0, max)):
        with pytest.raises(RankError, match="rank 0 of 2 on here has ended without a result"):
            wait()


def test_an_interrupt_whose_rank_0_has_ended_leaves(monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", ""])
    second = Ranks(1, 2, torch.distributed.HashStore(), "", ("here", "here"), os.getpid())

    def sleep(_seconds):
        monkeypatch.setattr(_clock, "sleep", lambda _seconds: None)
        second._first = process.pid
        process.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(_clock, "sleep", sleep)
    with pytest.raises(RankError, match="rank 0 of 2 on here has ended"):
        serve(second, bytes)
    assert second.told("interrupted")


@pytest.mark.parametrize("beside", [True, False])
def test_the_process_of_rank_0_is_known_to_those_beside_it_alone(beside, monkeypatch):
    store, found = torch.distributed.HashStore(), []
    thread = Thread(target=lambda: found.append(meet(1, 2, store, "")))
    processes = iter([(5, "here"), (6, "here" if beside else "there")])
    monkeypatch.setattr(ranks, "_process", lambda: next(processes))
    thread.start()  # asks once rank 0, which asks first, has answered
    meet(0, 2, store, "")
    thread.join()
    assert found[0]._first == (5 if beside else None)


def test_a_long_wait_for_others_says_what_it_waits_for(clock, monkeypatch):
    store, threads = torch.distributed.HashStore(), []

    def sleep(_seconds):
        if not threads:
            clock.now += 100
            threads.append(Thread(target=meet, args=(1, 2, store, "")))
        elif threads[0].ident is None:
            threads[0].start()

    monkeypatch.setattr(_clock, "sleep", sleep)
    with pytest.warns(UserWarning, match="waiting for the other ranks to make the same call; pass distributed=False"):
        assert meet(0, 2, store, "").rank == 0
    threads[0].join()


def test_the_end_of_a_launcher_is_an_interrupt_and_only_inside():
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), termination():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with termination():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
