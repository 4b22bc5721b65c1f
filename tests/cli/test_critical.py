"""``fastscape critical``: the optimizer that it follows, tables, files and exit codes."""

import json

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.cli import main
from fastscape.runs.checkpoints import read_optimizer, read_state

MODEL = "zoo:mlp?hidden=(4,)"
DIGITS = ("--data", "zoo:digits?samples=32")


def fastscape(*arguments):
    return CliRunner().invoke(main, ["critical", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model, data = zoo.mlp(hidden=(4,)), zoo.digits(samples=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(data[0][0]), data[0][1]).backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / "step3.pt")
    torch.save({"optimizer_class": "Adam", "optimizer": optimizer.state_dict()}, folder / "adam.pt")
    return folder


def objective(run, samples=32):
    of = fs.Objective(zoo.mlp(hidden=(4,)), zoo.digits(samples=samples), criterion=F.cross_entropy)
    return of.at(read_state(run / "step3.pt"))


def test_the_step_of_a_saved_optimizer_in_table_files_and_page(run, tmp_path):
    out = tmp_path / "out"
    done = fastscape(MODEL, *DIGITS, "--checkpoint", run / "step3.pt", "--optimizer", run / "adam.pt", "--out", out)
    assert done.exit_code == 0, done.stderr
    assert sorted(file.name for file in out.iterdir()) == ["critical.html", "critical.json", "critical.npz"]
    result, of = fs.load(out / "critical.npz"), objective(run)
    expected = fs.critical_sharpness(of, optimizer=read_optimizer(run / "adam.pt"))
    assert (result.name, result.step, result.rate) == ("step3", 3, 0.02)
    assert result.eta_c == expected.eta_c
    assert result.verdict() in " ".join(done.stdout.split())
    assert "step of Adam" in done.stdout


def test_json_of_the_gradient_of_other_data(run):
    options = ("--relative-to", "zoo:digits?samples=64", "--guess", 0.5, "--tolerance", 0.02, "--no-curvature")
    done = fastscape(MODEL, *DIGITS, "--checkpoint", run / "step3.pt", *options, "--json")
    document = json.loads(done.stdout)
    expected = fs.critical_sharpness(objective(run), relative_to=objective(run, 64), guess=0.5, tolerance=0.02, curvature=False)
    assert document["eta_c"]["value"] == pytest.approx(expected.eta_c.value)
    assert document["steps"][0] == 0.5
    assert document["curvature"] is None
    assert document["update"] == "negative gradient of the other objective"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--momentum", 0.9), "--momentum requires --learning-rate"),
        (("--tolerance", 2), "tolerance must lie between 0 and 1"),
        (("--guess", -1), "guess must be positive and finite"),
        (("--relative-to", "zoo:pydoc-text"), "must fit each other, got"),
        (("--learning-rate", 0.1, "--optimizer", "none.pt"), "both given"),
    ],
)
def test_bad_input_has_its_exit_code(options, words):
    done = fastscape(MODEL, *DIGITS, *options)
    assert done.exit_code == 2
    assert words in done.stderr
