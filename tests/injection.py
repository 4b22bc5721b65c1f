"""Ctrl-C at a chosen instruction: a real signal, raised from a trace function, so that code which holds signals back holds it."""

import contextlib
import signal
import sys
import warnings
from pathlib import Path

import torch
from conftest import process_state
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import fastscape
from fastscape._creation import _here as created
from fastscape._generators import _here as drawn
from fastscape._interrupts import held_signals
from fastscape._settings import SETTINGS

PACKAGE = str(Path(fastscape.__file__).parent)
PLACES = (PACKAGE, contextlib.__file__)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1)


def whole_state():
    """What a probe might leave behind in the process or in this thread."""
    return process_state() | {
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": len(_get_current_dispatch_mode_stack()),
        "functorch": torch._C._functorch.maybe_current_level(),
        "dual": torch.autograd.forward_ad._current_level,
        "filters": list(map(id, warnings.filters)),
        "handlers": [signal.getsignal(number) for number in SIGNALS],
        "held": (held_signals._depth, list(held_signals._came), dict(held_signals._handlers)),
        "plain": (dict(SETTINGS._plain), SETTINGS._rounding, SETTINGS._waiting, len(SETTINGS._back)),
        "parametrize": (type(parametrize._cache_enabled), int(parametrize._cache_enabled)),
        "thread": (created.dtype, created.mode, drawn.exposed, drawn.copies, drawn.drawing),
        "default": torch.get_default_dtype,
        "generator": torch.random.default_generator,
        "autocast cache": torch.is_autocast_cache_enabled(),
    }


class Injector:
    """Raise SIGINT at one event: the ``at``-th instruction, or line, that runs in files of the package and of contextlib."""

    def __init__(self, at, *, instructions):
        self.at, self.count, self._instructions, self.place = at, 0, instructions, None

    def __enter__(self):
        self._outer = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_error):
        sys.settrace(self._outer)

    def _called(self, frame, _event, _argument):
        if not frame.f_code.co_filename.startswith(PLACES) or frame.f_code.co_name == "__del__":  # where exceptions end
            return None
        frame.f_trace_opcodes = self._instructions
        return self._traced

    def _traced(self, frame, event, _argument):
        if event == ("opcode" if self._instructions else "line"):
            self.count += 1
            if self.count == self.at:
                self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                signal.raise_signal(signal.SIGINT)
        return self._traced


def interrupted(work, at, *, instructions=True):
    """Run ``work`` with Ctrl-C at one event; whether the event came, where, and what of the state is not as it was before."""
    before = whole_state()
    injector = Injector(at, instructions=instructions)
    with contextlib.suppress(KeyboardInterrupt), injector:
        work()
    after = whole_state()
    return injector.count >= at, injector.place, {key for key in before if before[key] != after[key]}
