"""Bad inputs: every argument of every public function, and every option of every command, with values that it cannot have.

What a function takes is its own affair. Where it refuses, the error names the argument, is of a kind that says whose fault it is,
and comes before the model is evaluated; a command ends with exit status 2 and one message.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from typing import Any

import click
import numpy as np
import torch
from click.testing import CliRunner
from test_wrong_arguments import MODEL, parameters

from fastscape.cli import main as commands

VALUES: tuple[Any, ...] = (
    *(5, -1, 0, 2.5, float("inf"), float("nan"), 10**9, True, 1j, None),
    *("a", "", b"x", "1e999s", "/absent.pt", [], [5], ["a"], [None], {}, {"a": 5}, (1j,), {1, 2}, object(), range(3)),
    *(torch.zeros(2), torch.tensor(float("nan")), np.zeros((2, 2)), np.array("x"), torch.float16, type, Ellipsis, slice(2)),
)
TEXTS = ("abc", "", "-1", "nan", "1e999", "/absent/file", "a:b:c", "é", "0x10", "1e-3:1e-1")
KINDS = (TypeError, ValueError, OSError, ImportError)
OTHER_NAMES = {"preset": {"name": "preset"}, "Tracker": {"every": "when"}}  # as the message calls them
PATIENCE = 10  # seconds of a call that takes what it was given: it is ended, and counts as taken


class _Enough(BaseException):
    """A call takes what it was given, and works."""


@contextmanager
def _patience() -> Iterator[None]:
    def end(*_: Any) -> None:
        raise _Enough

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _working() -> dict[str, dict[str, Any]]:
    """Arguments beside those of the tests, which are never read there, with which a call works."""
    other = {name: value + 0.1 for name, value in MODEL.state_dict().items()}
    for name, state in (("step1.pt", MODEL.state_dict()), ("step2.pt", other)):
        torch.save(state, name)
    files = {"checkpoints": ["step1.pt", "step2.pt"]}
    return {"barrier": {"b": other}, "connect": {"b": other}, "barriers": files, "trajectory": files, "spectra": files}


def _of_functions(tried: list[Any], found: Counter[str], failures: list[str]) -> None:
    working = _working()
    for door, given, name, value in tried:
        forwards: list[int] = []

        def forward(_module: Any, given: Any, _found: Any, seen: list[int] = forwards) -> None:
            if type(given[0]) is not torch.Tensor:  # shapes alone
                return
            seen.append(1)
            if len(seen) > 200:
                raise _Enough

        handle = MODEL.register_forward_hook(forward)
        place = f"{door.__name__}({name}={' '.join(repr(value).split())[:40]})"
        found["tried"] += 1
        try:
            with _patience():
                door(**{**given, **working.get(door.__name__, {}), name: value})
            found["arguments that are taken"] += 1
        except _Enough:
            found["arguments that are taken"] += 1
        except Exception as error:
            text = str(error)
            known = OTHER_NAMES.get(door.__name__, {}).get(name, name)
            if isinstance(error, KINDS) and (known in text or known.rstrip("s") in text):
                found["arguments refused by name"] += 1
                if forwards and not isinstance(error, OSError):
                    failures.append(f"{place}: {len(forwards)} forwards before {type(error).__name__}: {text}")
            else:
                failures.append(f"{place}: {type(error).__name__}: {text}")
        finally:
            handle.remove()


def _options() -> Iterator[tuple[list[str], click.Option, str]]:
    for name, command in commands.commands.items():
        given = [name]
        for parameter in command.params:
            if isinstance(parameter, click.Argument) and parameter.required:
                given += ["zoo:mlp"] if parameter.name == "model" else ["absent"]
        if any(option.name == "data" for option in command.params):
            given += ["--data", "zoo:digits?samples=16"]
        for option in command.params:
            if isinstance(option, click.Option) and not option.is_flag and option.nargs == 1:
                for text in TEXTS:
                    yield given, option, text


def _of_commands(tried: list[Any], found: Counter[str], failures: list[str]) -> None:
    for given, option, text in tried:
        arguments = [*given, option.opts[-1], text]
        place = " ".join(arguments)
        found["tried"] += 1
        try:
            with _patience():
                done = CliRunner().invoke(commands, arguments)
        except _Enough:
            found["options that are taken"] += 1
            continue
        if isinstance(done.exception, _Enough) or done.exit_code in (0, 3, 130):
            found["options that are taken"] += 1
        elif done.exit_code == 2 and "Traceback" not in done.output:
            found["options refused with exit status 2"] += 1
        else:
            failures.append(f"fastscape {place}: exit status {done.exit_code}, {done.exception!r}: {done.output[-200:]}")


def trial(count: int, seed: int) -> dict[str, Any]:
    """Counts of so many bad inputs, or of all, drawn from functions and commands alike."""
    found, failures = Counter[str](), []
    arguments, options = [(*each, value) for each in parameters() for value in VALUES], list(_options())
    chance, share = random.Random(seed), min(1.0, count / (len(arguments) + len(options)))
    with tempfile.TemporaryDirectory() as folder, chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["NO_COLOR"] = "1"
        _of_functions([each for each in arguments if chance.random() < share], found, failures)
        _of_commands([each for each in options if chance.random() < share], found, failures)
    return {"tried": found["tried"], "failed": len(failures), "counts": dict(found), "failures": failures[:200]}
