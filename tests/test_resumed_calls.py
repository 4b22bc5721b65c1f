"""``resume=`` of slices, barriers, curves and sample gradients: the same call goes on to the same bytes, whatever ended it."""

import contextlib
import dataclasses
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_partial_results import TRAINING, A, B, Boom, Failing, objective

import fastscape as fs
from fastscape import zoo
from fastscape.cli import main
from fastscape.evaluation.surface.surface import Surface

CALLS = {
    "slice1d": lambda of, **run: fs.slice1d(of, points=5, count=4, **run),
    "slice2d": lambda of, **run: fs.slice2d(of, points=5, **run),
    "barrier": lambda of, **run: fs.barrier(of, A, B, points=7, start=5, **run),
    "barriers": lambda of, **run: fs.barriers(of, [A, B, None], points=5, start=5, **run),
    "sharpness": lambda of, **run: fs.sharpness(of, restarts=3, steps=4, samples=8, products=12, **run),
    "temperature": lambda of, **run: fs.temperature(of, **TRAINING, products=6, **run),
    "groups": lambda of, **run: fs.temperature(of, **TRAINING, products=3, method="two-batch", **run),
    "connect": lambda of, **run: fs.connect(of, A, B, steps=30, points=5, start=5, **run),
}
TIMES = ("seconds", "created", "path_reason", "reason")  # which quote seconds


@pytest.fixture(autouse=True)
def _never():
    yield
    Failing.at = math.inf


def content(result):
    """All that a result says, but for its times, and for the trials that they decide on."""
    varying = (*TIMES, "products") if isinstance(result, fs.TemperatureResult) else TIMES

    def without(data):
        if isinstance(data, dict):
            return {name: without(value) for name, value in data.items() if name not in varying}
        return [without(value) for value in data] if isinstance(data, (list, tuple)) else data

    return without(result.to_dict())


def call(name, at=math.inf, **run):
    """A call whose model fails at a forward; its result, and the number of its forwards."""
    Failing.calls, Failing.at, Failing.error = 0, at, Boom
    found = CALLS[name](objective(), **run)
    return found, Failing.calls


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_fails_anywhere_goes_on_to_the_bytes_of_one_that_nothing_disturbed(name, tmp_path):
    whole, forwards = call(name, resume=tmp_path / "whole")
    same(name, call(name)[0], whole)
    before = forwards
    for number, at in enumerate(np.linspace(1, forwards, 6).astype(int)):
        folder = tmp_path / str(number)
        with contextlib.suppress(Boom, fs.PartialResultError):
            call(name, at, resume=folder)
        found, left = call(name, resume=folder)
        assert content(found) == content(whole)
        assert left <= before
        before = left
    _, none = call(name, resume=folder)  # of a journal that is complete: the gate, and what is no evaluation
    assert none < before < forwards


def same(name, plain, resumed):
    """A journal changes no number."""
    for field in ("losses", "linear", "roughness", "training", "norms", "noise_scale_h"):
        if hasattr(plain, field):
            np.testing.assert_equal(getattr(resumed, field), getattr(plain, field), err_msg=name)


@pytest.mark.parametrize("name", CALLS)
def test_a_journal_of_another_call_is_refused_by_name_before_any_work(name, tmp_path):
    call(name, resume=tmp_path)
    with pytest.raises(ValueError, match="is of other seed; use another folder"):
        call(name, seed=5, resume=tmp_path)
    other = objective()
    with torch.no_grad():
        next(other.model.parameters()).add_(1.0)
    moved = fs.Objective(other.model, other.batches[:2], criterion=other.criterion)
    with pytest.raises(ValueError, match="is of other .*data"):
        CALLS[name](moved, resume=tmp_path)
    with pytest.raises(TypeError, match="resume must be the path of a folder"):
        call(name, resume=3)
    assert call(name, resume=tmp_path)[0]


@pytest.mark.parametrize("command", ["slice", "barrier"])
def test_the_same_command_goes_on_with_its_journal(command, tmp_path, monkeypatch):
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(zoo.mlp(hidden=(4,)).state_dict(), tmp_path / f"{seed}.pt")
    files = [str(tmp_path / f"{seed}.pt") for seed in range(2)]
    given = files if command == "barrier" else ["--checkpoint", files[0], "--count", "3"]
    words = [command, "zoo:mlp?hidden=(4,)", "--data", "zoo:digits?samples=32", *given]
    real, left = Surface.at, [3]

    def at(self, points):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("lost")
        return real(self, points)

    def run(*more):
        done = CliRunner().invoke(main, [*words, "--points", "11", "--quiet", *more])
        return done.exit_code, done.output

    monkeypatch.setattr(Surface, "at", at)
    assert run("--resume", str(tmp_path / "run"))[0] == 4
    monkeypatch.setattr(Surface, "at", real)
    assert run("--resume", str(tmp_path / "run"), "--out", str(tmp_path / "out"))[0] == 0
    assert run("--out", str(tmp_path / "alone"))[0] == 0
    found, alone = (fs.load(tmp_path / name / f"{command}.npz") for name in ("out", "alone"))
    np.testing.assert_array_equal(found.losses, alone.losses)


def test_what_a_kill_or_a_disk_left_of_sample_gradients_is_taken_and_the_rest_done_again(tmp_path):
    """A journal that was cut off after a line, or within one."""
    whole, forwards = call("temperature", resume=tmp_path)
    (lines,) = tmp_path.glob("evaluations.*.jsonl")
    found = lines.read_bytes()
    ends = [place + 1 for place, byte in enumerate(found) if byte == ord("\n")]
    before = forwards
    for end in ends[1::3]:
        for torn in (7, 0):
            for later in tmp_path.glob("evaluations.*.jsonl"):
                later.unlink()
            lines.write_bytes(found[: end - torn])
            result, left = call("temperature", resume=tmp_path)
            assert len([note for note in result.notes if "torn or changed" in note]) == bool(torn)
            assert content(dataclasses.replace(result, notes=whole.notes)) == content(whole)
            assert left <= before
        before = left
    assert before < forwards
