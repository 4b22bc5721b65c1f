"""No test depends on the speed or the load of a machine: nothing here reads a clock, sleeps or waits for a time."""

import ast
from pathlib import Path

import pytest

import fastscape
from fastscape import _clock
from fastscape.runs.budget import Budget

TESTS, PACKAGE = Path(__file__).parent, Path(fastscape.__file__).parent
MODULES = {"time", "timeit", "sched"}
NAMES = {"sleep", "perf_counter", "monotonic", "process_time", "getrusage", "settimeout", "alarm", "setitimer", "utcnow"}


def readings(source):
    """Where a program, or a program in a text within it, reads a clock, sleeps or sets a time-out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = {name.name for name in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            found = {node.module} & MODULES
        elif isinstance(node, ast.Attribute):
            found = {node.attr} & NAMES
        elif isinstance(node, ast.keyword):
            found = {node.arg} & {"timeout"}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "import" in node.value:
            try:
                found = set(readings(node.value))
            except SyntaxError:  # prose
                continue
        else:
            continue
        yield from found


FILES = sorted(path for path in TESTS.rglob("*.py") if path != Path(__file__))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_reads_a_clock(path):
    assert not set(readings(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from time import sleep",
        "subprocess.run(x, timeout=3)",
        "thread.join(timeout=1)",
        "os.times; signal.alarm(3)",
        "code = 'import time\\nx = 1'",
    ],
)
def test_readings_are_found(source):
    assert list(readings(source))


def test_the_package_reads_its_clock_in_one_place():
    for path in PACKAGE.rglob("*.py"):
        modules = {"time"} & set(readings(path.read_text(encoding="utf-8")))
        assert not modules or path.name == "_clock.py", f"{path} must take the time from fastscape._clock"


def test_budgets_run_on_the_simulated_clock(clock):
    budget = Budget("60s")
    clock.now += 59
    assert budget.admits(0.9)
    clock.now += 2
    assert not budget.admits(0.0)
    assert _clock.read is clock
