"""``fastscape bench`` and ``fastscape doctor``: tables, JSON, files, exit codes, nothing lost."""

import json

import pytest
import torch
from click.testing import CliRunner

import fastscape as fs
from fastscape.cli import main

MODEL = "zoo:mlp?hidden=(4,)"
DIGITS = ("--data", "zoo:digits?samples=16")
FAST = ("--count", "2", "--repeats", "2", "--budget", "300s")


def fastscape(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_bench_prints_a_table_and_writes_its_files(tmp_path):
    out = tmp_path / "out"
    done = fastscape("bench", MODEL, *DIGITS, *FAST, "--seed", 3, "--out", out, "--benchmark-json", tmp_path / "new" / "b.json")
    assert done.exit_code == 0, done.stderr
    assert sorted(file.name for file in out.iterdir()) == ["bench.html", "bench.json", "bench.npz"]
    result = fs.load(out / "bench.npz")
    assert result.meta["seed"] == 3
    assert result.meta["rounds"] == 2
    for words in ("forwards", "threads", "Hessian product: block of 2", "Cost of one"):
        assert words in done.stdout
    page = (out / "bench.html").read_text()
    assert "<svg" in page
    assert "Cost of one" in page
    timings = json.loads((tmp_path / "new" / "b.json").read_text())
    assert [row["name"] for row in timings["benchmarks"]] == [unit.name for unit in result.timed]
    again = fastscape("report", out / "bench.npz", "--json")
    assert json.loads(again.stdout)["units"][0]["name"] == "forward"


def test_bench_json_on_stdout_is_only_json():
    done = fastscape("bench", MODEL, *DIGITS, *FAST, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["meta"]["settings"]["count"] == 2
    assert document["units"][0]["seconds"]
    assert done.stderr == ""


def test_an_interrupted_bench_is_saved_and_exits_130(tmp_path, monkeypatch):
    real = fs.bench

    def interrupted(objective, **settings):
        def stop(state):
            if state.stage.startswith("round 2"):
                raise KeyboardInterrupt

        return real(objective, **{**settings, "progress": stop})

    monkeypatch.setattr("fastscape.bench", interrupted)
    done = fastscape("bench", MODEL, *DIGITS, *FAST, "--out", tmp_path / "out")
    assert done.exit_code == 130, done.stderr
    assert fs.load(tmp_path / "out" / "bench.npz").meta["stop_reason"] == "interrupted"
    done = fastscape("bench", MODEL, *DIGITS, *FAST)
    assert done.exit_code == 130
    place = done.stderr.split("the result is saved in ")[1].splitlines()[0]
    assert fs.load(place).meta["rounds"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zoo:vgg", *DIGITS), "MODEL must be one of zoo:mlp"),
        ((MODEL,), "--data is missing"),
        ((MODEL, *DIGITS, "--count", "0"), "count must be at least 1"),
        ((MODEL, *DIGITS, "--budget", "soon"), "budget must be a positive time"),
        ((MODEL, *DIGITS, "--memory", "-1"), "memory must be a positive number of GiB"),
    ],
)
def test_bad_input_of_bench_is_exit_code_2(tmp_path, arguments, message):
    done = fastscape("bench", *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.fixture
def tasks(tmp_path):
    (tmp_path / "tasks.py").write_text(
        "import torch\nimport fastscape as fs\n\n"
        "class Noisy(torch.nn.Linear):\n    def forward(self, x):\n"
        "        return super().forward(x.flatten(1)) * torch.rand(())\n\n"
        "def noisy():\n    return Noisy(64, 10)\n\n"
        "class Flat(torch.nn.Linear):\n    def forward(self, x):\n        return super().forward(x.flatten(1))\n\n"
        "def sound():\n    return Flat(64, 10)\n\n"
        "def broken():\n    model = Flat(64, 10)\n    torch.nn.init.constant_(model.bias, float('nan'))\n    return model\n"
    )
    return tmp_path / "tasks.py"


def test_bench_of_a_random_loss_is_exit_code_4(tasks):
    done = fastscape("bench", f"{tasks}:noisy", "--data", "zoo:digits?samples=16", *FAST)
    assert done.exit_code == 4, done.stderr


def test_doctor_without_a_model_looks_at_the_machine():
    done = fastscape("doctor")
    assert done.exit_code == 0, done.stderr
    assert "native kernels" in done.stdout
    assert "This machine" in done.stdout
    document = json.loads(fastscape("doctor", "--json").stdout)
    assert {finding["severity"] for finding in document["machine"]} <= {"ok", "warning"}
    assert document["model"] == []


def test_doctor_of_a_sound_model_is_exit_code_0(tasks):
    before = torch.get_rng_state()
    done = fastscape("doctor", f"{tasks}:sound", *DIGITS)
    assert torch.equal(before, torch.get_rng_state())
    assert done.exit_code == 0, done.stderr
    assert "can be probed" in " ".join(done.stdout.split())
    assert "double backward" in done.stdout


@pytest.mark.parametrize(("factory", "check"), [("broken", "finite weights"), ("noisy", "loss")])
def test_doctor_of_a_model_that_cannot_be_probed_is_exit_code_4(tasks, factory, check):
    done = fastscape("doctor", f"{tasks}:{factory}", *DIGITS, "--json")
    assert done.exit_code == 4
    document = json.loads(done.stdout)
    assert check in [finding["check"] for finding in document["model"] if finding["severity"] == "error"]
    assert document["verdict"].startswith("Something must be put right first")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zoo:vgg", *DIGITS), "MODEL must be one of zoo:mlp"),
        ((MODEL,), "--data is missing"),
        (DIGITS, "--data requires MODEL"),
    ],
)
def test_bad_input_of_doctor_is_exit_code_2(arguments, message):
    done = fastscape("doctor", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_an_interrupted_doctor_exits_130(monkeypatch):
    def stop(*_arguments, **_settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastscape.doctor", stop)
    done = fastscape("doctor")
    assert done.exit_code == 130
    assert "interrupted" in done.stderr
