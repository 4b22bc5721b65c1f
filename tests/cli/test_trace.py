"""``fastscape trace``: the function's numbers, and exit codes."""

import json

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.cli import main
from fastscape.curvature.forms import trace as module

MODEL = ("zoo:mlp?hidden=(4,)", "--data", "zoo:digits?samples=32")


def fastscape(*arguments):
    return CliRunner().invoke(main, ["trace", *(str(argument) for argument in arguments)])


@pytest.fixture
def objective(tmp_path):
    torch.manual_seed(3)
    model = zoo.mlp(hidden=(4,))
    torch.save(model.state_dict(), tmp_path / "step7.pt")
    return fs.Objective(model, zoo.digits(samples=32), criterion=F.cross_entropy)


def test_a_line_and_json_hold_the_estimate_of_the_function(objective, tmp_path):
    options = ("--checkpoint", tmp_path / "step7.pt", "--probes", 4, "--rank", 2, "--seed", 5)
    expected = fs.trace(objective, probes=4, rank=2, seed=5)
    done = fastscape(*MODEL, *options)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"tr H = {expected.value:.6g} (95 %: ")
    assert "4 directions, rademacher of rank 2" in done.stdout
    found = json.loads(fastscape(*MODEL, *options, "--json").stdout)
    assert (found["value"], found["n"], found["law"]) == (expected.value, 4, "rademacher of rank 2")
    assert found["interval"] == list(expected.interval)
    assert found["forms"] == expected.forms.curvature.tolist()


def test_rank_0_is_noise_in_every_element(objective, tmp_path):
    options = ("--checkpoint", tmp_path / "step7.pt", "--probes", 2, "--rank", 0, "--distribution", "gaussian", "--json")
    found = json.loads(fastscape(*MODEL, *options).stdout)
    assert found["value"] == fs.trace(objective, probes=2, rank=None, distribution="gaussian").value


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--probes", 1), "probes must be at least 2"),
        (("--method", "magic"), "method"),
        (("--seed", -1), "seed"),
        (("--checkpoint", "none.pt"), "none.pt"),
    ],
)
def test_bad_input_has_its_exit_code(options, words):
    done = fastscape(*MODEL, *options)
    assert done.exit_code == 2
    assert words in done.stderr


def test_what_an_interrupt_leaves_is_printed(monkeypatch):
    real = module.quadratic_forms

    def interrupted(objective, directions, *, progress, **options):
        def stop(done, total):
            progress(done, total)
            if done >= 2:
                raise KeyboardInterrupt

        return real(objective, directions, progress=stop, **options)

    monkeypatch.setattr(module, "quadratic_forms", interrupted)
    done = fastscape(*MODEL, "--probes", 8, "--json")
    assert done.exit_code == 130, (done.stdout, done.stderr)
    found = json.loads(done.stdout)
    assert 2 <= found["n"] <= 8
    assert found["stop_reason"] == "interrupted"
