"""``fastscape barrier``: lines, matrices and curves between checkpoints."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.cli import main

MODEL = "zoo:mlp?hidden=(8,)"
DIGITS = ("--data", "zoo:digits?samples=64")


def fastscape(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The last checkpoints of three seeds."""
    files = []
    for seed in range(3):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("runs") / f"seed{seed}"
        files.append(zoo.train(zoo.mlp(hidden=(8,)), zoo.digits(samples=64), folder, steps=20, checkpoints=3, seed=seed)[-1])
    return files


def objective():
    torch.manual_seed(0)
    return fs.Objective(zoo.mlp(hidden=(8,)), zoo.digits(samples=64), criterion=F.cross_entropy)


def test_two_checkpoints_give_their_line_in_table_files_and_page(runs, tmp_path):
    done = fastscape("barrier", MODEL, *runs[:2], *DIGITS, "--match", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["barrier.html", "barrier.json", "barrier.npz"]
    result = fs.load(tmp_path / "out" / "barrier.npz")
    expected = fs.barrier(objective(), *runs[:2], match=True)
    np.testing.assert_array_equal(result.losses, expected.losses)
    assert result.linear == expected.linear
    assert (result.matched, result.a, result.b) == (True, "seed0/step20", "seed1/step20")
    assert result.verdict() in " ".join(done.stdout.split())
    page = (tmp_path / "out" / "barrier.html").read_text()
    assert page.count("<svg") >= 2
    assert "B_lin" in page


def test_one_checkpoint_is_compared_with_the_model_as_it_is_built(runs):
    done = fastscape("barrier", MODEL, runs[1], *DIGITS, "--points", 5, "--start", 5, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["losses"][0] == objective().loss()
    assert len(found["alphas"]) == 5
    assert found["meta"]["settings"]["points"] == 5


def test_more_checkpoints_give_a_matrix(runs):
    done = fastscape("barrier", MODEL, *runs, *DIGITS, "--bn", "running", "--points", 7, "--start", 7, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["labels"] == ["seed0/step20", "seed1/step20", "seed2/step20"]
    assert np.array(found["linear"]).shape == (3, 3)
    table = fastscape("barrier", MODEL, *runs, *DIGITS, "--points", 7, "--start", 7)
    assert "seed0/step20 - seed2/step20" in table.stdout


def test_a_directory_stands_for_its_checkpoints(runs):
    done = fastscape("barrier", MODEL, runs[0].parent, *DIGITS, "--start", 3, "--points", 3, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["labels"] == ["step0", "step1", "step20"]


def test_a_curve_is_trained_beside_the_line(runs, tmp_path):
    options = ("--curve", "--steps", 15, "--learning-rate", 0.02, "--out", tmp_path)
    done = fastscape("barrier", MODEL, *runs[:2], *DIGITS, *options)
    assert done.exit_code == 0, done.stderr
    result = fs.load(tmp_path / "barrier.npz")
    assert isinstance(result, fs.CurveResult)
    assert len(result.training) == 15
    assert result.meta["learning_rate"] == 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "CHECKPOINTS must name at least one file"),
        (("nowhere.pt", "--start", "3"), "b: must be a checkpoint file, got 'nowhere.pt'"),
        (("RUN", "--steps", "5"), "--steps requires --curve"),
        (("RUN", "RUN", "RUN", "--curve"), "--curve connects two checkpoints, got 3"),
        (("RUN", "--points", "5"), "points must be at least start = 11"),
    ],
)
def test_bad_input_ends_with_a_message(runs, arguments, message):
    files = iter(runs)
    given = [next(files) if argument == "RUN" else argument for argument in arguments]
    done = fastscape("barrier", MODEL, *given, *DIGITS)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_a_checkpoint_of_another_model_is_named(runs):
    done = fastscape("barrier", "zoo:mlp?hidden=(9,)", *runs[:2], *DIGITS)
    assert done.exit_code == 2
    assert "a: checkpoint" in done.stderr
    assert "1.weight has shape (8, 64), the model (9, 64)" in done.stderr
