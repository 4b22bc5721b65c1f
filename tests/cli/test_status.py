"""``fastscape status``: kernels of the machine, and the operations of a model."""

import json

import pytest
import torch
from click.testing import CliRunner

import fastscape as fs
from fastscape import zoo
from fastscape.cli import main

DIGITS = ("--data", "zoo:digits?samples=32")


def fastscape(*arguments):
    return CliRunner().invoke(main, ["status", *(str(argument) for argument in arguments)])


def test_status_of_a_model_is_a_table_of_its_operations():
    done = fastscape("--model", "zoo:cnn?width=2", *DIGITS)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("followed by: graph; piecewise: kinks are followed exactly\n\noperation")
    for words in ("aten.conv2d", "aten.relu.default", "exact rule, kinks included", "linear: lanes take the same way", "Conv2d"):
        assert words in done.stdout
    widths = {line.index("exact rule") for line in done.stdout.splitlines() if "exact rule" in line}
    assert len(widths) == 1, "columns are aligned"
    smooth = fastscape("--model", "zoo:mlp?activation=tanh", *DIGITS)
    assert "smooth: its small radii share their work" in smooth.stdout


def test_status_of_a_model_as_json_is_that_of_the_python_call():
    done = fastscape("--model", "zoo:mlp?hidden=(8,)", *DIGITS, "--json")
    objective = fs.Objective(zoo.mlp(hidden=(8,)), zoo.digits(samples=32), criterion=torch.nn.functional.cross_entropy)
    assert json.loads(done.stdout) == json.loads(json.dumps(fs.operators(objective).to_dict()))
    assert {row["operation"] for row in json.loads(done.stdout)["rows"]} >= {"aten.linear.default", "aten.relu.default"}


def test_status_without_a_model_is_that_of_the_kernels():
    assert "affine_difference" in fastscape().stdout
    assert "difference" in json.dumps(json.loads(fastscape("--json").stdout))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--model", "zoo:vgg", *DIGITS), 2, "MODEL must be one of zoo:mlp"),
        (("--model", "zoo:mlp"), 2, "--data is missing"),
        (("--model", "mlp", *DIGITS), 2, "MODEL must look like zoo:NAME"),
        (("--model", "nowhere.py:make", *DIGITS), 2, "nowhere.py"),
        (("--model", "zoo:mlp", *DIGITS, "--params", "nothing*"), 2, "params must select at least one"),
        (("--model", "random.py:make", *DIGITS), 4, "torch.func transforms"),
    ],
)
def test_status_of_a_bad_model_has_its_exit_code(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random.py").write_text(
        "import torch\n\nclass Model(torch.nn.Linear):\n    def forward(self, x):\n"
        "        return torch.func.vmap(torch.tanh)(super().forward(x.flatten(1)))\n\ndef make():\n    return Model(64, 10)\n"
    )
    done = fastscape(*arguments)
    assert done.exit_code == code
    assert message in done.stderr
    assert done.stdout == ""
