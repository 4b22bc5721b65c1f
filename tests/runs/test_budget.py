"""Budgets: parsing, admission, and overrun of at most one unit on simulated clocks."""

import dataclasses
import random
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.cli import budgets as cli_budgets
from fastscape.probes.signature.shared_budget import Stage, run_stages
from fastscape.probes.spectrum import trajectory
from fastscape.reports.html import write_html
from fastscape.runs import budget as budgets
from fastscape.runs.budget import Budget, BudgetError, parse_seconds, time_text
from fastscape.runs.checkpoints import Checkpoint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60), ("5m", 300), ("1.5h", 5400), ("90", 90), (2.5, 2.5), ("3 min", 180), ("1 hour", 3600), ("250ms", 0.25)],
)
def test_budgets_are_read(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5s", "0", "nan", "inf", "5 days", 0.0])
def test_bad_budgets_are_named(text):
    with pytest.raises(ValueError, match=r"budget must be a positive time such as '60s'.*got"):
        parse_seconds(text)


def test_a_unit_is_admitted_while_it_ends_before_deadline_and_reserve():
    now = [100.0]
    budget = Budget(10, spent=1.0, reserve=2.0, clock=lambda: now[0])
    assert budget.remaining == 7.0
    assert budget.admits(5.0, 2.0)
    assert not budget.admits(5.1, 2.0)
    now[0] += 7
    assert budget.elapsed == 8.0
    assert not budget.admits(0.1)
    assert Budget(None).admits(1e9)


class Costly(nn.Module):
    """A forward that takes simulated time."""

    def __init__(self, clock, cost):
        super().__init__()
        self.w = nn.Parameter(torch.arange(1.0, 7.0))
        self._tick = [clock, cost]

    def __deepcopy__(self, memo):
        copy = Costly(*self._tick)
        copy.w = memo[id(self.w)]
        return copy

    def forward(self, x):
        clock, cost = self._tick
        clock[0] += cost()
        return (self.w * x).square().sum() + (self.w * x).abs().sum() ** 3


def costly_objective(clock, cost):
    return fs.Objective(Costly(clock, cost), [torch.ones(6)], loss=lambda model, batch: model(batch))


RADII = tuple(np.logspace(-3, -1, 4))
QUICK = fs.AnalysisSettings(bootstrap=2, permutations=1)
POINTS = 1 + 2 * len(RADII)


@pytest.mark.parametrize("trace", [pytest.param(n, marks=pytest.mark.slow if n >= 25 else ()) for n in range(100)])
def test_overrun_is_at_most_one_unit(trace):
    rng = random.Random(trace)
    clock, slowest = [0.0], rng.uniform(0.1, 2.0)
    objective = costly_objective(clock, lambda: rng.uniform(0.2, 1.0) * slowest)
    opening = slowest * (2 + 2 + 3 * 12 + 2 * POINTS)  # gate, path, noise: before the first unit
    seconds = opening + rng.uniform(1, 300)
    probe = fs.ProbeSettings(radii=RADII, banks=rng.choice([1, 3]))
    budget = Budget(seconds, clock=lambda: clock[0])
    result = fs.multifractal(objective, probe, QUICK, budget=budget, method="loop")
    assert result.directions > 0
    assert clock[0] <= seconds + slowest * POINTS
    assert result.meta["stop_reason"] == "deadline"


def test_a_budget_below_one_unit_is_refused_with_what_one_takes():
    clock = [0.0]
    objective = costly_objective(clock, lambda: 10.0)
    with pytest.raises(ValueError, match=r"budget must fit one direction at 4 radii, got 60 s; one takes about 90 s; "):
        fs.multifractal(objective, fs.ProbeSettings(radii=RADII), QUICK, budget=Budget(60, clock=lambda: clock[0]), method="loop")


@pytest.mark.parametrize("cost", [1e-3, 0.3, 10.0, 400.0])
@pytest.mark.parametrize("spent", [0.0, 50.0])
def test_the_budget_that_a_refusal_names_is_enough(cost, spent):
    def run(budget):
        clock = [0.0]
        limited = Budget(budget, spent=spent, reserve=5.0, clock=lambda: clock[0])
        return fs.multifractal(
            costly_objective(clock, lambda: cost), fs.ProbeSettings(radii=RADII), QUICK, budget=limited, method="loop"
        )

    with pytest.raises(ValueError, match="is enough to begin") as refused:
        run(1e-3)
    assert isinstance(refused.value, BudgetError)
    assert time_text(refused.value.enough) in str(refused.value)
    begin, useful = re.search(r"a budget of (\w+) is enough to begin, and (\w+) for 100 directions", str(refused.value)).groups()
    assert run(begin).directions >= 1
    assert run(useful).directions >= 100


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1s"), (90.1, "91s"), (120, "120s"), (121, "3m"), (7200, "120m"), (7201, "3h"), (1e6, "278h")]
)
def test_times_are_rounded_up_to_what_is_read_again(seconds, text):
    assert time_text(seconds) == text
    assert parse_seconds(text) >= seconds


def test_a_longer_budget_extends_the_same_directions():
    def run(seconds, extend=None):
        clock = [0.0]
        objective = costly_objective(clock, lambda: 0.5)
        probe = fs.ProbeSettings(radii=RADII, banks=2, seed=9)
        return fs.multifractal(
            objective, probe, QUICK, budget=Budget(seconds, clock=lambda: clock[0]), method="loop", extend=extend
        )

    short, long = run(80), run(400)
    extended = run(400, extend=short)
    few = short.measured.counts.min()
    assert 0 < short.directions < long.directions < extended.directions
    for other in (long, extended):
        np.testing.assert_array_equal(short.measured.even[:, :, :few], other.measured.even[:, :, :few])
    both = min(long.measured.counts.min(), extended.measured.counts.min())
    np.testing.assert_array_equal(long.measured.even[:, :, :both], extended.measured.even[:, :, :both])


def test_the_target_ends_the_run_early():
    clock = [0.0]
    objective = costly_objective(clock, lambda: 1e-4)
    budget = Budget(1000, clock=lambda: clock[0])
    settings = fs.AnalysisSettings(bootstrap=50, permutations=1)
    result = fs.multifractal(objective, fs.ProbeSettings(radii=RADII), settings, budget=budget, method="loop", target=0.3)
    low, high = result.analysis.estimates["m_tau_supported"].interval
    assert result.meta["stop_reason"] == "target met"
    assert (high - low) / 2 <= 0.3
    with pytest.raises(ValueError, match="target must be a positive half-width of the M_tau interval, got -1"):
        fs.multifractal(objective, target=-1)


def test_a_deadline_before_the_last_checkpoint_leaves_a_whole_result(tmp_path):
    """Unvisited checkpoints have their place in table, file and page, and the run can be continued."""
    torch.manual_seed(0)
    files = zoo.train(zoo.mlp(hidden=(4,)), zoo.digits(samples=32), tmp_path / "run", steps=8, checkpoints=4)
    objective = fs.Objective(zoo.mlp(hidden=(4,)), zoo.digits(samples=32), criterion=F.cross_entropy)
    clock = [0.0]

    def tick(_state):
        clock[0] += 1.0  # every block takes a second; everything else is free

    def run(seconds, **arguments):
        budget = Budget(seconds, clock=lambda: clock[0] - start)
        return fs.trajectory(
            objective,
            files,
            fs.ProbeSettings(radii=RADII, banks=1),
            QUICK,
            budget=budget,
            method="loop",
            progress=tick,
            **arguments,
        )

    start = clock[0]
    short = run(3.5)
    assert [point.directions for point in short.points][-1] == 0
    assert short.points[0].directions > 0
    assert "fewer than two directions were evaluated" in short.points[-1].verdict()
    assert short.points[-1].name in short.summary()
    assert "<svg" in write_html(short, tmp_path / "page.html").read_text()
    loaded = fs.load(short.save(tmp_path / "short"))
    start = clock[0]
    extended = run(40, extend=loaded)
    assert all(point.directions > 1 for point in extended.points)
    np.testing.assert_array_equal(extended.points[0].measured.even[:, :, :1], short.points[0].measured.even[:, :, :1])


def test_what_torch_loads_once_is_loaded_before_the_clock_starts(monkeypatch):
    now, loads = [0.0], []

    def load():
        loads.append(1)
        now[0] += 5.0
        return 5.0

    monkeypatch.setattr(budgets, "load_once", load)
    limited = Budget(2.0, clock=lambda: now[0])
    assert (limited.elapsed, limited.remaining) == (0.0, 2.0)
    Budget(None, clock=lambda: now[0])
    assert len(loads) == 1  # nothing is waited for without a deadline


def test_the_command_line_counts_it_as_start_up(monkeypatch):
    monkeypatch.setattr(budgets, "load_once", lambda: 5.0)
    monkeypatch.setattr(cli_budgets, "start_up", lambda: 1.0)
    with pytest.raises(BudgetError, match=r"budget must exceed the 6 s of start-up, got '3s'; 12s would leave"):
        cli_budgets.run_budget("3s", page=False, checkpoints=0)
    assert cli_budgets.run_budget(None, page=False, checkpoints=0).remaining == np.inf


def test_a_trajectory_refuses_the_whole_budget_and_says_what_took_it(tmp_path, monkeypatch):
    """Not the millisecond that was left for the first checkpoint."""
    model = nn.Linear(4, 3)
    objective = fs.Objective(model, [(torch.ones(2, 4), torch.tensor([0, 2]))], criterion=F.cross_entropy)
    files = [tmp_path / f"step{step}.pt" for step in range(2)]
    for file in files:
        torch.save(model.state_dict(), file)
    clock, read = [0.0], Checkpoint.at

    def slowly(file, objective):
        clock[0] += 6.0
        return read(file, objective)

    monkeypatch.setattr(Checkpoint, "at", slowly)
    with pytest.raises(BudgetError, match=r"leave time for 2 checkpoints, got 10 s, of which reading .* took 18 s; a budget of"):
        fs.spectra(objective, files, k=1, budget=Budget(10, clock=lambda: clock[0]))


def named(error):
    return re.search(r"a budget of (\w+) is enough to begin", str(error)).group(1)


@pytest.mark.parametrize("reserve", [0.0, 11.0])
@pytest.mark.parametrize("spent", [0.0, 4.0])
@pytest.mark.parametrize("count", [1, 8])
def test_the_budget_that_a_trajectory_names_leaves_the_page_its_time(tmp_path, monkeypatch, reserve, spent, count):
    real = trajectory.spectrum_of

    def needs_two_seconds(objective, asked, work, *others):
        if work.budget < 2.0:
            raise BudgetError("too short", 2.0)
        return real(objective, asked, dataclasses.replace(work, budget=None), *others)

    monkeypatch.setattr(trajectory, "spectrum_of", needs_two_seconds)
    model = nn.Linear(2, 2)
    objective = fs.Objective(model, [(torch.ones(2, 2), torch.tensor([0, 1]))], criterion=F.cross_entropy)
    files = [tmp_path / f"step{step}.pt" for step in range(count)]
    for file in files:
        torch.save(model.state_dict(), file)

    def run(seconds):
        budget = Budget(seconds, spent=spent, reserve=reserve, clock=lambda: 0.0)
        return fs.spectra(objective, files, k=1, nodes=4, targets={"trace": None}, budget=budget)

    with pytest.raises(BudgetError, match=f"leave time for {count} checkpoint") as refused:
        run(spent + reserve + 1.9 * count)
    assert len(run(named(refused.value)).points) == count
    assert parse_seconds(named(refused.value)) == spent + reserve + 2 * count


@pytest.mark.parametrize("reserve", [0.0, 11.0])
@pytest.mark.parametrize("spent", [0.0, 4.0])
@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_the_refusal_of_a_part_names_a_budget_of_the_whole(reserve, spent, share):
    def part(seconds):
        return share * Budget(seconds, spent=spent, reserve=reserve, clock=lambda: 0.0).remaining

    whole = Budget(16.0, spent=spent, reserve=reserve, clock=lambda: 0.0)
    told = whole.refusal(BudgetError("too short", 3.0), "the spectrum", share, spent + reserve)
    assert str(told).startswith("budget must leave 3s for the spectrum, which has ")
    assert 3.0 <= part(named(told)) <= 3.0 + share * 60
    unknown = BudgetError("too short")
    assert whole.refusal(unknown, "the spectrum", share, 0.0) is unknown


def test_a_probe_of_several_names_a_budget_of_all_with_which_it_begins():
    class Found:
        meta = {"stop_reason": "complete"}  # noqa: RUF012

    def needs(least):
        def stage(limit, _results):
            if limit.seconds < least:
                raise BudgetError("budget must be more", least)
            return Found()

        return stage

    stages = [Stage("spectrum", 4.0, needs(0.0)), Stage("slice", 1.0, needs(3.0)), Stage("barrier", 1.0, needs(5.0))]

    def run(seconds):
        return run_stages(stages, Budget(seconds, spent=4.0, reserve=11.0, clock=lambda: 0.0))

    short = run(17.0).missing
    assert set(short) == {"slice", "barrier"}
    assert all(words.startswith("its share of the budget was too small: budget must leave ") for words in short.values())
    assert not run(named(max(short.values(), key=named_seconds))).missing


def named_seconds(words):
    return parse_seconds(named(words))


def test_a_budget_that_start_up_and_page_take_names_one_that_leaves_a_second():
    with pytest.raises(BudgetError, match=r"budget must leave time for a probe, got 9 s; use 16s or more"):
        run_stages([Stage("spectrum", 1.0, None)], Budget(9.0, spent=4.0, reserve=11.0, clock=lambda: 0.0))
