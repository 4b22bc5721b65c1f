"""``fastscape diagonal``: tables, files and exit codes."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.cli import main

MODEL = ("zoo:mlp?hidden=(4,)", "--data", "zoo:digits?samples=32", "--params", "3.*")


def fastscape(*arguments):
    return CliRunner().invoke(main, ["diagonal", *MODEL, *(str(argument) for argument in arguments)])


def test_table_and_files_are_those_of_the_function(tmp_path):
    out, journal = tmp_path / "out", tmp_path / "journal"
    options = ("--products", 16, "--estimator", "xdiag", "--operator", "ggn", "--seed", 3, "--method", "graph")
    done = fastscape(*options, "--out", out, "--resume", journal)
    assert done.exit_code == 0, done.stderr
    assert sorted(file.name for file in out.iterdir()) == ["diagonal.html", "diagonal.json", "diagonal.npz"]
    result = fs.load(out / "diagonal.npz")
    torch.manual_seed(0)
    of = fs.Objective(zoo.mlp(hidden=(4,)), zoo.digits(samples=32), criterion=F.cross_entropy, params=["3.*"])
    expected = fs.diagonal(of, 16, estimator="xdiag", operator="ggn", seed=3, method="graph")
    np.testing.assert_array_equal(result.values, expected.values)
    assert "3.weight" in done.stdout
    again = fastscape(*options, "--out", out, "--resume", journal, "--json")  # goes on with its journal
    assert json.loads(again.stdout)["trace"]["value"] == expected.trace.value


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--products", 2), "products must be at least 4"),
        (("--estimator", "exact", "--products", 10), "products must be at least D = 50"),
        (("--memory", 0), "memory"),
    ],
)
def test_bad_input_has_its_exit_code(options, words):
    done = fastscape(*options)
    assert done.exit_code == 2
    assert words in done.stderr
