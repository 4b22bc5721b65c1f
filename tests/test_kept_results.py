"""Ctrl-C after the last forward or product of a call, at whatever line: the call ends with its result."""

import math
import signal
import threading

import numpy as np
import pytest
from click.testing import CliRunner
from injection import Injector, whole_state
from test_partial_results import QUICK, TRAINING, A, B, evaluations, objective

import fastscape as fs
from fastscape import _keeping
from fastscape._interrupts import Interrupts
from fastscape._keeping import keeps_result, patience
from fastscape.cli import main

CALLS = {
    "slice1d": lambda of: fs.slice1d(of, points=5, count=2, method="loop"),
    "slice2d": lambda of: fs.slice2d(of, points=3, method="loop"),
    "barrier": lambda of: fs.barrier(of, A, B, points=3, start=3),
    "barriers": lambda of: fs.barriers(of, [A, B], points=3, start=3),
    "connect": lambda of: fs.connect(of, A, B, steps=2, points=3, start=3),
    "sharpness": lambda of: fs.sharpness(of, products=0, samples=4, steps=2, restarts=1),
    "temperature": lambda of: fs.temperature(of, products=3, **TRAINING),
    "spectrum": lambda of: fs.spectrum(of, k=1, nodes=5),
    "responses": lambda of: fs.responses(of, fs.Directions(of, 2), [1e-2], precision="float64", method="loop"),
    "forms": lambda of: fs.quadratic_forms(of, fs.Directions(of, 2)),
    "multifractal": lambda of: fs.multifractal(of, fs.ProbeSettings(count=2, precision="float64"), QUICK, method="loop"),
    "probe": lambda of: fs.probe(of, what=("slice",), options={"slice": {"method": "loop", "points": 5, "count": 2}}),
}

AT_ONCE = ("responses", "multifractal")  # in the middle of a forward too, and what is known is kept
END = 20  # lines of the end of a call that give the handlers back


def lines(name):
    """Lines of a call, and the first of them behind all forwards and products."""
    last, real = [0], _keeping._Patience.ask
    with pytest.MonkeyPatch.context() as patch, Injector(math.inf, instructions=False) as injector:
        patch.setattr(_keeping._Patience, "ask", lambda self: last.append(injector.count) or real(self))
        CALLS[name](objective())
    return injector.count, last[-1]


def interrupted_late(name, at):
    """The result of a call with Ctrl-C at a line; ``None`` and the place where it raised."""
    before = whole_state()
    injector, result = Injector(at, instructions=False), None
    try:
        with injector:
            result = CALLS[name](objective())
    except KeyboardInterrupt:
        pass
    assert whole_state() == before
    return result, injector.place


def stopped(result):
    return getattr(result, "stop_reason", None) or result.meta["stop_reason"]


def numbers(result):
    """All numbers that were measured, and the whole of their analysis."""
    if isinstance(result, fs.SpectrumResult):
        return result.products
    return len(result) if isinstance(result, fs.QuadraticForms) else evaluations(result)


def keeps(name, places):
    whole = CALLS[name](objective())
    count, first = lines(name)
    for at in places(first + 4, count - 1):  # behind the last question itself, before the last line: the caller has it there
        result, place = interrupted_late(name, int(at))
        assert result is not None, place
        assert numbers(whole) - (name in AT_ONCE) <= numbers(result) <= numbers(whole), place
        assert stopped(result) == "interrupted" or at > count - END, place
        str(result)


@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_behind_the_last_forward_leaves_the_result(name, untouched):
    keeps(name, lambda first, last: np.linspace(first, last, 3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_at_every_line_behind_the_last_forward_leaves_the_result(name):
    keeps(name, lambda first, last: range(first, last + 1))


def test_a_probe_of_several_stops_behind_the_one_whose_result_was_being_made(monkeypatch):
    real, came = fs.SliceResult.__init__, []

    def interrupted(self, *given, **named):
        if not came:
            came.append(signal.raise_signal(signal.SIGINT))
        real(self, *given, **named)

    monkeypatch.setattr(fs.SliceResult, "__init__", interrupted)
    found = fs.probe(objective(), what=("slice", "barrier"), other=A, options={"slice": {"points": 5, "count": 2}})
    assert stopped(found) == "interrupted"
    assert found.results["slice"].losses.shape == (2, 5)
    assert "interrupted" in found.missing["barrier"]


def test_the_first_waits_to_be_asked_for_and_the_second_comes_at_once():
    with patience:
        signal.raise_signal(signal.SIGINT)
        assert patience.waits
        with pytest.raises(KeyboardInterrupt):
            patience.ask()
        patience.ask()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with patience, pytest.raises(KeyboardInterrupt):
        patience.at_once(lambda: signal.raise_signal(signal.SIGINT))
    with patience:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            patience.at_once(lambda: None)


def test_what_came_before_the_end_costs_neither_a_result_nor_an_error():
    @keeps_result
    def door(error=None):
        signal.raise_signal(signal.SIGINT)
        if error is not None:
            raise error
        return 3

    assert door() == 3
    with pytest.raises(ValueError, match="midway"):
        door(ValueError("midway"))
    assert not patience.waits


def test_only_what_does_as_ctrl_c_waits():
    came = []
    numbers = (signal.SIGUSR1, signal.SIGALRM)
    before = {number: signal.signal(number, lambda *_, number=number: came.append(number)) for number in numbers}
    terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with patience:
            for number in before:
                signal.raise_signal(number)
            assert came == list(before)
            signal.raise_signal(signal.SIGTERM)
            assert patience.waits
    finally:
        for number, handler in {**before, signal.SIGTERM: terminate}.items():
            signal.signal(number, handler)


def test_a_thread_changes_nothing():
    found = []

    def work():
        with patience:
            found.append(signal.getsignal(signal.SIGINT))
            patience.ask()
            found.append(patience.at_once(lambda: 3))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler, 3]


def test_processes_of_torchrun_do_not_wait(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with patience, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_behind_the_last_forward_of_a_command_leaves_its_files(tmp_path, monkeypatch):
    words = ["slice", "zoo:mlp?hidden=(4,)", "--data", "zoo:digits?samples=32", "--quiet", "--points", "5", "--count", "2"]
    words += ["--force", "--out", str(tmp_path)]
    monkeypatch.setattr("fastscape.cli.output.write_page", lambda *_: None)

    def done():
        return CliRunner().invoke(main, words)

    done()
    marks, last, real = [], [0], _keeping._Patience.ask
    with pytest.MonkeyPatch.context() as patch, Injector(math.inf, instructions=False) as injector:
        patch.setattr(_keeping._Patience, "ask", lambda self: last.append(injector.count) or real(self))
        patch.setattr(Interrupts, "hold", lambda self, hold=Interrupts.hold: marks.append(injector.count) or hold(self))
        assert done().exit_code == 0
    (tmp_path / "slice.npz").unlink()
    for at in np.linspace(last[-1] + 4, marks[0], 3).astype(int):
        with Injector(int(at), instructions=False):
            found = done()
        assert found.exit_code in (0, 130)  # 0: the result was made
        assert fs.load(tmp_path / "slice.npz").losses.shape == (2, 5)
        (tmp_path / "slice.npz").unlink()
