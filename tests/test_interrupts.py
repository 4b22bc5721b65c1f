"""Whether a process is the command, whose imports take seconds, by how it was started."""

import sys

import pytest

from fastscape import _interrupts


@pytest.mark.parametrize(
    ("started", "command"),
    [
        ("python -m fastscape multifractal zoo:mlp", True),
        ("python -u -m fastscape multifractal zoo:mlp", True),
        ("python -um fastscape status", True),
        ("python -mfastscape.cli", True),
        ("python -X dev -W error -m fastscape status", True),
        ("python -m torch.distributed.run --nproc-per-node 2 -m fastscape multifractal zoo:mlp", False),
        ("python -m torch.distributed.run --nproc-per-node 2 script.py fastscape", False),
        ("python -m pytest fastscape", False),
        ("python -m pytest -m fastscape", False),
        ("python -c pass -m fastscape", False),
    ],
)
def test_the_command_is_known_while_python_looks_for_the_module(started, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-m", *started.split()[2:]])
    monkeypatch.setattr(sys, "orig_argv", started.split())
    assert _interrupts._is_command() is command


@pytest.mark.parametrize(("path", "command"), [("/usr/bin/fastscape", True), ("/usr/bin/torchrun", False), ("", False)])
def test_the_command_is_known_by_its_script(path, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", [path, "-m", "fastscape"])
    assert _interrupts._is_command() is command
