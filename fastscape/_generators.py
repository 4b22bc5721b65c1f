"""The global random generators stay the user's, also where other threads draw from them meanwhile.

A process of one thread gets back what was drawn: states are saved and written back. Where other threads may draw, nothing is ever
written to a global generator: what the user's code draws inside comes from copies that belong to its thread.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastscape._interrupts import Restoring, held_signals, undo

Later = Callable[[Callable[[], object]], None]
_QUIET = frozenset(
    {"IPython", "debugpy", "execnet", "ipykernel", "pydevd", "rich", "tqdm", "zmq"}
)  # threads that draw no numbers
_WAITING = frozenset({"asyncio", "queue", "selectors", "socket", "sqlite3", "threading", "tornado"})
_numpy: Any = np.random.mtrand._rand
_python: Any = random._inst
_torch: Any = torch.random


def alone() -> bool:
    """Whether no other thread of Python could draw random numbers, or create tensors."""
    return all(ident == threading.get_ident() or _quiet(frame) for ident, frame in sys._current_frames().items())


def _quiet(frame: FrameType | None) -> bool:
    """Whether a thread, by its stack, is one of a notebook, a progress bar, a debugger or a test runner, and no other."""
    modules = set()
    while frame is not None:
        modules.add(str(frame.f_globals.get("__name__", "")).split(".")[0])
        frame = frame.f_back
    return bool(modules & _QUIET) and modules <= _QUIET | _WAITING


def torch_generators() -> tuple[bytes, ...]:
    """States of the generators that torch draws from in this thread, of the CPU and every CUDA device in use."""
    if _here.exposed:
        return _here.copies.states() if _here.copies is not None else ()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return tuple(state.numpy().tobytes() for state in (torch.get_rng_state(), *cuda))


class _Copies:
    """Generators of one thread that go on from where the global ones were."""

    def __init__(self, source: _Copies | None = None) -> None:
        found = {torch.device("cpu"): torch.default_generator} if source is None else source.torch
        self.torch: dict[torch.device, torch.Generator] = {device: generator.clone_state() for device, generator in found.items()}
        self.numpy, self.python = np.random.RandomState(), random.Random()
        self.numpy.set_state((_numpy if source is None else source.numpy).get_state())
        self.python.setstate((_python if source is None else source.python).getstate())

    def of(self, device: torch.device) -> torch.Generator:
        """The generator of a device."""
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self.torch:
            self.torch[device] = torch.Generator(device).set_state(torch.cuda.get_rng_state(device))
        return self.torch[device]

    def states(self) -> tuple[bytes, ...]:
        """States of torch's."""
        return tuple(generator.get_state().numpy().tobytes() for generator in self.torch.values())

    def manual_seed(self, seed: int) -> torch.Generator:
        """As ``torch.manual_seed``."""
        for generator in self.torch.values():
            generator.manual_seed(seed)
        return self.torch[torch.device("cpu")]

    def everything(self) -> tuple[object, ...]:
        """States of all of them."""
        legacy: Any = self.numpy.get_state()
        return (*self.states(), legacy[1].tobytes(), *legacy[2:], self.python.getstate())


class _Here(threading.local):
    """What a thread draws from.

    Attributes:
        exposed: in a block whose user's code may draw, beside other threads.
        copies: its own generators, from the first time they are needed in that block.
        drawing: draws go to the copies.
    """

    exposed = False
    copies: _Copies | None = None
    drawing = False


_here = _Here()


class _Redirected(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Draws of torch's operations from the thread's own generators."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if torch.Tag.nondeterministic_seeded not in getattr(function, "tags", ()) or keywords.get("generator") is not None:
            return function(*arguments, **keywords)
        assert _here.copies is not None
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        device = torch.device(keywords.get("device") or (tensors[0].device if tensors else "cpu"))
        if device.type not in ("cpu", "cuda"):  # meta, which draws nothing
            return function(*arguments, **keywords)
        generator = _here.copies.of(device)
        taking = _with_generator(function)
        if taking is None:
            return _swapped(generator, lambda: function(*arguments, **keywords))
        return taking(*arguments, **keywords | {"generator": generator})


def _with_generator(function: Any) -> Any:
    """The overload of an operation that takes a generator; ``None`` where there is none."""
    packet = function.overloadpacket
    for name in (function._overloadname, "generator", f"{function._overloadname}_generator", "low_generator_dtype"):
        found = getattr(packet, name, None) if name in packet.overloads() else None
        if found is not None and _rest(found) == _rest(function) and "generator" in _names(found):
            return found
    return None


def _names(function: Any) -> list[str]:
    return [argument.name for argument in function._schema.arguments]


def _rest(function: Any) -> list[str]:
    return [name for name in _names(function) if name != "generator"]


def _swapped(generator: torch.Generator, draw: Callable[[], Any]) -> Any:
    """An operation that draws from the global generator alone, which is put back at once."""
    device = generator.device
    default: Any = torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index or 0]
    with held_signals, _installing:
        state = default.get_state()
        default.set_state(generator.get_state())
        try:
            return draw()
        finally:
            generator.set_state(default.get_state())
            default.set_state(state)


class _Default:
    """``torch.random.default_generator`` while threads have their own, which ``torch.manual_seed`` and the like speak to."""

    def __getattr__(self, name: str) -> Any:
        if _here.drawing and _here.copies is not None:
            owner: Any = _here.copies if name == "manual_seed" else _here.copies.of(torch.device("cpu"))
            return getattr(owner, name)
        return getattr(torch.default_generator, name)


_installing, _installed = threading.RLock(), 0
_back: list[Callable[[], object]] = []


def _install() -> None:
    """Let the functions of ``random`` and ``numpy.random`` ask which thread they are called in."""
    global _installed
    with _installing:
        _installed += 1
        if _installed > 1:
            return
        default = _torch.default_generator
        _back.append(lambda: setattr(_torch, "default_generator", default))
        _torch.default_generator = _Default()
        for module, instance, own in ((random, _python, "python"), (np.random, _numpy, "numpy")):
            for name, function in list(vars(module).items()):
                if getattr(function, "__self__", None) is instance or (name == "seed" and module is np.random):
                    _back.append(lambda module=module, name=name, function=function: setattr(module, name, function))  # type: ignore[misc]
                    setattr(module, name, _asking(function, own))


def _asking(function: Callable[..., Any], own: str) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        if _here.drawing:
            return getattr(getattr(_here.copies, own), function.__name__)(*arguments, **keywords)
        return function(*arguments, **keywords)

    return call


def _uninstall() -> None:
    global _installed
    with _installing:
        _installed -= 1
        if not _installed:
            undo(_back)


def exposed_draws(later: Later) -> None:
    """Begin a block whose user's code may draw, while signals are held; steps that end it go to ``later``."""
    if _here.exposed:
        outer = _here.copies
        later(lambda: setattr(_here, "copies", outer if _here.exposed else None))  # one that is destroyed late leaves none behind
        _here.copies = None if outer is None else _Copies(outer)
        return
    if alone():
        _save(later)
        return
    later(lambda: setattr(_here, "exposed", False))
    later(lambda: setattr(_here, "copies", None))
    _here.exposed, _here.copies = True, None


def _save(later: Later) -> None:
    cpu, legacy, python = torch.get_rng_state(), _numpy.get_state(), _python.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    def write_back() -> None:
        if not alone():  # a thread that was born inside may have drawn
            return
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        _numpy.set_state(legacy)
        _python.setstate(python)

    later(write_back)


class _Drawing(Restoring):
    """Draws of this thread come from its own generators inside the block."""

    def _begin(self, later: Later) -> bool:
        if _here.copies is None:
            if not _here.exposed:  # else they last as long as the block around
                later(lambda: setattr(_here, "copies", None))
            _here.copies = _Copies()
        later(_uninstall)
        _install()
        later(lambda: setattr(_here, "drawing", False))
        _here.drawing = True
        mode: Any = _Redirected()  # type: ignore[no-untyped-call]
        mode.__enter__()
        later(lambda: mode.__exit__(None, None, None))
        return True


class kept_generators(Restoring):  # noqa: N801 - a block, as contextlib's
    """Keep the global generators where evaluations inside draw from them; nothing else inside may draw."""

    def _begin(self, later: Later) -> bool:
        exposed_draws(later)
        return True


class preserved_rng(Restoring):  # noqa: N801
    """Keep torch's (CPU and every CUDA device), NumPy's and Python's global generators as they are outside of the block."""

    def _begin(self, later: Later) -> bool:
        exposed_draws(later)
        if _here.exposed and not _here.drawing:
            drawing = _Drawing()
            drawing.__enter__()
            later(lambda: drawing.__exit__(None, None, None))
        return True


def private_draws(known: dict[Any, Any], key: object) -> AbstractContextManager[None]:
    """Run the user's code inside an evaluation; whether it draws random numbers is found the first time, and kept in ``known``.

    Code that draws none costs nothing afterwards, and that which does, beside other threads, draws from its own thread's
    generators, through a mode of torch that sees every operation.
    """
    if not _here.exposed or _here.drawing or known.get(("draws", key)) is False:
        return nullcontext()
    return _found_draws(known, ("draws", key))


@contextmanager
def _found_draws(known: dict[Any, Any], name: object) -> Iterator[None]:
    with _Drawing():
        assert _here.copies is not None
        before = _here.copies.everything()
        yield
        known[name] = known.get(name, False) or _here.copies.everything() != before
