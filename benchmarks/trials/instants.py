"""Exceptions of the user's model and Ctrl-C at random instants of every public probe: nothing leaks, nothing known is lost."""

from __future__ import annotations

import faulthandler
import gc
import math
import random
import signal
import tempfile
import time
import warnings
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from conftest import model_state
from injection import Injector, whole_state
from torch.nn import functional as F

import fastscape as fs

from .subjects import Call, Net, calls, checkpoints, network

WAYS = ("exception", "line", "timer")  # of the model in a forward, Ctrl-C at a line of the package, and by a timer
HANG = 120  # seconds after which a call hangs: the trial ends with all stacks on stderr
ERRORS = (RuntimeError, MemoryError, ValueError, OSError)


class _Subject:
    """A model, and what one call of it does undisturbed: forwards, lines of the package, seconds."""

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        self.model, self.data = network(seed)
        self.call: Call = calls(self.model, checkpoints(self.model, folder))[name]
        self.forwards = self.lines = 0
        self.units = 0.0
        self.run()
        self.model.tick = self._count
        start = time.perf_counter()
        self.run()
        self.seconds = time.perf_counter() - start
        with Injector(math.inf, instructions=False) as injector:
            self.run()
        self.lines, self.forwards = injector.count, self.forwards // 2
        self.model.tick = Net().tick

    def _count(self) -> None:
        self.forwards += 1

    def run(self) -> Any:
        self.units = 0.0

        def progress(state: Any) -> None:
            self.units = max(self.units, float(getattr(state, "done", 0) or 0))

        return self.call(fs.Objective(self.model, self.data, criterion=F.cross_entropy), progress)


@contextmanager
def _timer(seconds: float) -> Any:
    """SIGALRM, whose handler is that of Ctrl-C, after so many seconds."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _disturbed(subject: _Subject, way: str, chance: random.Random) -> tuple[str, BaseException | None]:
    """Run with one disturbance: ``"returned"``, ``"partial"`` (an error that holds a partial result) or ``"raised"``."""
    error = chance.choice(ERRORS)
    at = chance.randint(1, max(1, subject.forwards))
    left = [at]

    def tick() -> None:
        left[0] -= 1
        if not left[0]:
            raise error("of the model")

    with ExitStack() as stack:
        if way == "exception":
            subject.model.tick = tick
            stack.callback(setattr, subject.model, "tick", lambda: None)
        try:
            if way == "line":
                with Injector(chance.randint(1, subject.lines), instructions=False):
                    subject.run()
            elif way == "timer":
                with _timer(chance.uniform(0, subject.seconds)):
                    subject.run()
            else:
                subject.run()
        except BaseException as raised:  # KeyboardInterrupt too
            found = raised
            return ("partial" if getattr(raised, "partial", None) is not None else "raised"), found
    return "returned", None


def trial(count: int, seed: int) -> dict[str, Any]:
    """Counts of so many disturbances, in turns over ways and probes."""
    found, failures = Counter[str](), []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = list(calls(Net(), [Path(), Path()]))
        each = -(-count // len(names))
        for index, name in enumerate(names):
            subject, chance = _Subject(name, seed, Path(folder)), random.Random(f"{seed} {name}")
            for trial_of in range(min(each, count - index * each)):
                way = WAYS[trial_of % len(WAYS)]
                before, model = whole_state(), model_state(subject.model)
                ticks = subject.model.tick
                faulthandler.dump_traceback_later(HANG, exit=True)
                outcome, error = _disturbed(subject, way, chance)
                units, kind = subject.units, type(error).__name__
                place = _place(error)
                error = None
                faulthandler.cancel_dump_traceback_later()
                subject.model.tick = ticks
                with suppress(AttributeError):
                    gc.collect(0)
                leaks = [key for key, value in whole_state().items() if value != before[key]]
                leaks += [key for key, value in model_state(subject.model).items() if value != model[key]]
                found[f"{way}: {outcome}"] += 1
                found["tried"] += 1
                found["leaks"] += bool(leaks)
                lost = outcome == "raised" and units >= 1
                found["results lost"] += lost
                if leaks or lost:
                    failures.append(f"{name}, {way}: {kind}{place}: leaks {leaks}, lost {units if lost else 0} units")
    return {
        "tried": found["tried"],
        "failed": found["leaks"] + found["results lost"],
        "counts": {**dict(sorted(found.items())), "hangs": 0, "leaks": found["leaks"], "results lost": found["results lost"]},
        "failures": failures[:50],
    }


def _place(error: BaseException | None) -> str:
    trace, words = getattr(error, "__traceback__", None), []
    while trace is not None:
        code = trace.tb_frame.f_code
        if "fastscape" in code.co_filename:
            words.append(f"{Path(code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f" at {' > '.join(words[-4:])}" if words else ""
