"""Units on the workers of an executor: the numbers of one process, and what goes wrong there told in words."""

import hashlib
import multiprocessing
import os
import pickle
import platform
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import fastscape as fs
from fastscape import _clock, zoo
from fastscape.probes.multifractal.units import UnitEvaluator
from fastscape.runs import executor_workers
from fastscape.runs.executor_workers import ExecutorWorkers, Hired, WorkerError
from fastscape.runs.units import Unit
from fastscape.zoo.source import Source

PRECISIONS = {"loop": "float64", "graph": "difference"}
PROBE = {"count": 6, "banks": 2, "radii": (1e-4, 1e-3, 1e-2, 1e-1)}
evaluate = UnitEvaluator.__call__


def objective(samples=48, criterion=F.cross_entropy):
    torch.manual_seed(0)
    return fs.Objective(zoo.mlp(), zoo.digits(samples=samples, batch_size=samples), criterion=criterion)


def digest(result):
    points = getattr(result, "points", [result])
    arrays = [array for point in points for array in (point.measured.even, point.measured.odd)]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def probed(path="loop", of=None, count=6, **options):
    settings = fs.ProbeSettings(precision=PRECISIONS[path], **PROBE | {"count": count})
    return fs.multifractal(of or objective(), settings, method=path, **options)


class Inline:
    """The least that an executor is: it evaluates as it is asked, and its results have nothing but ``result``."""

    def __init__(self, fails=lambda number: False):
        self.sent, self._fails = 0, fails

    def submit(self, function, argument):
        assert pickle.loads(pickle.dumps(function)) is function
        assert type(argument) is bytes
        number, self.sent = self.sent, self.sent + 1
        if self._fails(number):
            return Result(OSError(f"worker {number} was ended"))
        return Result(function(argument))


class Result:
    def __init__(self, value):
        self._value = value

    def result(self):
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


# ---------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("path", PRECISIONS)
def test_workers_give_the_numbers_of_this_process(path, threads, untouched):
    alone, source = probed(path), partial(objective)
    of = objective()
    with untouched(of.model):
        by_threads = probed(path, of, executor=threads)
    by_inline = probed(path, Source(source), executor=Inline())
    assert digest(by_threads) == digest(by_inline) == digest(alone)
    assert digest(probed(path, plan=by_threads)) == digest(alone)
    spent = by_threads.meta["evaluations"], probed(path, plan=by_threads, executor=Inline()).meta["evaluations"]
    assert min(spent) > 2 * 4 * by_threads.directions
    workers = by_threads.meta["workers"]
    assert (workers["engine"], workers["size"], workers["oom"]) == ("ThreadPoolExecutor", 1, {})
    assert workers["machines"] == [platform.node()]
    assert sum(workers["units"]) * by_threads.meta["plan"]["ways"][0]["unit"] >= by_threads.directions
    assert by_inline.meta["workers"]["engine"] == "Inline"


def test_responses_and_trajectories(threads, tmp_path):
    of = objective()
    directions, radii = fs.Directions(of, count=10), [1e-3, 1e-2]
    found = fs.responses(of, directions, radii, precision="difference", executor=threads, resume=tmp_path / "journal")
    alone = fs.responses(of, directions, radii, plan=found.plan)
    assert (found.even.tobytes(), found.odd.tobytes()) == (alone.even.tobytes(), alone.odd.tobytes())
    inline = Inline()
    again = fs.responses(of, directions, radii, precision="difference", executor=inline, resume=tmp_path / "journal")
    assert again.even.tobytes() == alone.even.tobytes()
    assert inline.sent == 0  # the journal has all
    files = [tmp_path / f"step{step}.safetensors" for step in (1, 2)]
    for step, file in enumerate(files):
        torch.manual_seed(step)
        save_file(zoo.mlp().state_dict(), file)
    settings = fs.ProbeSettings(**PROBE, precision="float64")
    along = [fs.trajectory(of, files, settings, method="loop", **options) for options in ({}, {"executor": threads})]
    assert digest(along[0]) == digest(along[1])


def test_a_run_goes_on_from_what_its_workers_did(tmp_path, threads):
    folder = tmp_path / "journal"
    with pytest.raises(fs.ProbeError, match="worker 4 was ended"):
        probed(executor=Inline(lambda number: number > 2), resume=folder)
    inline = Inline()
    assert digest(probed(executor=inline, resume=folder)) == digest(probed())
    assert inline.sent > 0
    assert digest(fs.merge(folder)) == digest(probed())


def test_processes_make_the_objective_of_a_source(tmp_path):
    """A pool that spawns, and a factory, data and weights by name."""
    file = tmp_path / "weights.safetensors"
    torch.manual_seed(7)
    save_file(zoo.mlp().state_dict(), file)
    source = Source("zoo:mlp", data="zoo:digits?samples=48&batch_size=48", state=file)
    assert len(pickle.dumps(source)) < 1000
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = {path: probed(path, source, executor=pool) for path in PRECISIONS}
        state = pool.submit(torch.is_grad_enabled).result(), pool.submit(torch.get_num_threads).result()
    assert state == (True, torch.get_num_threads())
    for path, result in found.items():
        assert digest(result) == digest(probed(path, source))
        assert result.meta["workers"]["units"] != []
        assert "bitwise" not in result.meta


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def scaled(outputs, targets):
    return F.cross_entropy(2 * outputs, targets)


@pytest.mark.parametrize(
    "options", [{"loss": loss_of}, {"criterion": scaled}, {"criterion": F.cross_entropy}], ids=["loss", "criterion", "known"]
)
def test_an_objective_pickles_whatever_weights_its_batches(options):
    """Batches of 30 and 18 samples, of the second of which some labels are ignored."""
    torch.manual_seed(0)
    data = list(zoo.digits(samples=48, batch_size=30))
    data[1][1][:2] = -100 if "loss" in options else 1
    of = fs.Objective(zoo.mlp(), data, **options)
    again = pickle.loads(pickle.dumps(of))
    assert (again.loss(), again.batch_weights, again.remarks) == (of.loss(), of.batch_weights, of.remarks)
    assert [again.terms(batch) for batch in data] == [of.terms(batch) for batch in data] == list(of.batch_weights)


# ---------------------------------------------------------------------- refusals


def test_another_objective_on_a_worker_is_refused():
    smooth = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    for options, words in (({"samples": 47}, "other data, batch weights"), ({"criterion": smooth}, "other loss function")):
        source = Source(partial(made_there, options))
        made_there.here = True
        with pytest.raises(ValueError, match=f"workers must make the objective that the caller has, got {words} on "):
            probed(of=source, executor=Elsewhere())


class Elsewhere(Inline):
    """Workers that read other data than the caller did."""

    def submit(self, function, argument):
        made_there.here = False
        return super().submit(function, argument)


def made_there(options):
    return objective(**({} if made_there.here else options))


def test_weights_that_changed_since_are_refused(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save(zoo.mlp().state_dict(), file)
    source = Source("zoo:mlp", data="zoo:digits?samples=48", state=file)
    assert source.make().weight_fingerprint() != Source("zoo:mlp", data="zoo:digits?samples=48").make().weight_fingerprint()
    torch.save(zoo.mlp().state_dict(), file)
    with pytest.raises(ValueError, match="state must be the file that it was"):
        source.make()


def test_what_cannot_travel_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="factory must pickle .*; in place of lambdas .* a module defines at its top level"):
        Source(lambda: objective())
    with pytest.raises(ValueError, match="criterion must pickle"):
        Source("zoo:mlp", data="zoo:digits", criterion=lambda outputs, targets: outputs.sum())
    with pytest.raises(ValueError, match="objective must pickle .* lambdas"):
        probed(of=objective(criterion=lambda outputs, targets: F.cross_entropy(outputs, targets)), executor=Inline())
    monkeypatch.setattr("fastscape.runs.making._LARGEST", 1000)
    with pytest.raises(ValueError, match=r"objective must pickle to less .* pass fs.Source\(factory, state="):
        probed(executor=Inline())
    with pytest.raises(ValueError, match="data and options belong to a model that text names, got data, params"):
        Source(objective, "zoo:digits", params="*")
    with pytest.raises(TypeError, match="factory must be a function .* got 3"):
        Source(3)
    with pytest.raises(TypeError, match="data must be text"):
        Source("zoo:mlp", [1])
    with pytest.raises(ValueError, match="state must be a file of weights"):
        Source("zoo:mlp", data="zoo:digits", state=tmp_path / "none.pt")
    with pytest.raises(ValueError, match="data must name the batches"):
        Source("zoo:mlp").make()
    with pytest.raises(ValueError, match="criterion must be one of cross_entropy, mse, bce or"):
        Source("zoo:mlp", data="zoo:digits", criterion="hinge").make()


def test_wrong_executors_are_refused(monkeypatch):
    for wrong in (3, ThreadPoolExecutor, object()):
        with pytest.raises(TypeError, match=r"executor must have submit\(function, argument\), got"):
            probed(executor=wrong)
    with pytest.raises(ValueError, match="distributed must be left out with executor="):
        probed(executor=Inline(), distributed=True)
    with pytest.raises(ValueError, match="distributed must be left out with executor="):
        fs.responses(of := objective(), fs.Directions(of, 2), [1e-2], executor=Inline(), distributed=True)
    if "fork" not in multiprocessing.get_all_start_methods():
        return
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:  # starts nothing before a submit
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        with pytest.raises(ValueError, match=r"executor must not fork .*get_context\('spawn'\)"):
            probed(executor=pool)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
        with pytest.warns(UserWarning, match="executor forks this process, in which torch has 8 threads"):
            Hired(pool, objective)


# ---------------------------------------------------------------------- what goes wrong midway


def test_a_failure_is_tried_again_once(untouched):
    lost = Inline(lambda number: number in (0, 3))
    assert digest(probed(executor=lost)) == digest(probed())
    of = objective()
    with untouched(of.model), pytest.raises(WorkerError, match=r"unit \(0, 0, 0, 0\) on a worker: OSError: worker \d+ was ended"):
        probed(of=of, executor=Inline(lambda _number: True))  # nothing to keep
    with pytest.raises(fs.ProbeError, match=r"worker \d+ was ended") as caught:
        probed(executor=Inline(lambda number: number > 3))
    partial_result = caught.value.partial.points[0]
    whole = probed()
    assert 0 < partial_result.directions < whole.directions


def test_an_executor_that_takes_no_more_leaves_what_there_is():
    class Broken(Inline):
        def submit(self, function, argument):
            if self.sent == 5:
                raise RuntimeError("the pool is shut down")
            return super().submit(function, argument)

    with pytest.raises(fs.ProbeError, match="executor took no unit .* the pool is shut down") as caught:
        probed(executor=Broken())
    assert caught.value.partial.points[0].directions >= 4


def test_threads_of_the_caller_take_no_products_that_need_it_alone(threads):
    settings = fs.ProbeSettings(precision="difference-bf16", **PROBE)
    with pytest.raises(ValueError, match=r"executor must have processes of its own for precision='difference-bf16'"):
        fs.multifractal(objective(), settings, method="graph", executor=threads)


def test_an_error_in_a_unit_is_told_with_its_machine(monkeypatch):
    def failing(self, unit):
        if unit.bank == 1:
            raise ArithmeticError("no loss")
        return evaluate(self, unit)

    monkeypatch.setattr(UnitEvaluator, "__call__", failing)
    words = rf"unit \(0, 0, 1, 0\) on {platform.node()} \(process {os.getpid()}\): ArithmeticError: no loss"
    with pytest.raises(fs.ProbeError, match=words):
        probed(executor=Inline())


def test_a_shortage_of_memory_is_recorded(monkeypatch):
    from fastscape.differences.evaluator import DifferenceEvaluator

    responses = DifferenceEvaluator.responses

    def short(self, directions, indices, radii, **options):
        if len(indices) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return responses(self, directions, indices, radii, **options)

    plan = probed("graph")
    monkeypatch.setattr(DifferenceEvaluator, "responses", short)
    found = probed("graph", plan=plan, executor=Inline())
    assert found.meta["workers"]["oom"] == {"0": 1}
    assert found.meta["bitwise"] is False
    torch.testing.assert_close(torch.tensor(found.measured.even), torch.tensor(plan.measured.even), rtol=1e-4, atol=1e-12)


# ---------------------------------------------------------------------- groups and time


class Pool:
    """Workers on a clock of their own: a unit takes a second, and what waits can be cancelled."""

    def __init__(self, slots):
        self._max_workers, self.futures, self.groups, self.most = slots, [], [], 0

    def submit(self, function, argument):
        group = pickle.loads(argument)
        self.groups.append(len(group.keys))
        future = Future()
        future.group = group
        self.futures.append(future)
        self.most = max(self.most, sum(not each.done() for each in self.futures))
        return future

    def pause(self, _seconds):
        """A second passes for the worker of the first group that waits; others have begun, as far as there are slots."""
        waiting = [future for future in self.futures if not future.done()]
        for future in waiting[: self._max_workers]:
            if not future.running():
                future.set_running_or_notify_cancel()
        if not waiting:
            return
        group = waiting[0].group
        self.now += len(group.keys)
        values = tuple((key, repr(key).encode(), 1.0, None) for key in group.keys)
        answer = executor_workers._Answer(("there", 1), group.made, values)
        waiting[0].set_result(pickle.dumps(answer))

    now = 0.0


def mapped(monkeypatch, units, seconds, slots=2):
    pool = Pool(slots)
    monkeypatch.setattr(_clock, "read", lambda: pool.now)
    monkeypatch.setattr(_clock, "sleep", pool.pause)
    with Hired(pool, objective) as hired:
        found = dict(ExecutorWorkers(hired, lambda unit: unit.point).map(units, seconds))
    return pool, found


def test_groups_grow_and_few_are_outstanding(monkeypatch):
    units = [Unit(0, 0, 0, block) for block in range(400)]
    pool, found = mapped(monkeypatch, units, float("inf"))
    assert found == {unit: repr(unit.key).encode() for unit in units}
    assert pool.groups[:2] == [1, 1]
    assert max(pool.groups) == 20
    assert pool.most == 8
    assert sum(pool.groups) == 400


def test_a_deadline_drops_what_has_not_begun(monkeypatch):
    units = [Unit(0, 0, 0, block) for block in range(400)]
    pool, found = mapped(monkeypatch, units, 60.0)
    assert 20 < len(found) < 120
    assert pool.now <= 60 + 2 * 15  # what had begun, a quarter of the time each
    assert all(future.done() for future in pool.futures)
    assert list(found) == units[: len(found)]


def test_closing_drops_what_is_out(monkeypatch):
    pool = Pool(2)
    monkeypatch.setattr(_clock, "read", lambda: pool.now)
    monkeypatch.setattr(_clock, "sleep", pool.pause)
    with Hired(pool, objective) as hired:
        found = ExecutorWorkers(hired, lambda unit: unit.point).map([Unit(0, 0, 0, block) for block in range(40)])
        for _ in range(3):
            next(found)
        found.close()
    assert any(future.cancelled() for future in pool.futures)
    assert all(future.done() or future.running() for future in pool.futures)


def test_what_is_ready_comes_before_an_error():
    """One unit always fails; all answers are there at once."""

    class Ready:
        _max_workers, sent = 2, ()

        def submit(self, function, argument):
            group, future = pickle.loads(argument), Future()
            ((*_, block),) = group.keys
            self.sent = {*self.sent, block}
            values = tuple((key, b"", 20.0, None) for key in group.keys)
            wrong = {"failed": "no loss"} if block == 1 else {"values": values}
            future.set_result(pickle.dumps(executor_workers._Answer(("there", 1), group.made, **wrong)))
            return future

    pool, found = Ready(), []

    def collect(pairs):
        for unit, _ in pairs:
            found.append(unit.block)

    with Hired(pool, objective) as hired:
        pairs = ExecutorWorkers(hired, lambda unit: unit.point).map([Unit(0, 0, 0, block) for block in range(40)])
        with pytest.raises(WorkerError, match="no loss"):
            collect(pairs)
    assert sorted([*found, 1]) == sorted(pool.sent) == list(range(len(pool.sent)))
    assert len(pool.sent) < 40


def test_a_thread_that_comes_after_its_call_does_nothing():
    with Hired(Inline(), objective) as hired:
        pass
    group = executor_workers._Group(hired.call, executor_workers._process(), b"", None, ((0, 0, 0, 0),), 1.0, {})
    answer = pickle.loads(executor_workers.work(pickle.dumps(group)))
    assert (answer.values, answer.refused, answer.failed) == ((), "", "")


def test_a_run_takes_its_executor_to_a_probe_that_has_workers():
    pool = Inline()
    found = probed(run=fs.Run(executor=pool))
    assert pool.sent > 0
    assert digest(found) == digest(probed())
    with pytest.raises(ValueError, match=r"what slice1d\(\) takes of it, .*, got executor="):
        fs.slice1d(objective(), run=fs.Run(executor=pool))
    with pytest.raises(TypeError, match="executor must have submit"):
        probed(run=fs.Run(executor=3))
