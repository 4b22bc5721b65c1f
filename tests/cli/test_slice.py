"""``fastscape slice``: tables, files, directions and exit codes."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fastscape as fs
from fastscape import zoo
from fastscape.cli import main

MODEL = "zoo:mlp?hidden=(4,)"
DIGITS = ("--data", "zoo:digits?samples=32")


def fastscape(*arguments):
    return CliRunner().invoke(main, ["slice", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    zoo.train(zoo.mlp(hidden=(4,)), zoo.digits(samples=64), folder, steps=12, checkpoints=4)
    return folder


def test_lines_in_table_files_and_page(tmp_path):
    done = fastscape(MODEL, *DIGITS, "--count", 2, "--points", 5, "--radius", 0.5, "--seed", 3, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["slice.html", "slice.json", "slice.npz"]
    result = fs.load(tmp_path / "out" / "slice.npz")
    assert isinstance(result, fs.SliceResult)
    assert result.alphas.tolist() == [-0.5, -0.25, 0.0, 0.25, 0.5]
    assert result.losses.shape == (2, 5)
    assert (result.losses[:, 2] == result.loss).all()
    assert result.meta["seed"] == 3
    assert result.verdict() in " ".join(done.stdout.split())


def test_a_plane_of_principal_components_shows_the_checkpoints(run, tmp_path):
    done = fastscape(MODEL, *DIGITS, "--checkpoint", run, "--dims", 2, "--direction", "pca", "--points", 5, "--out", tmp_path)
    assert done.exit_code == 0, done.stderr
    result = fs.load(tmp_path / "slice.npz")
    assert isinstance(result, fs.PlaneResult)
    assert (result.name, result.step) == ("step12", 12)
    assert result.trajectory.shape == (len(list(run.glob("*.safetensors"))), 2)
    np.testing.assert_allclose(result.trajectory[-1], 0, atol=1e-12)
    assert "checkpoints" in (tmp_path / "slice.html").read_text()


@pytest.mark.parametrize("direction", ["random", "gradient", "eigenvectors"])
def test_json_on_stdout_is_only_json(direction):
    done = fastscape(MODEL, *DIGITS, "--direction", direction, "--count", 2, "--points", 3, "--json")
    document = json.loads(done.stdout)
    assert np.shape(document["losses"]) == (1 if direction == "gradient" else 2, 3)
    assert document["labels"][0].startswith(direction.rstrip("s"))
    assert done.stderr == ""


def test_a_difference_goes_from_the_last_checkpoint_to_the_first(run):
    files = (run / "step0.safetensors", run / "step12.safetensors")
    given = [part for file in files for part in ("--checkpoint", file)]
    document = json.loads(fastscape(MODEL, *DIGITS, *given, "--direction", "difference", "--points", 3, "--json").stdout)
    other = json.loads(fastscape(MODEL, *DIGITS, "--checkpoint", files[0], "--points", 3, "--json").stdout)
    assert math.isclose(document["losses"][0][2], other["loss"], rel_tol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--points", 4), "points must be odd"),
        (("--radius", 0), "radius must be positive and finite, got 0.0"),
        (("--direction", "pca"), "--direction pca needs the --checkpoint files"),
        (("--direction", "difference"), "--direction difference needs two"),
        (("--direction", "gradient", "--dims", 2), "directions must be two for a plane, got 1"),
        (("--budget", "0s"), "budget must be a positive time"),
        (("--checkpoint", "missing.pt"), "must be a file"),
    ],
)
def test_bad_input_ends_with_code_2_and_names_it(arguments, message):
    done = fastscape(MODEL, *DIGITS, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
