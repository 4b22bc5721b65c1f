"""A tracker keeps to its share, leaves training as it is, and loses nothing."""

import json
import math
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.objective.replica import Replica
from fastscape.probes.tracking.pending import Pending
from fastscape.runs.optimizers import OptimizerState
from fastscape.runs.record import read_record

mpl.use("agg")
ROOT = Path(__file__).parents[3]


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def lines_of(path):
    return read_record(path, "track").lines


def small(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 10))
    data = zoo.digits(samples=64)
    return model, fs.Objective(model, data, criterion=F.cross_entropy), data[0]


def train(model, batch, steps, each, *, optimizer=None):
    """Minibatches from torch's global generator, which dropout draws on as well."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    torch.manual_seed(1)
    each(0, optimizer)
    for step in range(1, steps + 1):
        rows = torch.randint(len(batch[0]), (16,))
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=step % 2 == 0):
            loss = F.cross_entropy(model(batch[0][rows]), batch[1][rows])
        loss.backward()
        optimizer.step()
        each(step, optimizer)
    return torch.get_rng_state(), [tensor.clone() for tensor in model.state_dict().values()]


def simulated(steps, *, seconds=1.0, costs=None, tail=0.0, **settings):
    """A run whose training steps take ``seconds`` and whose measurements take ``costs(step)``."""
    clock = Clock()
    _model, objective, _ = small()
    costs = costs or (lambda step: 0.5)

    def measured(at, step):
        clock.now += costs(step)
        return {"value": float(step)}

    tracker = fs.Tracker(objective, what=(measured,), clock=clock, **settings)
    for step in range(steps + 1):
        if step:
            clock.now += seconds
        tracker.step(step)
    clock.now += tail
    return tracker.finish()


# ---------------------------------------------------------------------------------------- training is as it is


def test_training_is_bit_identical_with_and_without_a_tracker(untouched):
    model, objective, batch = small()
    plain = train(model, batch, 24, lambda step, optimizer: None)
    model, objective, batch = small()
    what = ("loss", "gradient", "spectrum", "slice")
    tracker = fs.Tracker(objective, every=8, share=1e6, what=what, difficulty=fs.Difficulty(objective, every=8))

    def each(step, optimizer):
        with untouched(model):
            tracker.step(step, optimizer=optimizer)

    tracked = train(model, batch, 24, each)
    assert torch.equal(plain[0], tracked[0])
    assert all(torch.equal(one, other) for one, other in zip(plain[1], tracked[1], strict=True))
    found = tracker.finish()
    assert [point.step for point in found.points] == [0, 8, 16, 24]
    assert {"loss", "gradient_norm_squared", "lambda_max", "trace", "stability_ratio", "roughness"} <= set(found.names)
    assert not any(point.left_out for point in found.points)
    assert tracker.difficulty.result.value > 0


def test_nothing_is_evaluated_when_nothing_is_due():
    _model, objective, _ = small()
    tracker = fs.Tracker(objective, every=1000, share=1e6, what=("loss",))
    tracker.step(0)
    tracker.step(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replica, "batch_loss", lambda *_: pytest.fail("a forward"))
        patch.setattr(nn.Module, "state_dict", lambda *_, **__: pytest.fail("a copy"))
        for step in range(2, 1000):
            tracker.step(step)
    assert len(tracker.result.points) == 1


def test_points_that_waited_are_of_the_weights_that_were_due_and_directions_are_the_same():
    model, objective, batch = small()
    clock, live = Clock(), []

    def slow(at, step):
        clock.now += 3.0
        along = fs.Directions(at, count=1, seed=0)[0]
        return {"loss": at.loss(), "direction": float(along["1.weight"].sum() / at.base["1.weight"].norm())}

    tracker = fs.Tracker(objective, when=(0, 1, 2, 6), share=1.0, what=(slow,), clock=clock)

    def each(step, optimizer):
        clock.now += 1.0
        live.append(objective.normalised("batch").loss())
        tracker.step(step, optimizer=optimizer)

    train(model, batch, 12, each)
    points = tracker.finish().points
    assert [point.step for point in points] == [0, 1, 2, 6]
    assert all(point.measured_at > point.step for point in points)
    assert [point.values["loss"] for point in points] == [live[point.step] for point in points]


def test_the_optimizer_s_averages_are_those_of_the_step_that_was_due():
    def ratios(share):
        model, objective, batch = small()
        clock = Clock()
        tracker = fs.Tracker(objective, when=(4,), share=share, what=("spectrum",), clock=clock)

        def each(step, optimizer):
            clock.now += 1.0
            tracker.step(step, optimizer=optimizer)

        train(model, batch, 9, each)
        (point,) = tracker.finish().points
        return point

    late, soon = ratios(20.0), ratios(1e6)
    assert (soon.measured_at, late.measured_at > 4) == (4, True)
    assert late.values["preconditioned_sharpness"] == pytest.approx(soon.values["preconditioned_sharpness"], rel=1e-3)


# ---------------------------------------------------------------------------------------- the share


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("spread", [0.0, 0.9])
def test_the_time_taken_ends_within_ten_percent_of_the_share(share, spread):
    rng = np.random.default_rng(0)
    cost = lambda step: 4.0 * (1 + spread * rng.uniform(-1, 1))  # noqa: E731
    found = simulated(5000, costs=cost, share=share, every=5)
    assert found.measured_share == pytest.approx(share, rel=0.1)
    assert found.training_seconds == 5000
    assert len(found.points) + len(found.skipped) == 1001


def test_what_fits_into_the_share_is_measured_at_every_step_that_is_due():
    found = simulated(2000, costs=lambda step: 0.5, share=0.05, when=fs.log_spaced(2000, 12))
    assert not found.skipped
    assert [point.step for point in found.points] == list(fs.log_spaced(2000, 12).steps)
    assert found.measured_share < 0.05
    assert len(found.early()) == sum(step <= 200 for step in fs.log_spaced(2000, 12).steps)


def test_points_that_stay_are_spread_over_a_run_that_cannot_afford_them_all():
    found = simulated(3000, costs=lambda step: 30.0, share=0.05, when=fs.log_spaced(3000, 20), pending=4)
    steps = [point.step for point in found.points]
    assert found.measured_share <= 0.055
    assert steps[0] == 0
    assert max(steps) > 300
    assert {point.step for point in found.skipped} | set(steps) == set(fs.log_spaced(3000, 20).steps)


def test_a_run_too_short_for_anything_says_so():
    found = simulated(5, costs=lambda step: 10.0, seconds=0.01, share=0.05, every=1)
    assert found.measured_share == 0
    assert not found.points
    assert "too short" in " ".join(found.flags)
    assert "Nothing was measured" in found.verdict()


def test_what_is_left_at_the_end_goes_to_the_last_point_first():
    found = simulated(100, costs=lambda step: 30.0, share=0.599, when=(0, 97, 98, 100), tail=1.0)
    assert [point.step for point in found.points] == [0, 100]
    assert "were left of the share" in found.skipped[0].reason


def test_difficulty_in_a_tracker_takes_norms_where_time_is_earned_and_its_gradients_at_every_step():
    model, objective, batch = small()
    sum_ = fs.Difficulty(objective, every=2)
    tracker = fs.Tracker(objective, every=1000, share=1e-9, what=("loss",), difficulty=sum_)
    train(model, batch, 9, lambda step, optimizer: tracker.step(step, optimizer=optimizer))
    assert list(sum_.result.nodes) == [0]
    assert len(sum_.result.gradient_squares) == 9
    assert list(sum_.finish().nodes) == [0, 9]


def test_a_measure_that_can_do_less_gets_an_even_share_of_what_the_plan_will_earn():
    _model, objective, _ = small()
    tracker = fs.Tracker(objective, when=fs.log_spaced(1000, 5), share=0.1, what=("spectrum",))
    tracker._measurer.costs["spectrum"] = 40.0
    tracker.allowance.training, tracker.allowance.visits = 100.0, 101  # 1 s a step: 100 s in all, 20 s for each of five
    assert tracker._measurer.need("spectrum") == pytest.approx(20.0)
    tracker._measurer.costs["spectrum"] = 400.0
    assert tracker._measurer.need("spectrum") == pytest.approx(100.0)  # less than a quarter is not begun
    tracker._measurer.costs["spectrum"] = 3.0
    assert tracker._measurer.need("spectrum") == pytest.approx(3.0)


# ---------------------------------------------------------------------------------------- what goes wrong


def test_a_measure_that_raises_is_warned_of_once_recorded_and_given_up(tmp_path):
    model, objective, batch = small()

    def broken(at, step):
        raise RuntimeError("CUDA out of memory")

    tracker = fs.Tracker(objective, every=1, share=1e6, what=("loss", broken), path=tmp_path / "a.jsonl")
    with pytest.warns(fs.TrackerWarning, match="out of memory") as caught:
        train(model, batch, 6, lambda step, optimizer: tracker.step(step, optimizer=optimizer))
    assert len(caught) == 1
    found = tracker.finish()
    assert len(found.points) == 7
    assert "CUDA out of memory" in found.points[0].left_out["broken"]
    assert "given up" in found.points[-1].left_out["broken"]
    assert lines_of(tmp_path / "a.jsonl")[0]["point"]["left_out"]["broken"].startswith("RuntimeError")


def test_a_loss_that_is_no_function_is_a_warning_and_training_goes_on():
    model, _, batch = small()
    objective = fs.Objective(
        model, [batch], loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]) * torch.rand(())
    )
    tracker = fs.Tracker(objective, every=2, share=1e6, what=("spectrum", "slice"))
    with pytest.warns(fs.TrackerWarning, match="deterministic"):
        train(model, batch, 6, lambda step, optimizer: tracker.step(step, optimizer=optimizer))
    found = tracker.finish()
    assert not found.points
    assert "NondeterministicLossError" in found.skipped[0].reason


def test_a_logger_that_raises_is_shown_once_and_the_record_is_kept(tmp_path):
    model, objective, batch = small()
    seen = []

    def bad(values, step):
        raise OSError("no network")

    loggers = [bad, lambda values, step: seen.append((step, values))]
    tracker = fs.Tracker(objective, every=2, share=1e6, what=("loss",), path=tmp_path / "a.jsonl", loggers=loggers)
    with pytest.warns(fs.TrackerWarning, match="no network") as caught:
        train(model, batch, 6, lambda step, optimizer: tracker.step(step, optimizer=optimizer))
    assert len(caught) == 1
    assert [step for step, _ in seen] == [0, 2, 4, 6]
    assert seen[0][1]["loss"] == tracker.result.points[0].values["loss"]
    assert sum("point" in line for line in lines_of(tmp_path / "a.jsonl")) == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_on_a_full_disk_training_goes_on_and_the_record_stays_in_memory():
    model, objective, batch = small()
    tracker = fs.Tracker(objective, every=2, share=1e6, what=("loss",), path="/dev/full")
    with pytest.warns(fs.TrackerWarning, match="No space left") as caught:
        train(model, batch, 6, lambda step, optimizer: tracker.step(step, optimizer=optimizer))
    found = tracker.finish()
    assert len(caught) == 1
    assert len(found.points) == 4
    assert "could not be written" in " ".join(found.notes)


def test_ctrl_c_passes_through_and_what_was_measured_is_kept(tmp_path):
    model, objective, batch = small()

    def interrupted(at, step):
        if step == 4:
            raise KeyboardInterrupt
        return {"value": 1.0}

    with (
        pytest.raises(KeyboardInterrupt),
        fs.Tracker(objective, every=2, share=1e6, what=("loss", interrupted), path=tmp_path / "a.jsonl") as tracker,
    ):
        train(model, batch, 6, lambda step, optimizer: tracker.step(step, optimizer=optimizer))
    found = tracker.result
    assert [point.step for point in found.points] == [0, 2, 4]
    assert found.points[-1].left_out == {"interrupted": "the run ended"}
    assert "end" in lines_of(tmp_path / "a.jsonl")[-1]


def test_ctrl_c_inside_a_probe_is_passed_on():
    model, objective, batch = small()
    calls = []

    def criterion(outputs, targets):
        calls.append(1)
        if len(calls) == 40:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)

    objective = fs.Objective(model, [batch], criterion=criterion)
    tracker = fs.Tracker(objective, every=1, share=1e6, what=("spectrum", "slice"))
    with pytest.raises(KeyboardInterrupt):
        train(model, batch, 50, lambda step, optimizer: tracker.step(step, optimizer=optimizer))


def test_an_optimizer_without_a_known_recursion_costs_only_its_stability():
    model, objective, batch = small()
    tracker = fs.Tracker(objective, every=3, share=1e6, what=("spectrum",))
    optimizer = torch.optim.Rprop(model.parameters(), lr=1e-4)
    train(model, batch, 3, lambda step, optimizer: tracker.step(step, optimizer=optimizer), optimizer=optimizer)
    found = tracker.finish()
    assert "lambda_max" in found.names
    assert "stability_ratio" not in found.names
    assert "Rprop" in " ".join(found.flags)


def test_a_difficulty_that_cannot_follow_is_given_up_with_a_warning():
    _model, objective, _ = small()
    tracker = fs.Tracker(objective, every=100, share=1e6, what=("loss",), difficulty=fs.Difficulty(objective))
    tracker.step(0)
    with pytest.warns(fs.TrackerWarning, match="difficulty"):
        tracker.step(1)
    tracker.step(2)
    assert tracker.difficulty is None


# ---------------------------------------------------------------------------------------- records

CHILD = """
import sys, torch, fastscape as fs
from torch.nn import functional as F
from fastscape import zoo
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
objective = fs.Objective(model, zoo.digits(samples=32), criterion=F.cross_entropy)
tracker = fs.Tracker(objective, every=2, share=1e6, what=("loss",), path=sys.argv[1])
for step in range(10**9):
    tracker.step(step)
    if step == 21:
        print("going on", flush=True)
"""


def test_after_kill_9_the_record_is_whole_and_the_next_run_goes_on_without_repeating_a_point(tmp_path):
    path = tmp_path / "a.jsonl"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, cwd=ROOT, env=environment)
    first.stdout.readline()
    os.kill(first.pid, signal.SIGKILL)  # in the middle of its steps
    first.communicate()
    with path.open("ab") as stream:
        stream.write(b'{"point": {"step": 22, "va')  # as torn by a crash of the machine
    kept = [line["point"]["step"] for line in lines_of(path) if "point" in line]
    assert kept == list(range(0, kept[-1] + 1, 2))
    assert kept[-1] >= 20

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    objective = fs.Objective(model, zoo.digits(samples=32), criterion=F.cross_entropy)
    tracker = fs.Tracker(objective, every=2, share=1e6, what=("loss",), path=path)
    for step in range(kept[-1] - 3, kept[-1] + 20):
        tracker.step(step)
    found = tracker.finish()
    lines = lines_of(path)
    steps = [line["point"]["step"] for line in lines if "point" in line]
    assert steps == list(range(0, kept[-1] + 19, 2)) == [point.step for point in found.points]
    accounts = [line["account"]["training"] for line in lines if "account" in line]
    assert accounts == sorted(accounts)


def test_a_run_that_goes_on_says_what_it_missed(tmp_path):
    _, objective, _ = small()
    settings = {"when": (0, 4, 6, 8), "share": 1e6, "what": ("loss",), "path": tmp_path / "a.jsonl"}
    first = fs.Tracker(objective, **settings)
    first.step(0)
    first.step(1)
    del first  # as a process that ended
    later = fs.Tracker(objective, **settings)
    later.step(7)
    later.step(8)
    found = later.finish()
    assert [point.step for point in found.points] == [0, 8]
    assert [(point.step, "had ended" in point.reason) for point in found.skipped] == [(4, True), (6, True)]


def test_a_record_of_another_run_is_refused(tmp_path):
    _, objective, _ = small()
    path = tmp_path / "a.jsonl"
    fs.Tracker(objective, every=2, path=path).finish()
    with pytest.raises(ValueError, match="other seed"):
        fs.Tracker(objective, every=2, path=path, seed=3)
    path.write_text(json.dumps({"other": 1}) + "\n")
    with pytest.raises(ValueError, match="must be a record of fastscape"):
        fs.Tracker(objective, every=2, path=path)


@pytest.mark.parametrize("content", ["notes without an end", '{"my": "data"}', "a line\nand another\n", "step,loss\n0,1.5\n"])
def test_a_foreign_file_is_refused_and_never_written_to(tmp_path, content):
    _, objective, _ = small()
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"path must be a record .*notes\.txt"):
        fs.Tracker(objective, every=2, path=path)
    assert path.read_text() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_of_a_version_without_locks_goes_on(tmp_path):
    _, objective, _ = small()
    path = tmp_path / "a.jsonl"
    with fs.Tracker(objective, every=1, what=("loss",), share=1e9, path=path) as tracker:
        tracker.step(0)
    first, *others = path.read_text().splitlines()
    assert json.loads(first)["track"]["format"] == 1  # the head of version 0.1
    head = json.loads(first)
    del head["track"]["batch_norm"]
    path.write_text("\n".join([json.dumps(head), *others]))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match="other"):
        fs.Tracker(fs.Objective(model, zoo.digits(samples=64), criterion=F.cross_entropy), every=1, path=path)
    assert len(lines_of(path)) == len(others)


def test_a_second_tracker_on_a_record_is_refused_until_the_first_has_finished(tmp_path):
    _, objective, _ = small()
    path = tmp_path / "a.jsonl"
    first = fs.Tracker(objective, every=1, what=("loss",), share=1e9, path=path)
    first.step(0)
    for _attempt in range(2):
        with pytest.raises(OSError, match=r"a\.jsonl.* is in use by this process .*finish\(\)"):
            fs.Tracker(objective, every=1, what=("loss",), share=1e9, path=path)
    first.step(1)
    first.finish()
    later = fs.Tracker(objective, every=1, what=("loss",), share=1e9, path=path)
    later.step(2)
    assert [point.step for point in later.finish().points] == [0, 1, 2]
    assert [line["point"]["step"] for line in lines_of(path) if "point" in line] == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------------------------------- results and arguments


def test_results_are_saved_shown_and_drawn(tmp_path):
    model, objective, batch = small()
    tracker = fs.Tracker(objective, when=fs.fractions(40, (0, 0.1, 1)), share=1e6, k=3)
    train(model, batch, 40, lambda step, optimizer: tracker.step(step, optimizer=optimizer))
    found = tracker.finish()
    again = fs.load(found.save(tmp_path / "track"))
    assert repr(again.points) == repr(found.points)
    assert again.measured_share == found.measured_share
    series = found.series("lambda_max")
    assert list(series.steps) == [0, 4, 40]
    assert np.all((series.low <= series.values) & (series.values <= series.high))
    assert "lambda max" in str(found)
    assert found.to_json()
    assert found.plot().get_title() == "lambda max"
    figure = found.section().figures[0]
    rows, columns = figure.panels
    figure.draw(list(np.atleast_1d(mpl.figure.Figure().subplots(rows, columns)).flat))
    with pytest.raises(KeyError, match="there are loss"):
        found.series("nothing")


def test_nan_losses_are_recorded_as_they_are(tmp_path):
    model, objective, _ = small()
    with torch.no_grad():
        model[1].weight.fill_(math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tracker = fs.Tracker(objective, every=1, share=1e6, path=tmp_path / "a.jsonl")
        tracker.step(0)
        found = tracker.finish()
    assert math.isnan(found.points[0].values["loss"])
    assert math.isnan(lines_of(tmp_path / "a.jsonl")[0]["point"]["values"]["loss"])
    assert found.plot() is not None


def test_the_multifractal_summary_can_be_tracked():
    _, objective, _ = small()
    tracker = fs.Tracker(objective, every=1, share=1e6, what=("multifractal",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fs.PrecisionWarning)
        tracker.step(0)
    point = tracker.finish().points[0]
    assert "m_tau" in point.values or point.notes


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({}, ValueError, "either"),
        ({"every": 1, "share": 0}, ValueError, "share"),
        ({"every": 1, "what": "loss"}, TypeError, "what"),
        ({"every": 1, "what": ("lost",)}, ValueError, "lost"),
        ({"every": 1, "what": (3,)}, TypeError, r"what\[0\]"),
        ({"every": 1, "what": ()}, ValueError, "at least one"),
        ({"every": 1, "k": 10**6}, ValueError, "k must be at most"),
        ({"every": 1, "loggers": (3,)}, TypeError, r"loggers\[0\]"),
        ({"every": 1, "pending": 0}, ValueError, "pending"),
        ({"every": 1, "difficulty": 3}, TypeError, "difficulty"),
        ({"every": 1, "path": "/nowhere/a.jsonl"}, ValueError, "existing directory"),
    ],
)
def test_bad_arguments_are_named(settings, error, words):
    with pytest.raises(error, match=words):
        fs.Tracker(small()[1], **settings)


def test_an_objective_at_a_fixed_state_and_steps_after_the_end_are_refused():
    model, objective, _ = small()
    with pytest.raises(ValueError, match="follow its model"):
        fs.Tracker(objective.at(model.state_dict()), every=1)
    tracker = fs.Tracker(objective, every=1)
    tracker.finish()
    with pytest.raises(ValueError, match="finish"):
        tracker.step(1)
    with pytest.raises(ValueError, match="step"):
        fs.Tracker(objective, every=1).step(1.5)


# ---------------------------------------------------------------------------------------- what loops are really like


class Extra(nn.Module):
    """Adds to the state dict what is no tensor."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs):
        return inputs * self.scale

    def get_extra_state(self):
        return {"calls": 1}

    def set_extra_state(self, state):
        pass


def test_extra_state_of_a_module_neither_stops_training_nor_the_points_that_wait():
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Extra()), zoo.digits(samples=16)
    clock = Clock()
    tracker = fs.Tracker(fs.Objective(model, data, criterion=F.cross_entropy), every=1, what=("loss",), share=10.0, clock=clock)
    tracker.step(0)
    clock.now += 100.0
    tracker.step(1)
    assert [point.step for point in tracker.points] == [0, 1]


def test_an_optimizer_without_a_learning_rate_does_not_stop_training():
    class Rateless(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})

    model, objective, _ = small()
    tracker = fs.Tracker(objective, every=1, what=("loss",), share=1e9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fs.TrackerWarning)
        tracker.step(0, optimizer=Rateless(model.parameters()))
        tracker.step(1, optimizer=Rateless(model.parameters()))
    assert tracker.finish().points[-1].learning_rate is None


def test_the_state_of_an_optimizer_gives_the_learning_rate_of_the_difficulty():
    model, objective, (inputs, targets) = small()
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    tracker = fs.Tracker(objective, every=1, what=("loss",), difficulty=fs.Difficulty(objective))
    tracker.step(0)
    F.cross_entropy(model(inputs), targets).backward()
    tracker.step(1, optimizer=OptimizerState.of(optimizer, model))
    assert tracker.difficulty is not None
    assert tracker.difficulty.result.learning_rates.tolist() == [0.125]


def test_a_point_that_ctrl_c_interrupted_is_measured_at_its_own_weights_when_the_loop_goes_on():
    _model, objective, _ = small()
    calls = []

    def measured(at, step):
        calls.append(step)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"norm": at.norm}

    clock = Clock()
    tracker = fs.Tracker(objective, every=2, what=(measured,), share=10.0, clock=clock)
    tracker.step(1)
    clock.now += 100.0
    with pytest.raises(KeyboardInterrupt):
        tracker.step(2)
    norm = objective.norm
    with torch.no_grad():
        for parameter in objective.model.parameters():
            parameter.fill_(3.0)
    tracker.step(3)
    assert [(point.step, point.values["norm"]) for point in tracker.points] == [(2, norm)]


def test_random_numbers_that_a_user_s_measure_draws_are_not_those_of_training():
    _model, objective, _ = small()

    def drawn(at, step):
        return {"drawn": float(torch.rand(()))}

    clock = Clock()
    tracker = fs.Tracker(objective, every=1, what=(drawn,), share=10.0, clock=clock)
    tracker.step(0)
    clock.now += 100.0
    before = torch.get_rng_state()
    tracker.step(1)
    assert tracker.points
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_that_goes_on_at_any_step_has_the_first_spectral_norm_there():
    _model, objective, _ = small()
    tracker = fs.Tracker(objective, every=1, what=("loss",), difficulty=fs.Difficulty(objective, every=10))
    tracker.step(503)
    assert tracker.difficulty is not None
    assert tracker.difficulty.result.nodes.tolist() == [503]


def test_two_measures_of_one_name_are_refused_rather_than_one_of_them_lost():
    _model, objective, _ = small()

    def loss(at, step):
        return {"other": 1.0}

    for what in ((lambda at, step: {"a": 1.0}, lambda at, step: {"b": 1.0}), ("loss", loss)):
        with pytest.raises(ValueError, match="distinct names"):
            fs.Tracker(objective, every=1, what=what)


def test_a_step_that_was_left_out_is_measured_when_a_later_process_comes_to_it_again(tmp_path):
    _model, objective, _ = small()
    for share, measured, left_out in ((1e-9, [], [0, 2]), (1e9, [0, 2], []), (1e9, [0, 2], [])):
        tracker = fs.Tracker(objective, every=2, what=("loss",), share=share, path=tmp_path / "run.jsonl")
        for step in range(4):
            tracker.step(step)
        found = tracker.finish()
        assert ([point.step for point in found.points], [point.step for point in found.skipped]) == (measured, left_out)


def test_a_record_with_a_point_of_another_form_is_refused_by_its_name(tmp_path):
    path = tmp_path / "run.jsonl"
    _model, objective, _ = small()
    fs.Tracker(objective, every=2, path=path)
    with path.open("a") as file:
        file.write('{"point": {"step": 9}}\n')
    with pytest.raises(ValueError, match=r"path .*run\.jsonl"):
        fs.Tracker(objective, every=2, path=path)


def test_steps_that_cannot_be_afforded_cost_neither_a_synchronised_line_nor_a_copy(tmp_path, monkeypatch):
    _model, objective, _ = small()
    clock, costs = Clock(), {"synchronised": 0, "copied": 0}
    keep, fsync = Pending.keep, os.fsync

    def synchronised(descriptor):
        costs["synchronised"] += 1
        fsync(descriptor)

    def kept(point, objective):
        costs["copied"] += 1
        clock.now += 1.0
        keep(point, objective)

    monkeypatch.setattr(os, "fsync", synchronised)
    monkeypatch.setattr(Pending, "keep", kept)
    path = tmp_path / "run.jsonl"
    tracker = fs.Tracker(objective, every=1, what=("loss",), share=0.05, clock=clock, path=path, pending=4)
    for step in range(400):
        tracker.step(step)
        clock.now += 0.1
    found = tracker.finish()
    assert costs["synchronised"] < 60
    assert costs["copied"] < 60
    assert found.tracker_seconds <= 1.1 * 0.05 * found.training_seconds + 4.0  # of the first four copies
    assert len(lines_of(path)) == len(found.points) + len(found.skipped) + 1


# ---------------------------------------------------------------------------------------- warm-up


def followed(rates, initial=None):
    """Points of a run whose learning rate at step t is rates[t], told by the optimizer."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    objective = fs.Objective(model, [(torch.randn(6, 4).double(), torch.arange(6) % 3)], criterion=F.cross_entropy)
    optimizer = torch.optim.SGD(model.parameters(), lr=rates[0])
    if initial is not None:
        optimizer.param_groups[0]["initial_lr"] = initial
    tracker = fs.Tracker(objective, when=range(len(rates)), share=1e6, what=("spectrum",))
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        tracker.step(step, optimizer=optimizer)
    return tracker.finish()


def test_steps_of_a_warm_up_have_no_ratio_and_no_headline():
    found = followed([0.0, 0.05, 0.1, 0.1, 0.05])
    assert [point.step for point in found.points if "stability_ratio" in point.values] == [3, 4]
    assert any("a warm-up" in note for note in found.points[2].notes)
    assert any("the learning rate is 0" in note for note in found.points[0].notes)
    only = followed([0.01, 0.02, 0.03])
    assert "stability_ratio" not in only.names or only.series("stability_ratio").steps.tolist() == [0]
    assert "of its critical value" not in str(followed([0.0, 0.1]).verdict())


def test_a_schedule_that_has_not_reached_its_rate_is_a_warm_up_until_it_falls():
    steps = [
        point.step for point in followed([0.01, 0.01, 0.1, 0.1, 0.01], initial=0.1).points if "stability_ratio" in point.values
    ]
    assert steps == [3, 4]
