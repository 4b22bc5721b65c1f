"""Parameters that a model gets when it asks for them: made one module at a time, and dropped after use."""

from __future__ import annotations

import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastscape.objective.private import held_tensors

Made = dict[str, nn.Parameter]


class Parameters(dict[str, Any]):
    """The parameters of one module, each made when Python code asks for it.

    What reads a dictionary in C gets the placeholder, a tensor without numbers, and fails.
    """

    def __init__(self, held: dict[str, Any], store: Store) -> None:
        super().__init__(held)
        self._store = store

    def __getitem__(self, name: str) -> Any:
        return self._store.made(self, super().__getitem__(name))

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, self._store.placeholder(value))  # of another name for one that was made: it is made anew

    def get(self, name: str, default: Any = None) -> Any:
        """See :meth:`dict.get`."""
        return self[name] if name in self else default  # noqa: SIM401 - it is that

    def values(self) -> Any:
        """The parameters, one after another."""
        return (self[name] for name in self)

    def items(self) -> Any:
        """Names and parameters, one after another."""
        return ((name, self[name]) for name in self)

    def copy(self) -> dict[str, Any]:
        """All of them at once."""
        return dict(self.items())


class Store:
    """Makes parameters on use.

    One is alive while the model holds it; those of the module that asked last are kept until another asks, since forwards read
    a parameter more than once. A tensor that leaves its module keeps its memory: nothing is written over.

    Args:
        make: numbers of a parameter by name.
    """

    def __init__(self, make: Callable[[str], Tensor]) -> None:
        self._make = make
        self._names: dict[int, str] = {}
        self._placeholders: Made = {}
        self._alive: dict[str, weakref.ref[nn.Parameter]] = {}
        self._asking: Parameters | None = None
        self._latest: dict[str, nn.Parameter] = {}
        self.note: Callable[[Tensor], object] | None = None  # told of every parameter that is made
        self.dropped: Callable[[str, Tensor], object] | None = None  # told of those that are kept no longer

    def take(self, model: nn.Module, placeholders: Made) -> None:
        """Make the parameters of a model that are these placeholders on use."""
        self._placeholders = placeholders
        self._names = {id(placeholder): name for name, placeholder in placeholders.items()}
        for module in model.modules():  # also of those without: a forward may give them some
            module.__dict__["_parameters"] = Parameters(module._parameters, self)

    def made(self, asking: Parameters, held: nn.Parameter | None) -> nn.Parameter | None:
        """The parameter that a placeholder stands for; others are themselves."""
        name = self._names.get(id(held))
        if name is None or held is None:
            return held
        found = self.alive(name)
        if asking is not self._asking:
            self.drop()
            self._asking = asking
        if found is None:
            with torch.inference_mode(False), torch.no_grad(), torch._C.DisableTorchFunction(), _outside_transforms():
                found = nn.Parameter(self._make(name), requires_grad=held.requires_grad)
            self._alive[name] = weakref.ref(found)
            if self.note is not None:
                self.note(found)
        self._latest[name] = found
        return found

    def alive(self, name: str) -> nn.Parameter | None:
        """A parameter that was made and is still held."""
        alive = self._alive.get(name)
        return None if alive is None else alive()

    def placeholder(self, value: Any) -> Any:
        """What stands for a parameter that was made; other values are themselves."""
        names = (name for name, alive in self._alive.items() if value is not None and alive() is value)
        return next((self._placeholders[name] for name in names), value)

    def drop(self) -> None:
        """Keep nothing that nobody else holds."""
        latest, self._asking, self._latest = self._latest, None, {}
        for name, tensor in latest.items() if self.dropped is not None else ():
            self.dropped(name, tensor)  # type: ignore[misc]

    def forget(self) -> None:
        """Make everything anew from now on."""
        self.drop()
        self._alive.clear()


def _outside_transforms() -> AbstractContextManager[object]:
    """Tensors with memory of their own inside, also where a forward calls ``torch.func``."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return nullcontext()
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


def pinned(model: nn.Module) -> set[int]:
    """Ids of the parameters that modules hold outside of their parameters as well, as recurrent layers do in lists."""
    parameters = {id(parameter) for parameter in model.parameters()}
    return {id(tensor) for tensor in held_tensors(model)} & parameters


def unfit(model: nn.Module) -> str:
    """Why parameters of a model cannot be made on use, naming the module; empty if they can."""
    for name, module in model.named_modules():
        where = f"{name or 'the model'}, a {type(module).__name__},"
        if type(module._parameters) not in (dict, OrderedDict) or isinstance(module, torch.jit.ScriptModule):
            return f"{where} holds its parameters in a way of its own"
        if getattr(module, "_compiled_call_impl", None) is not None or _compiled(module):
            return f"{where} is compiled"
        for key, tensor in module._parameters.items():
            if tensor is not None and (type(tensor) is not nn.Parameter or type(tensor.data) is not Tensor or not _plain(tensor)):
                return f"{where} has the parameter {key!r}, which is no plain tensor"
    return ""


def _plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized


def _compiled(module: nn.Module) -> bool:
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and isinstance(module, dynamo.eval_frame.OptimizedModule)


def largest_module(model: nn.Module, count: Callable[[Tensor], int] = Tensor.numel) -> int:
    """Most elements that the own parameters of a module have together, as ``count`` counts them."""
    return max((sum(count(held) for held in _own(module)) for module in model.modules()), default=0)


def _own(module: nn.Module) -> Iterator[Tensor]:
    return (held for held in module._parameters.values() if held is not None)
