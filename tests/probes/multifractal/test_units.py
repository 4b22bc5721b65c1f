"""Whole aligned units and plans: the same bits whatever the number of directions, their order, the memory and who evaluates."""

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.evaluation.evaluator import Evaluator
from fastscape.probes.multifractal import visits
from fastscape.probes.multifractal.units import Point, UnitEvaluator
from fastscape.runs.plan import Plan
from fastscape.runs.units import Here, Unit, decode

RADII = tuple(np.logspace(-3, -1, 5))
QUICK = fs.AnalysisSettings(bootstrap=10, permutations=9)
TIGHT = 7 << 20  # bytes in which fewer directions of this network fit than in a unit
PATHS = [("float64", "loop"), ("float64", "vmap"), ("difference", "graph")]


@pytest.fixture
def objective(digits):
    """Convolutions, whose matrix products round by the number of directions at a time."""
    torch.manual_seed(5)
    return fs.Objective(zoo.cnn(width=2), [(digits[0][0][:48], digits[0][1][:48])], criterion=F.cross_entropy)


@pytest.fixture
def wide(digits):
    """Enough channels that the blocks of directions show in the last digits."""
    torch.manual_seed(5)
    return fs.Objective(zoo.cnn(), [(digits[0][0][:64], digits[0][1][:64])], criterion=F.cross_entropy)


def settings(precision=None, count=3, **others):
    return fs.ProbeSettings(radii=RADII, count=count, banks=2, precision=precision, **others)


def same(first, second):
    assert first.measured.even.tobytes() == second.measured.even.tobytes()
    assert first.measured.odd.tobytes() == second.measured.odd.tobytes()
    assert first.measured.noise.tobytes() == second.measured.noise.tobytes()
    assert first.measured.base.tobytes() == second.measured.base.tobytes()
    assert first.analysis.estimates == second.analysis.estimates


@pytest.fixture
def nothing_measured(monkeypatch):
    """Trials, the noise and the sharing of radii raise."""

    def refused(*_arguments, **_options):
        raise AssertionError("a plan is obeyed")

    def forbid():
        for owner, name in (
            (visits, "choose_precision"),
            (visits, "measure_noise"),
            (fs.response.responses, "choose_precision"),
            (fs.response.responses, "measure_noise"),
            (Evaluator, "_choose"),
            (DifferenceEvaluator, "_share"),
        ):
            monkeypatch.setattr(owner, name, refused)

    return forbid


@pytest.mark.parametrize(("precision", "path"), PATHS)
def test_an_extended_run_is_the_run_at_once(objective, precision, path):
    """By byte; with differences, five and then seven directions used to be other blocks than twelve."""
    short = fs.multifractal(objective, settings(precision, 5), QUICK, method=path)
    longer = fs.multifractal(objective, settings(precision, 12), QUICK, extend=short)
    same(longer, fs.multifractal(objective, settings(precision, 12), QUICK, method=path, plan=short))
    assert short.measured.even.tobytes() == longer.measured.even[:, :, :5].tobytes()
    assert short.measured.even.shape == (2, 5, 5)


def test_an_extension_with_all_memory_needs_no_plan_to_be_the_run_at_once(wide):
    """Five and then seven directions used to be other blocks than twelve: 1e-7 in the even responses."""
    probe = dataclasses.replace(settings("difference", 5), radii=tuple(np.logspace(-5, -1, 12)))
    short = fs.multifractal(wide, probe, QUICK)
    longer = fs.multifractal(wide, dataclasses.replace(probe, count=12), QUICK, extend=short)
    same(longer, fs.multifractal(wide, dataclasses.replace(probe, count=12), QUICK))


@pytest.mark.parametrize(("precision", "path"), PATHS)
def test_memory_moves_no_bit_under_a_plan(objective, wide, precision, path):
    """By differences it moved the even responses by 3e-6."""
    probed = wide if precision == "difference" else objective
    whole = fs.multifractal(probed, settings(precision, 5), QUICK, method=path)
    same(fs.multifractal(probed, settings(precision, 5), QUICK, plan=whole, memory=TIGHT), whole)


def test_a_plan_of_little_memory_holds_where_there_is_more(wide):
    tight = fs.multifractal(wide, settings("difference", 5), QUICK, memory=TIGHT)
    roomy = fs.multifractal(wide, settings("difference", 5), QUICK)
    units = [Plan.of(result).ways[0].unit for result in (tight, roomy)]
    assert units[0] < units[1], "the memory decides here"
    same(fs.multifractal(wide, settings("difference", 5), QUICK, plan=tight), tight)


class Shuffled(Here):
    """Any order, some units at a time, as from several workers."""

    def map(self, units, seconds):
        order = random.Random(len(units)).sample(list(units), len(units))
        yield from reversed(list(super().map(order, seconds)))


@pytest.mark.parametrize(("precision", "path"), PATHS)
def test_the_order_of_units_moves_no_bit(objective, precision, path, monkeypatch):
    ordered = fs.multifractal(objective, settings(precision, 9), QUICK, method=path)
    monkeypatch.setattr(visits, "Here", Shuffled)
    same(fs.multifractal(objective, settings(precision, 9), QUICK, plan=ordered), ordered)


@pytest.mark.parametrize("precision", ["float64", "difference", "float32", None])
@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
def test_a_plan_repeats_a_run_without_trials(objective, precision, nothing_measured, tmp_path):
    first = fs.multifractal(objective, settings(precision), QUICK)
    saved = fs.load(first.save(tmp_path / "first"))
    nothing_measured()
    for plan in (first, saved, Plan.of(first), Plan.of(json.loads(json.dumps(Plan.of(saved).to_dict())))):
        again = fs.multifractal(objective, settings(), QUICK, plan=plan)
        same(again, first)
        assert again.meta["plan"] == saved.meta["plan"]
        assert again.notes == first.notes


def test_radii_that_a_smooth_network_shares_are_those_of_the_plan(tanh_objective, nothing_measured):
    probe = dataclasses.replace(settings("difference", 3), radii=tuple(np.logspace(-6, -2, 6)))
    first = fs.multifractal(tanh_objective, probe, QUICK)
    assert len(Plan.of(first).ways[0].shared) >= 3
    nothing_measured()
    same(fs.multifractal(tanh_objective, probe, QUICK, plan=first), first)
    with UnitEvaluator([Point("model", None, lambda: tanh_objective)], probe, {0: Plan.of(first)}) as evaluate:
        value = decode(evaluate(Unit(0, 0, 0, 0)))
    assert value.even[:, :3].tobytes() == first.measured.even[0].tobytes()


def test_a_plan_of_rotated_banks_has_a_way_for_every_batch(objective, nothing_measured):
    x, y = objective.batches[0]
    rotated = fs.Objective(objective.model, [(x[:16], y[:16]), (x[16:], y[16:])], criterion=F.cross_entropy)
    probe = settings("difference", 2, bank_batches="rotate")
    first = fs.multifractal(rotated, probe, QUICK)
    assert [way.group for way in Plan.of(first).ways] == [0, 1]
    nothing_measured()
    same(fs.multifractal(rotated, probe, QUICK, plan=first), first)


def test_a_trajectory_has_a_plan_for_every_checkpoint(objective, nothing_measured, tmp_path):
    files = zoo.train(zoo.cnn(width=2), zoo.digits(samples=64), tmp_path, steps=4, checkpoints=2)
    first = fs.trajectory(objective, files, settings("difference", 2), QUICK)
    nothing_measured()
    again = fs.trajectory(objective, files, settings("difference", 2), QUICK, plan=first)
    for a, b in zip(again.points, first.points, strict=True):
        same(a, b)
    with pytest.raises(ValueError, match="plan must hold one plan per checkpoint, got 2 for 1"):
        fs.trajectory(objective, files[:1], settings("difference", 2), QUICK, plan=first)


@pytest.mark.parametrize(("precision", "path"), PATHS)
def test_any_unit_has_the_same_bytes_in_another_process_with_the_plan(objective, precision, path):
    result = fs.multifractal(objective, settings(precision, 7), QUICK, method=path)
    plan = Plan.of(result)
    size, threads = plan.ways[0].unit, torch.get_num_threads()
    with UnitEvaluator([Point("model", None, lambda: objective)], settings(), {0: plan}, TIGHT) as evaluate:
        for bank, block in ((1, 1 if size < 7 else 0), (0, 0)):
            value = decode(evaluate(Unit(0, 0, bank, block)))
            columns = slice(block * size, min(7, (block + 1) * size))
            assert value.even.shape == (5, size)
            expected = result.measured.even[bank, :, columns]
            assert value.even[:, : expected.shape[1]].tobytes() == expected.tobytes()
    assert torch.get_num_threads() == threads
    with pytest.raises(ValueError, match="plan must say how group 1 of mine is evaluated"):
        UnitEvaluator([Point("mine", None, lambda: objective)], settings(), {0: plan})(Unit(0, 1, 0, 0))


def test_threads_are_the_plans_and_are_put_back(objective, monkeypatch):
    first = fs.multifractal(objective, settings("float64", 2), QUICK, method="loop")
    other = torch.get_num_threads() + 1
    plan = dataclasses.replace(Plan.of(first), threads=other)
    seen, before = set(), torch.get_num_threads()
    responses = Evaluator.responses

    def watched(self, *arguments):
        seen.add(torch.get_num_threads())
        return responses(self, *arguments)

    monkeypatch.setattr(Evaluator, "responses", watched)
    again = fs.multifractal(objective, settings("float64", 2), QUICK, plan=plan)
    assert (seen, torch.get_num_threads()) == ({other}, before)
    assert again.meta["threads"] == other


def test_a_plan_of_something_else_is_refused_by_name(objective, digits):
    first = fs.multifractal(objective, settings("difference", 2), QUICK)
    x, y = objective.batches[0]
    torch.manual_seed(6)
    others = {
        "weights": fs.Objective(zoo.cnn(width=2), objective.batches, criterion=F.cross_entropy),
        "data": fs.Objective(objective.model, [(x + 1, y)], criterion=F.cross_entropy),
        "batch weights": fs.Objective(objective.model, [(x[:9], y[:9])], criterion=F.cross_entropy),
        "parameters": fs.Objective(objective.model, objective.batches, criterion=F.cross_entropy, params="0.*"),
        "dtype": fs.Objective(objective.model, objective.batches, criterion=F.cross_entropy, dtype=torch.float64),
        "loss function": fs.Objective(objective.model, objective.batches, criterion=lambda out, y: 2 * F.cross_entropy(out, y)),
    }
    for words, other in others.items():
        with pytest.raises(ValueError, match=f"plan must be of the same measurement, got other .*{words}.*; leave it out"):
            fs.multifractal(other, settings(count=2), QUICK, plan=first)
    for changes, words in (
        ({"seed": 1}, "got other settings"),
        ({"radii": RADII[:4]}, "got other settings"),
        ({"precision": "float64"}, "precision must be that of the plan, 'difference', got 'float64'"),
    ):
        with pytest.raises(ValueError, match=words):
            fs.multifractal(objective, dataclasses.replace(settings(), **changes), QUICK, plan=first)
    with pytest.raises(ValueError, match="method must be that of the plan, 'graph', got 'loop'"):
        fs.multifractal(objective, settings(), QUICK, plan=first, method="loop")
    with pytest.raises(ValueError, match="plan must be left out with extend="):
        fs.multifractal(objective, settings(), QUICK, plan=first, extend=first)
    with pytest.raises(TypeError, match="plan must be a fastscape.Plan or a result, got str"):
        fs.multifractal(objective, settings(), QUICK, plan="plan.json")
    old = dataclasses.replace(first, meta=fs.runs.provenance.Provenance({k: v for k, v in first.meta.items() if k != "plan"}))
    with pytest.raises(ValueError, match=r"plan must be in the result, got one without meta\['plan'\]"):
        fs.multifractal(objective, settings(), QUICK, plan=old)


def test_a_plan_of_other_versions_is_obeyed_and_said(objective):
    first = fs.multifractal(objective, settings("float64", 2), QUICK, method="loop")
    plan = Plan.of(first)
    plan = dataclasses.replace(plan, versions={**plan.versions, "torch": "1.0"})
    again = fs.multifractal(objective, settings("float64", 2), QUICK, plan=plan)
    assert any("the plan was made with fastscape" in note and "torch 1.0" in note for note in again.notes)


def test_results_of_before_there_were_plans_extend(objective):
    short = fs.multifractal(objective, settings("difference", 5), QUICK)
    path = {name: short.meta["path"][name] for name in ("name", "seconds", "reason")} | {"chunk": 13}
    old = {name: value for name, value in short.meta.items() if name != "plan"} | {"path": path}
    longer = fs.multifractal(
        objective, settings(None, 7), QUICK, extend=dataclasses.replace(short, meta=fs.runs.provenance.Provenance(old))
    )
    assert longer.measured.counts.tolist() == [7, 7]
    np.testing.assert_allclose(longer.measured.even[:, :, :5], short.measured.even, rtol=1e-5)


def test_a_shorter_run_keeps_what_it_extends(objective):
    short = fs.multifractal(objective, settings("difference", 5), QUICK)
    same(fs.multifractal(objective, settings(None, 2), QUICK, extend=short), short)


# ---------------------------------------------------------------------- responses


@pytest.mark.parametrize("precision", ["float64", "difference", "float32", None])
@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
def test_a_plan_repeats_responses_without_trials(objective, precision, nothing_measured):
    directions = fs.Directions(objective, 5, seed=3)
    first = fs.responses(objective, directions, RADII, precision=precision)
    nothing_measured()
    for plan in (first, Plan.of(first.plan.to_dict())):
        again = fs.responses(objective, fs.Directions(objective, 5, seed=3), RADII, plan=plan, memory=TIGHT)
        for name in ("even", "odd", "noise", "trusted"):
            assert getattr(again, name).tobytes() == getattr(first, name).tobytes()
        assert (again.precision, again.reason, again.plan) == (first.precision, first.reason, first.plan)


def test_a_plan_of_other_directions_is_refused(objective):
    first = fs.responses(objective, fs.Directions(objective, 4), RADII, precision="float64", method="loop")
    twice = fs.Objective(objective.model, objective.batches, criterion=lambda out, y: 2 * F.cross_entropy(out, y))
    given = [fs.Directions.given(objective, fs.Directions(objective, 2)[index]) for index in range(2)]
    for directions in (fs.Directions(objective, 5), fs.Directions(objective, 4, seed=1), given[0]):
        with pytest.raises(ValueError, match="got other settings"):
            fs.responses(objective, directions, RADII, plan=first)
    with pytest.raises(ValueError, match="got other settings"):
        fs.responses(objective, given[1], RADII, plan=fs.responses(objective, given[0], RADII, method="loop"))
    with pytest.raises(ValueError, match="got other loss function"):
        fs.responses(twice, fs.Directions(twice, 4), RADII, plan=first)
    with pytest.raises(ValueError, match="method must be that of the plan, 'loop', got 'vmap'"):
        fs.responses(objective, fs.Directions(objective, 4), RADII, plan=first, method="vmap")
