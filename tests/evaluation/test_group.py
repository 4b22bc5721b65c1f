"""The processes of a call: which, what they exchange, and what one of them raises."""

import os
import signal
import weakref

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

import fastscape as fs
from fastscape.evaluation.group import Group, RankError, _remade, _told, joined, ranks_of, uninterrupted
from fastscape.runs import ranks
from fastscape.runs.anytime import PartialResultError
from fastscape.runs.budget import BudgetError
from fastscape.runs.ranks import beside_others

TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE")


@pytest.fixture
def single(monkeypatch):
    """A default process group of this process alone, as torchrun would give."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Group(dist.group.WORLD, torch.device("cpu"))
    dist.destroy_process_group()


@pytest.fixture
def nobody(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def test_one_process_is_distributed_only_where_it_is_asked_for(single, tanh_objective):
    assert ranks_of(None, tanh_objective) is None
    assert ranks_of(False, tanh_objective) is None
    assert ranks_of(True, tanh_objective).size == 1
    assert ranks_of(dist.group.WORLD, tanh_objective).engine == "torch gloo"


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ("gloo", TypeError, "distributed must be None, True, False or a torch.distributed.ProcessGroup, got str"),
        (2, TypeError, "distributed must be .*, got int"),
        (dist.GroupMember.NON_GROUP_MEMBER, ValueError, "distributed must be a group that this process is in"),
    ],
)
def test_what_is_no_group_is_refused(nobody, tanh_objective, value, kind, words):
    for call in (fs.hessian, fs.ggn, fs.spectrum):
        with pytest.raises(kind, match=words):
            call(tanh_objective, distributed=value)
    with pytest.raises(kind, match=words), fs.serve(tanh_objective, distributed=value):
        pass


def test_without_a_group_or_torchrun_the_remedy_is_told(nobody, tanh_objective):
    with pytest.raises(ValueError, match=r"distributed must be False without a process group; call .*init_process_group\(\)"):
        fs.hessian(tanh_objective, distributed=True)
    with pytest.raises(ValueError, match="needs the environment of torchrun, of which RANK, .* are not set; start with torchrun"):
        fs.spectrum(tanh_objective, distributed=True)
    assert not dist.is_initialized()


def test_a_group_that_a_call_makes_ends_with_it(monkeypatch, nobody, tanh_objective):
    """With torchrun's store, which keeps the addresses of the groups before: each has a part of its own."""
    store = dist.TCPStore("localhost", 0, is_master=True)
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": store.port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    for _ in range(2):
        with joined(True, tanh_objective) as ranks:
            assert (ranks.size, dist.get_world_size()) == (1, 1)
        assert not dist.is_initialized()
    with pytest.raises(ZeroDivisionError), joined(True, tanh_objective):
        raise ZeroDivisionError
    assert not dist.is_initialized()


def test_nothing_keeps_a_group_that_a_call_made_also_not_an_exception(monkeypatch, nobody, tanh_objective):
    """Its threads end with the last reference; one that still drops a tensor when Python ends aborts the process."""
    store, groups = dist.TCPStore("localhost", 0, is_master=True), []
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": store.port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")

    def failing(_state):
        groups.append(weakref.ref(dist.group.WORLD))
        raise ZeroDivisionError

    def served(failure=None):
        with fs.serve(tanh_objective, distributed=True) as matrix:
            groups.append(weakref.ref(dist.group.WORLD))
            matrix @ torch.ones(matrix.shape[1])
            if failure:
                raise failure
        return matrix

    kept = [served()]
    for call in (lambda: fs.spectrum(tanh_objective, distributed=True, progress=failing), lambda: served(ArithmeticError())):
        with pytest.raises((fs.SpectrumError, ArithmeticError)) as caught:
            call()
        kept.append(caught.value)
    assert len(groups) == len(kept)
    assert not any(group() for group in groups)
    with pytest.raises(ValueError, match="got one that was destroyed"):
        kept[0].served.ranks.group.size()


def test_objects_and_numbers_go_round(single):
    value = {"a": torch.arange(3), "b": (1, "x", float("inf"))}
    assert torch.equal(single.gather(value)[0]["a"], value["a"])
    assert single.led(lambda: 7) == 7
    assert single.announce(3, -4) == (3, -4)
    assert single.common((3, 2**61, -5)) == (3, 2**61, -5)
    with pytest.raises(KeyError, match="here"):
        single.led(lambda: {}["here"])
    with pytest.raises(ZeroDivisionError):
        single.agreed(lambda: 1 / 0)


def test_an_exception_keeps_its_class_and_what_it_holds():
    made = PartialResultError("it failed", {"known": 3})
    made.add_note("a note")
    found = _remade(_told(made))
    assert (type(found), str(found), found.partial, found.__notes__) == (
        PartialResultError,
        "it failed",
        {"known": 3},
        ["a note"],
    )
    short = _remade(_told(BudgetError("budget must be longer", 3.0)))
    assert (str(short), short.enough) == ("budget must be longer", 3.0)
    unknown = ValueError(lambda: 0)  # does not travel
    found = _remade(_told(unknown))
    assert type(found) is RankError
    assert "ValueError" in str(found)


def test_training_beside_others_is_told_by_a_wrapper_anywhere_or_a_gradient(single, tanh_net, digits, monkeypatch):
    """Also where the probe gets the module inside the wrapper, after ``zero_grad()``: the most usual script."""
    objective = fs.Objective(tanh_net, digits, criterion=F.cross_entropy)
    wrapped = torch.nn.parallel.DistributedDataParallel(tanh_net)
    assert not beside_others(objective)  # one process
    monkeypatch.setattr(ranks, "several", lambda: True)
    assert wrapped.module is objective.model
    assert beside_others(objective)
    monkeypatch.setattr(ranks, "_wrapped", lambda: False)
    assert not beside_others(objective)
    tanh_net(digits[0][0]).sum().backward()
    assert beside_others(objective)
    tanh_net.zero_grad(set_to_none=True)
    assert not beside_others(objective)


def strike():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_waits_for_the_end_of_an_exchange():
    done = []
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def exchange(strikes):
        with uninterrupted():
            for _ in range(strikes):
                strike()
                done.append("went on")

    with pytest.raises(KeyboardInterrupt):
        exchange(1)
    assert done == ["went on"]
    with pytest.raises(KeyboardInterrupt):
        exchange(2)
    assert done == ["went on"] * 2  # the second stops at once
    with uninterrupted(drop=True):
        strike()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
