"""Building and installing: one wheel for every Python, with the library where there is a compiler and without it elsewhere."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECK = """
import torch, fastscape as fs
assert fs.__file__.startswith({folder!r}), fs.__file__
data = [(torch.ones(2, 4), torch.tensor([0, 2]))]
objective = fs.Objective(torch.nn.Linear(4, 3), data, criterion=torch.nn.functional.cross_entropy)
print(fs.losses(objective, fs.Directions(objective, 2), [0.0, 0.1]).shape, fs.status().native or fs.status().native_reason)
from fastscape.ops import _cuda
print(_cuda.source("cuda/perturb.cu"))
"""


def built(folder, **environment):
    """Build a wheel with the setuptools at hand (no isolation, no network) and unpack it."""
    source = folder / "source"
    ignored = shutil.ignore_patterns(".venv", ".git", "build", "*.so", "*.egg-info", "__pycache__", "demo")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(source),
    ]
    subprocess.run(command, env=os.environ | environment, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return wheel


def answer(folder, **environment):
    """What the unpacked package says of itself in a fresh interpreter."""
    installed = str(folder / "installed")
    run = subprocess.run(
        [sys.executable, "-c", CHECK.format(folder=installed)],
        env=os.environ | {"PYTHONPATH": installed, "OMP_NUM_THREADS": "1"} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_build_needs_no_torch():
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert not any("torch" in requirement for requirement in requires)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_with_a_compiler_one_wheel_carries_the_library(tmp_path):
    wheel = built(tmp_path, FASTSCAPE_NATIVE="require")
    assert "-py3-none-linux_" in wheel.name
    package = tmp_path / "installed" / "fastscape"
    assert (package / "_native.so").exists()
    assert "sha256" in (package / "_native.so.json").read_text()
    printed = answer(tmp_path, FASTSCAPE_NATIVE="require")
    assert "torch.Size([2, 2])" in printed
    assert str(package / "csrc" / "cuda" / "perturb.cu") in printed


def test_the_wheel_carries_the_sources_that_are_compiled_at_run_time(tmp_path):
    with zipfile.ZipFile(built(tmp_path, FASTSCAPE_NATIVE="0")) as wheel:
        shipped = {name.removeprefix("fastscape/") for name in wheel.namelist() if name.startswith("fastscape/csrc/")}
    assert shipped == {"csrc/philox.h", *(f"csrc/cuda/{path.name}" for path in (ROOT / "csrc" / "cuda").glob("*.cu"))}


def test_without_a_compiler_the_references_answer(tmp_path):
    built(tmp_path, CC="no-such-compiler", CXX="no-such-compiler", FASTSCAPE_NATIVE="")
    assert not list((tmp_path / "installed").rglob("*.so"))
    assert "was not built: install g++ 12 or newer" in answer(tmp_path, FASTSCAPE_NATIVE="")


def test_a_required_library_that_cannot_be_built_is_an_error(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        built(tmp_path, CC="no-such-compiler", CXX="no-such-compiler", FASTSCAPE_NATIVE="require")
