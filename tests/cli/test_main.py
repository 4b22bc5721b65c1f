"""The command line: results on stdout, progress and errors on stderr, exit codes, nothing lost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from processes import Heard

import fastscape as fs
from fastscape._interrupts import Interrupts
from fastscape.cli import inputs, main, slice
from fastscape.cli import spectrum as cli_spectrum
from fastscape.evaluation.batch_statistics import BatchNorm
from fastscape.evaluation.losses import DTYPES
from fastscape.probes.slices import axes as slice_axes
from fastscape.probes.spectrum.probe import BLOCK
from fastscape.zoo import specs

FAST = ("--radii", "1e-3:1e-1:8", "--count", "4", "--banks", "2", "--method", "loop")
DIGITS = ("--data", "zoo:digits?samples=32")


def fastscape(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_custom_losses_data_and_objectives_are_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(
        "import torch\nimport fastscape as fs\n\n"
        "def model():\n    torch.manual_seed(0)\n    return torch.nn.Linear(3, 1)\n\n"
        "def data():\n    return [{'x': torch.ones(4, 3)}]\n\n"
        "def loss(model, batch):\n    return model(batch['x']).square().mean()\n\n"
        "def objective():\n    return fs.Objective(model(), data(), loss=loss)\n"
    )
    values = []
    for arguments in (("task.py:model", "--data", "task.py:data", "--loss", "task.py:loss"), ("task.py:objective",)):
        done = fastscape("multifractal", *arguments, *FAST, "--json")
        assert done.exit_code == 0, done.stderr
        values.append(json.loads(done.stdout)["loss"])
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zoo:vgg", *DIGITS), "MODEL must be one of zoo:mlp"),
        (("zoo:mlp",), "--data is missing"),
        (("zoo:mlp", *DIGITS, "--radii", "0:1:4"), "radii must be positive, got '0:1:4'"),
        (("zoo:mlp", *DIGITS, "--radii", "1e-3,1e-2,1e-1"), "radii must hold at least 4 scales, got 3"),
        (("zoo:mlp", *DIGITS, "--radii", "1e-3,1e-3,1e-2,1e-1"), "strictly ascending"),
        (("zoo:mlp", *DIGITS, "--count", "1"), "count must be at least 2"),
        (("zoo:mlp", *DIGITS, "--normalize", "layer"), "normalize must be one of tensor, filter"),
        (("zoo:mlp", *DIGITS, "--budget", "soon"), "budget must be a positive time such as '60s'"),
        (("zoo:mlp", *DIGITS, "--checkpoint", "nowhere.pt"), r"checkpoints[0] must be a file, got 'nowhere.pt'"),
        (("zoo:mlp", *DIGITS, "--criterion", "hinge"), "--criterion must be one of cross_entropy, mse, bce or module:function"),
        (("zoo:mlp", *DIGITS, "--extend", "nowhere.npz"), "nowhere.npz"),
        (("zoo:mlp", *DIGITS, "--preset", "other"), "preset must be 'torok2026'"),
        (("zoo:mlp", "--data", "zoo:digits?samples=32", "--budget", "1ms"), "of the page, got '1ms'; "),
    ],
)
def test_bad_input_is_exit_code_2_and_writes_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = fastscape("multifractal", *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_directory_is_found_before_the_work(tmp_path, monkeypatch):
    def refuse(**_arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fastscape.cli.output.tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("fastscape.multifractal", lambda *_args, **_kwargs: pytest.fail("the work was started"))
    done = fastscape("multifractal", "zoo:mlp", *DIGITS, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "--out must be a writable directory" in done.stderr


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_place_that_takes_no_files_is_named_without_temporary_names():
    done = fastscape("multifractal", "zoo:mlp", *DIGITS, "--out", "/proc/x")
    assert done.exit_code == 2
    assert "Error: --out must be a writable directory, got '/proc/x' (in /proc: " in done.stderr
    assert "tmp" not in done.stderr


@pytest.mark.parametrize(("data", "message"), [("torch.ones(4, 64)", r"wrap a single batch as [batch]"), ("3", "got int")])
def test_data_of_the_wrong_kind_are_exit_code_2(tmp_path, data, message):
    (tmp_path / "wrong.py").write_text(f"import torch\n\ndef data():\n    return {data}\n")
    done = fastscape("multifractal", "zoo:mlp", "--data", f"{tmp_path}/wrong.py:data")
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_full_disk_rescues_the_result(tmp_path, monkeypatch):
    real = fs.MultifractalResult.save

    def save(self, path):
        if "out" in str(path):
            raise OSError(28, "No space left on device")
        return real(self, path)

    monkeypatch.setattr(fs.MultifractalResult, "save", save)
    done = fastscape("multifractal", "zoo:mlp", *DIGITS, *FAST, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "M_tau" in done.stdout
    place = done.stderr.split("the result is saved in ")[1].splitlines()[0]
    assert fs.load(place).directions == 8
    Path(place).unlink()


def test_models_that_cannot_be_probed_are_exit_code_4(tmp_path):
    (tmp_path / "odd.py").write_text(
        "import torch\n\nclass Noisy(torch.nn.Linear):\n    def forward(self, x):\n"
        "        return torch.nn.functional.dropout(super().forward(x.flatten(1)), 0.5)\n\n"
        "def noisy():\n    return Noisy(64, 10)\n\ndef narrow():\n    return torch.nn.Linear(3, 10)\n"
    )
    noisy = fastscape("multifractal", f"{tmp_path}/odd.py:noisy", *DIGITS)
    assert noisy.exit_code == 4
    assert "the forward draws random numbers" in noisy.stderr
    narrow = fastscape("multifractal", f"{tmp_path}/odd.py:narrow", *DIGITS)
    assert narrow.exit_code == 2
    assert "MODEL, --criterion and --data must fit each other, got RuntimeError on --data zoo:digits" in narrow.stderr
    assert "the model was given inputs" in narrow.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_saves_the_partial_result_and_exits_130(tmp_path, number):
    (tmp_path / "signals.py").write_text(
        "import os, torch\n\nclass Signals(torch.nn.Linear):\n    calls = 0\n\n    def forward(self, x):\n"
        "        Signals.calls += 1\n        if Signals.calls == 400:\n            os.write(int(os.environ['READY']), b'x')\n"
        "        return super().forward(x.flatten(1))\n\ndef make():\n    return Signals(64, 10)\n"
    )
    command = [sys.executable, "-m", "fastscape", "multifractal", "signals.py:make", *DIGITS, "--method", "loop", "--out", "out"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with Heard([*command, "--count", "100000"], cwd=tmp_path, **pipes) as heard:
        heard.wait_until_ready()
        heard.process.send_signal(number)
        stdout, stderr = heard.process.communicate()
        process = heard.process
    assert process.returncode == 130, stderr
    assert "partial result: interrupted" in stdout
    result = fs.load(tmp_path / "out" / "result.npz")
    assert result.meta["stop_reason"] == "interrupted"
    assert result.directions > 0
    assert np.isfinite(result.measured.even[0, :, 0]).all()


@pytest.fixture
def started(tmp_path):
    """Start ``python -m fastscape`` in ``tmp_path``, with stdout in a file; it is killed at the end."""
    running = []

    def start(*arguments, **environment):
        with (tmp_path / "stdout").open("w") as stdout:
            command = [sys.executable, "-m", "fastscape", *arguments]
            options = {"cwd": tmp_path, "stdout": stdout, "stderr": subprocess.PIPE, "text": True}
            running.append(Heard(command, environment=os.environ | environment, **options).__enter__())
        return running[-1]

    yield start
    for heard in running:
        heard.__exit__()


STUCK = """
import os, pkgutil, torch

def stuck(*_, **_named):
    os.write(int(os.environ["READY"]), b"x")
    while True:
        os.sched_yield()

def make():
    setattr(pkgutil.resolve_name("WHERE"), "NAME", stuck)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


@pytest.mark.parametrize("stage", ["analysis", "page"])
def test_a_second_ctrl_c_exits_130_with_the_raw_result_saved(tmp_path, started, stage):
    """The analysis of a run, or the drawing of its page, does not end; the first one is that of the live progress."""
    where, name = {
        "analysis": ("fastscape.probes.multifractal.result.Measured", "analyse"),
        "page": ("fastscape.reports.html", "write_html"),
    }[stage]
    (tmp_path / "stuck.py").write_text(STUCK.replace("WHERE", where).replace("NAME", name))
    heard, stderr = started("multifractal", "stuck.py:make", *DIGITS, *FAST, "--out", "out"), ""
    heard.wait_until_ready()
    heard.process.send_signal(signal.SIGINT)
    if stage == "analysis":
        heard.wait_until_ready()
    else:
        stderr = next(line for line in heard.process.stderr if "finishing" in line)
    heard.process.send_signal(signal.SIGINT)
    stderr += heard.process.communicate()[1]
    assert heard.process.returncode == 130
    stdout = (tmp_path / "stdout").read_text()
    assert "finishing: analysing and saving what is known; Ctrl-C again stops at once\n" in stderr
    assert "stopped before the page" in stderr
    assert "Traceback" not in stderr
    result = fs.load(tmp_path / "out" / "result.npz")
    assert result.directions > 0
    assert result.analysed is (stage == "page")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["result.json", "result.npz"]
    again = fastscape("report", tmp_path / "out" / "result.npz", "--out", tmp_path / "page.html")
    assert again.exit_code == 0, again.stderr
    assert "the analysis was stopped" not in again.stdout
    assert ("analysis was stopped" in stdout) is (stage == "analysis")


def test_a_signal_while_files_are_written_lets_them_be_written(capfd):
    with Interrupts() as interrupts:
        interrupts.hold()
        signal.raise_signal(signal.SIGINT)
        with interrupts.second_stops():
            pass
        with pytest.raises(KeyboardInterrupt), interrupts.second_stops():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), interrupts.second_stops():
            pytest.fail("a stopped run began another page")
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("arguments", [("status",), ("multifractal", "zoo:mlp", *DIGITS, "--budget", "60s")])
def test_ctrl_c_while_torch_loads_is_quiet(tmp_path, started, arguments):
    (tmp_path / "torch.py").write_text("import os\nos.write(int(os.environ['READY']), b'x')\nwhile True:\n    os.sched_yield()\n")
    heard = started(*arguments, PYTHONPATH=os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    heard.wait_until_ready()
    heard.process.send_signal(signal.SIGINT)
    stderr = heard.process.communicate()[1]
    assert heard.process.returncode == 130
    assert (tmp_path / "stdout").read_text() == stderr == ""


def test_report_shows_a_saved_result_again_without_the_model(tmp_path):
    fastscape("multifractal", "zoo:mlp", *DIGITS, *FAST, "--out", tmp_path / "out")
    saved = tmp_path / "out" / "result.npz"
    shown = fastscape("report", saved, "--out", tmp_path / "again.html")
    assert shown.exit_code == 0, shown.stderr
    assert "<svg" in (tmp_path / "again.html").read_text()
    assert fs.load(saved).verdict() in " ".join(shown.stdout.split())
    changed = fastscape("report", saved, "--q=-1,2,3", "--window", "1:7", "--json")
    assert json.loads(changed.stdout)["analysis"]["windows"] == [[1, 7]]
    bad = fastscape("report", tmp_path / "again.html")
    assert bad.exit_code == 2
    assert "must be a result file written by fastscape" in bad.stderr


def test_progress_is_drawn_on_a_terminal_only():
    from io import StringIO

    from rich.console import Console

    from fastscape.cli.live import LiveProgress

    for terminal, quiet, drawn in ((True, False, True), (False, False, False), (True, True, False)):
        console = Console(file=StringIO(), force_terminal=terminal, width=120)
        with LiveProgress(console=console, quiet=quiet) as live:
            live.show(fs.Progress("step3", unit="direction", done=40, fraction=0.5, remaining=12.0))
        assert ("40 directions" in console.file.getvalue()) is drawn
        assert ("about 12 s left" in console.file.getvalue()) is drawn


@pytest.mark.parametrize("error", ["IndexError", "AssertionError", "KeyError", "ValueError", "AttributeError"])
def test_whatever_a_model_raises_is_named_with_its_data_or_is_exit_code_4(tmp_path, error):
    (tmp_path / "bad.py").write_text(
        "import torch\n\nclass Bad(torch.nn.Linear):\n    def forward(self, x):\n"
        f"        Bad.calls += 1\n        if Bad.calls > Bad.good:\n            raise {error}('inside')\n"
        "        return super().forward(x.flatten(1))\n\n"
        "def first():\n    Bad.calls, Bad.good = 0, 0\n    return Bad(64, 10)\n\n"
        "def later():\n    Bad.calls, Bad.good = 0, 2\n    return Bad(64, 10)\n"
    )
    first = fastscape("multifractal", f"{tmp_path}/bad.py:first", *DIGITS)
    assert first.exit_code == 2
    assert f"MODEL, --criterion and --data must fit each other, got {error} on --data zoo:digits" in first.stderr
    later = fastscape("multifractal", f"{tmp_path}/bad.py:later", *DIGITS)
    assert later.exit_code == 4
    assert f"the model cannot be probed: {error}" in later.stderr


@pytest.mark.parametrize("arguments", [("--memory", "inf"), ("--memory", "-1"), ("--device", "nowhere")])
def test_bad_places_and_sizes_are_exit_code_2(arguments):
    done = fastscape("multifractal", "zoo:mlp", *DIGITS, *arguments)
    assert done.exit_code == 2
    assert arguments[0].strip("-") in done.stderr


@pytest.mark.parametrize("sink", ["/dev/full", "closed pipe"])
def test_files_are_written_before_stdout_fails(tmp_path, sink):
    command = [sys.executable, "-m", "fastscape", "multifractal", "zoo:mlp", *DIGITS, *FAST, "--out", "out"]
    if sink == "closed pipe":
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open(sink, os.O_WRONLY)
    try:
        done = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert fs.load(tmp_path / "out" / "result.npz").directions == 8


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (inputs.orders, "core", "core"),
        (inputs.orders, "-1,2", (-1.0, 2.0)),
        (inputs.window, "2:7", (2, 7)),
        (inputs.gib, "0.5", 2**29),
        (inputs.radii, "1e-3,2", (1e-3, 2.0)),
        (inputs.radii, "1:4:3", (1.0, 2.0, 4.0)),
    ],
)
def test_texts_of_options_are_read(read, text, value):
    assert read(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("option", "text", "words"),
    [
        ("--q", "-1;2", "or core, got '-1;2'"),
        ("--window", "2", "expected START:STOP scale indices, got '2'"),
        ("--window", "1:2:3", "expected START:STOP scale indices, got '1:2:3'"),
        ("--memory", "much", "memory must be a positive number of GiB, got 'much'"),
        ("--radii", "1:x:3", "expected LOW:HIGH:COUNT or a list such as 1e-3,1e-2, got '1:x:3'"),
        ("--radii", "0:1:3", "radii must be positive, got '0:1:3'"),
    ],
)
def test_texts_that_cannot_be_read_name_the_option(option, text, words):
    done = fastscape("multifractal", "zoo:mlp", f"{option}={text}")
    assert done.exit_code == 2
    assert f"Invalid value for '{option}': " in done.stderr
    assert words in done.stderr


def test_what_help_says_is_what_the_package_has():
    """The command line has its own words, because the modules that hold them take seconds to import."""
    assert get_args(BatchNorm) == inputs.BATCH_NORM
    assert tuple(DTYPES) == inputs.PRECISIONS
    assert (slice.LINES, slice.COMPONENTS) == (slice_axes.LINES, slice_axes.COMPONENTS)
    assert cli_spectrum.BLOCK == BLOCK
    assert all(hasattr(torch.nn.functional, name) for name in specs.CRITERIA.values())
    assert tuple(specs.CRITERIA) == inputs.CRITERIA


HELP = """
import os, sys
from click.testing import CliRunner
from fastscape.cli import main

pages = [[], *([name] for name in main.commands)]
for arguments in [["--version"], *(page + ["--help"] for page in pages)]:
    done = CliRunner().invoke(main, arguments, prog_name="fastscape")
    assert done.exit_code == 0, done.output
    print(*arguments, {heavy} & set(sys.modules))
for words in ("", "sp", "slice --direction ", "multifractal --", "barrier --bn "):
    words = ["fastscape", *words.split(" ")]
    completion = {{"_FASTSCAPE_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}}
    done = CliRunner().invoke(main, [], prog_name="fastscape", env=completion)
    assert done.exit_code == 0 and done.output.startswith("plain,"), done.output
    print(*words, {heavy} & set(sys.modules))
"""


def test_help_version_and_completion_load_nothing_heavy():
    heavy = {"torch", "numpy", "scipy", "matplotlib", "rich", "jinja2", "safetensors", "psutil"}
    done = subprocess.run([sys.executable, "-c", HELP.format(heavy=heavy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 1 + len(main.commands) + 5
    assert all(line.endswith("set()") for line in lines), done.stdout
