"""Units on many processes: here each is a thread, and all share one store in memory."""

import threading
from collections import Counter
from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fastscape import _clock
from fastscape.runs.journal import Journal
from fastscape.runs.ranks import Ranks, meet
from fastscape.runs.torch_workers import RankError, TorchWorkers, lead, serve
from fastscape.runs.units import Unit, decode, encode

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
UNITS = [Unit(0, group, bank, block) for group in range(2) for bank in range(3) for block in range(4)]


def bytes_of(unit):
    return repr(unit.key).encode()


def together(size, work, evaluate=lambda rank, unit: bytes_of(unit), store=None, **options):
    """Outcomes of all ranks, exceptions too: rank 0 does ``work(workers)``, the others serve."""
    store = dist.HashStore() if store is None else store
    found = [None] * size

    def run(rank):
        try:
            ranks = meet(rank, size, store, "threads")
            own = {name: option(rank) for name, option in options.items()}
            if rank:
                own.pop("about", None), own.pop("keep", None)
                bound = partial(evaluate, rank)
                bound.lanes = own.pop("lanes", lambda: None)()
                found[rank] = serve(ranks, bound, **own)
            else:
                own.pop("learn", None), own.pop("folder", None)
                found[rank] = lead(ranks, lambda: work(TorchWorkers(ranks, lambda unit: evaluate(rank, unit), **own)))
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


class Gate:
    """Lets ranks evaluate as a test wants: waits for nothing but events."""

    def __init__(self):
        self.by, self.changed = [], threading.Condition()

    def note(self, rank, unit):
        with self.changed:
            self.by.append((rank, unit))
            self.changed.notify_all()

    def until(self, ready):
        with self.changed:
            self.changed.wait_for(lambda: ready(self.by))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_unit_is_evaluated_once_by_whoever_is_free(size):
    by = Counter()

    def evaluate(rank, unit):
        by[unit] += 1
        return bytes_of(unit)

    def work(workers):
        return sorted(workers.map(UNITS)), workers.meta["workers"]

    outcomes = together(size, work, evaluate)
    for values, meta in outcomes:
        assert values == [(unit, bytes_of(unit)) for unit in UNITS]
        assert sum(meta["units"]) == len(UNITS)
        assert len(meta["units"]) == len(meta["busy"]) == len(meta["machines"]) == meta["size"] == size
        assert meta["oom"] == {}
    assert by == dict.fromkeys(UNITS, 1)


def test_a_slow_rank_does_one_unit_while_the_other_does_the_rest():
    gate = Gate()

    def evaluate(rank, unit):
        if rank == 1:
            gate.note(rank, unit)
            gate.until(lambda by: len(by) == len(UNITS))
        else:
            gate.until(lambda by: any(other == 1 for other, _ in by))
            gate.note(rank, unit)
        return bytes_of(unit)

    ((values, units), _) = together(2, lambda workers: (sorted(workers.map(UNITS)), workers.meta["workers"]["units"]), evaluate)
    assert values == [(unit, bytes_of(unit)) for unit in UNITS]
    assert units == [len(UNITS) - 1, 1]


def test_rounds_follow_each_other_and_leave_nothing_in_the_store():
    store = dist.HashStore()

    def work(workers):
        return [sorted(workers.map(UNITS[start : start + 5])) for start in range(0, len(UNITS), 5)]

    for _ in range(2):  # also calls follow each other in one store
        first, second = together(2, work, store=store)
        assert first == second
        assert [unit for values in first for unit, _ in values] == UNITS
    assert store.num_keys() == 2  # where the ranks met


def test_what_the_first_unit_is_about_is_learnt_before_it_is_evaluated():
    learnt, gate = [], Gate()

    def evaluate(rank, unit):
        assert rank == 0 or learnt
        gate.note(rank, unit)
        gate.until(lambda by: any(rank for rank, _ in by))
        return bytes_of(unit)

    def about(rank):
        return lambda unit: {"first": unit.key}

    together(2, lambda workers: list(workers.map(UNITS[3:])), evaluate, about=about, learn=lambda rank: learnt.append)
    assert learnt == [{"first": UNITS[3].key}]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_a_unit_is_raised_on_all_ranks_and_names_it(failing):
    gate = Gate()

    def evaluate(rank, unit):
        gate.note(rank, unit)
        gate.until(lambda by: {0, 1} <= {other for other, _ in by})
        if rank == failing:
            raise ArithmeticError("no such number")
        return bytes_of(unit)

    first, second = together(2, lambda workers: list(workers.map(UNITS)), evaluate)
    assert type(first) is type(second)
    assert str(first) == str(second)
    if failing:
        assert isinstance(first, RankError)
        assert "on rank 1 (" in str(first)
        assert "ArithmeticError: no such number" in str(first)
        assert f"unit {next(unit for rank, unit in gate.by if rank).key}" in str(first)
    else:
        assert isinstance(first, ArithmeticError)


def test_values_that_were_ready_come_before_an_error():
    def evaluate(rank, unit):
        if unit == UNITS[5]:
            raise ArithmeticError
        return bytes_of(unit)

    def work(workers):
        found = []
        with pytest.raises(ArithmeticError):
            found.extend(pair for pair in iter_into(found, workers.map(UNITS[:6])))
        return found

    def iter_into(found, pairs):
        for pair in pairs:
            found.append(pair)
            yield from ()

    (found,) = together(1, work, evaluate)
    assert found == [(unit, bytes_of(unit)) for unit in UNITS[:5]]


def test_the_exception_of_rank_0_is_raised_on_all_ranks():
    class UnsendableError(Exception):
        def __init__(self, one, two):
            super().__init__(one)

    def plain(_workers):
        raise ValueError("radii must be positive")

    def local(_workers):
        raise UnsendableError("so", "it is")

    assert [str(error) for error in together(3, plain)] == ["radii must be positive"] * 3
    first, second = together(2, local)
    assert isinstance(first, UnsendableError)
    assert (type(second), str(second)) == (RuntimeError, "UnsendableError on rank 0: so")


@pytest.mark.parametrize("short", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("x: can't allocate memory: y")])
@pytest.mark.parametrize("rank_of_it", [0, 1])
def test_a_rank_without_memory_for_one_direction_leaves_its_units_to_another(short, rank_of_it):
    gate = Gate()

    def evaluate(rank, unit):
        gate.note(rank, unit)
        gate.until(lambda by: {0, 1} <= {other for other, _ in by})
        if rank == rank_of_it:
            raise short
        return bytes_of(unit)

    (values, meta), _ = together(2, lambda workers: (sorted(workers.map(UNITS)), workers.meta), evaluate)
    assert values == [(unit, bytes_of(unit)) for unit in UNITS]
    assert meta["workers"]["units"][rank_of_it] == 0
    assert Counter(rank for rank, _ in gate.by)[rank_of_it] == 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_unit_that_no_rank_has_the_memory_for_is_an_error(size):
    def evaluate(rank, unit):
        raise MemoryError

    for error in together(size, lambda workers: list(workers.map(UNITS)), evaluate):
        assert isinstance(error, MemoryError)
        assert "no memory for one direction of unit (0, 0, 0," in str(error)


def test_lanes_that_a_rank_had_to_halve_are_told():
    gate = Gate()

    def evaluate(rank, unit):
        gate.note(rank, unit)
        gate.until(lambda by: {0, 1} <= {other for other, _ in by})
        return bytes_of(unit)

    def work(workers):
        return list(workers.map(UNITS)) and workers.meta["workers"]["oom"]

    assert together(2, work, evaluate, lanes=lambda rank: lambda: 2 if rank else None) == [{"1": 2}] * 2


@pytest.mark.parametrize("seen", [True, False])
def test_each_rank_writes_its_units_where_it_sees_the_journal_and_else_rank_0_does(seen, tmp_path):
    first = Journal(tmp_path / "journal")
    first.begin({}, ())
    gate = Gate()

    def evaluate(rank, unit):
        gate.note(rank, unit)
        gate.until(lambda by: {0, 1} <= {other for other, _ in by})
        return encode(np.full((1, 1), unit.block), np.zeros((1, 1)), rank)

    folder, asked = tmp_path / ("journal" if seen else "elsewhere"), []

    def keep(unit, *line):
        asked.append(unit)
        first.append(unit, *line)

    values, _ = together(2, lambda workers: dict(workers.map(UNITS)), evaluate, folder=lambda _: folder, keep=lambda _: keep)
    first.close()
    others = {unit for unit, data in values.items() if decode(data).base}
    assert others
    assert set(asked) == (set() if seen else others)
    assert Journal(first.folder).done == {unit: values[unit] for unit in others}


def test_closing_drops_what_has_not_begun():
    begun = []

    def evaluate(rank, unit):
        begun.append(unit)
        return bytes_of(unit)

    def work(workers):
        pairs = workers.map(UNITS)
        first = next(pairs)
        pairs.close()
        return first, list(workers.map(UNITS[:1]))

    for first, later in together(1, work, evaluate):
        assert first == (UNITS[0], bytes_of(UNITS[0]))
        assert later == [first]
    assert begun == [UNITS[0], UNITS[0]]


def test_what_does_not_fit_in_the_time_is_begun_by_nobody(clock):
    begun, both = [], threading.Barrier(2)

    def evaluate(rank, unit):
        begun.append(unit)
        both.wait()
        if rank == 0:
            clock.now += 10
        both.wait()
        return bytes_of(unit)

    first, second = together(2, lambda workers: sorted(workers.map(UNITS, 30)), evaluate)
    assert first == second
    assert [unit for unit, _ in first] == sorted(begun) == UNITS[:4]  # two of 10 seconds; a third would need 12.5


def test_a_rank_that_says_nothing_is_replaced(clock, monkeypatch):
    gate, waiting = Gate(), threading.Event()
    monkeypatch.setattr(_clock, "sleep", lambda seconds: setattr(clock, "now", clock.now + 10) if waiting.is_set() else None)

    def evaluate(rank, unit):
        gate.note(rank, unit)
        gate.until(lambda by: {0, 1} <= {other for other, _ in by})
        if rank == 1:
            gate.until(lambda by: len(by) == len(UNITS) + 1)  # until another has evaluated this unit
        elif len(gate.by) == len(UNITS):
            waiting.set()
        return bytes_of(unit)

    first, _ = together(2, lambda workers: sorted(workers.map(UNITS)), evaluate)
    assert first == [(unit, bytes_of(unit)) for unit in UNITS]
    assert len({unit for _, unit in gate.by}) == len(gate.by) - 1


def test_an_interrupt_on_another_rank_ends_the_run_and_all_get_what_is_known():
    gate = Gate()

    def evaluate(rank, unit):
        gate.note(rank, unit)
        gate.until(lambda by: {0, 1} <= {other for other, _ in by})
        if rank == 1:
            raise KeyboardInterrupt
        return bytes_of(unit)

    def work(workers):
        with pytest.raises(KeyboardInterrupt):
            list(chain.from_iterable(workers.map(UNITS) for _ in UNITS))
        return "partial"

    assert together(2, work, evaluate) == ["partial"] * 2


def test_ranks_settle_together_and_fail_together():
    def meeting(size, own, settle):
        store, found = dist.HashStore(), [None] * size

        def run(rank):
            try:
                found[rank] = meet(rank, size, store, "threads").share("settled", lambda: own(rank), settle)
            except Exception as error:
                found[rank] = f"{type(error).__name__}: {error} {error.__notes__ if hasattr(error, '__notes__') else ''}"

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def one_fails(rank):
        if rank == 1:
            raise ValueError("no data here")
        return rank

    def refuse(values):
        raise ValueError(f"got {values}")

    assert meeting(3, lambda rank: rank**2, sum) == [5] * 3
    assert meeting(3, one_fails, sum) == ["ValueError: no data here ['on rank 1']"] * 3
    assert meeting(2, lambda rank: rank, refuse) == ["ValueError: got [0, 1] "] * 2


def test_what_dead_processes_left_in_the_store_is_no_answer():
    store = dist.HashStore()
    store.set("here/1", "a name that nobody has")
    place = []
    dead = threading.Thread(target=lambda: place.append(meet(0, 2, store, "")))
    dead.start()  # answers the dead one; nobody takes it
    found = meet(1, 2, store, "")
    dead.join()
    assert isinstance(found, Ranks)
    assert found.rank == 1
    place[0].tell("x", 1)
    assert found.hear("x") == ("x", 1)
